"""Tests. More processes than cores run them, so each, and what it starts, computes with one thread."""

import os

# Read when NumPy and scikit-learn are imported, neither of which is by now.
os.environ.setdefault("OMP_NUM_THREADS", "1")
