"""Pure machine learning: arrays in, arrays out; no database, no job queue.

Importing this package does not import TensorFlow; the first fit or the first score does.
"""

from detector._tensorflow import load_tensorflow
from detector.builtin_recipes import RECIPES, recipe_named
from detector.detector import Detector, Scores, top_features
from detector.errors import (
    DetectorError,
    FeatureMismatch,
    InvalidDetector,
    InvalidRecipe,
    NonFiniteFeatures,
    TrainingDataError,
    UnknownRecipe,
    WindowMismatch,
)
from detector.fit_result import FitResult
from detector.layout import expected_arrays
from detector.network import Progress
from detector.recipes import Recipe
from detector.thresholds import exceeds
from detector.training import fit
from detector.windows import window_positions

__all__ = [
    "RECIPES",
    "Detector",
    "DetectorError",
    "FeatureMismatch",
    "FitResult",
    "InvalidDetector",
    "InvalidRecipe",
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
    "load_tensorflow",
    "recipe_named",
    "top_features",
    "window_positions",
]
