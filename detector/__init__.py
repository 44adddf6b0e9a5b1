"""Pure machine learning: arrays in, arrays out; no database, no job queue.

Importing this package imports NumPy and pydantic alone. The first fit imports TensorFlow, scikit-learn and SciPy, the
first score ONNX Runtime.
"""

from detector._tensorflow import load_tensorflow
from detector.builtin_recipes import RECIPES, recipe_named
from detector.detector import Detector, Scores, top_features
from detector.errors import (
    DetectorError,
    FeatureMismatch,
    InvalidDetector,
    InvalidRecipe,
    MetricsError,
    NonFiniteFeatures,
    TrainingDataError,
    UnknownRecipe,
    WindowMismatch,
)
from detector.fit_result import FitResult
from detector.layout import expected_arrays
from detector.network import Progress
from detector.recipes import Recipe
from detector.scorer import load_onnx_runtime
from detector.threshold_text import FORMS as THRESHOLD_FORMS
from detector.threshold_text import parse_threshold, threshold_text
from detector.thresholds import exceeds
from detector.training import fit
from detector.windows import window_positions

__all__ = [
    "RECIPES",
    "THRESHOLD_FORMS",
    "Detector",
    "DetectorError",
    "FeatureMismatch",
    "FitResult",
    "InvalidDetector",
    "InvalidRecipe",
    "MetricsError",
    "NonFiniteFeatures",
    "Progress",
    "Recipe",
    "Scores",
    "TrainingDataError",
    "UnknownRecipe",
    "WindowMismatch",
    "exceeds",
    "expected_arrays",
    "fit",
    "load_onnx_runtime",
    "load_tensorflow",
    "parse_threshold",
    "recipe_named",
    "threshold_text",
    "top_features",
    "window_positions",
]
