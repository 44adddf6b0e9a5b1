"""Pure machine learning: arrays in, arrays out; no database, no job queue.

Importing this package imports NumPy and pydantic alone. The first fit imports TensorFlow, scikit-learn and SciPy, the
first score ONNX Runtime.
"""

from pgoutlier.detector._tensorflow import load_tensorflow, require_tensorflow
from pgoutlier.detector.builtin_recipes import RECIPES, recipe_named
from pgoutlier.detector.detector import Detector, Scores, top_features
from pgoutlier.detector.errors import (
    DetectorError,
    FeatureMismatch,
    InvalidDetector,
    InvalidRecipe,
    MetricsError,
    NonFiniteFeatures,
    TensorFlowMissing,
    TrainingDataError,
    UnknownRecipe,
    WindowMismatch,
)
from pgoutlier.detector.fit_result import FitResult
from pgoutlier.detector.layout import expected_arrays
from pgoutlier.detector.network import Progress
from pgoutlier.detector.recipes import Recipe
from pgoutlier.detector.scorer import load_onnx_runtime
from pgoutlier.detector.threshold_text import THRESHOLD_FORMS, parse_threshold, threshold_text
from pgoutlier.detector.thresholds import exceeds
from pgoutlier.detector.training import fit
from pgoutlier.detector.windows import window_positions

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
    "TensorFlowMissing",
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
    "require_tensorflow",
    "threshold_text",
    "top_features",
    "window_positions",
]
