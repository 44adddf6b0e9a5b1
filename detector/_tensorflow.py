"""The one place that imports TensorFlow and Keras, for fitting, late, so that importing `detector` stays light."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from pgoutlier.detector.errors import TensorFlowMissing
from pgoutlier.detector.recipes import Recipe


def tensorflow() -> Any:
    """The tensorflow module, its start-up chatter silenced unless the caller's environment says otherwise."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # oneDNN announces itself at every import, below any log level, and adds in an order that varies
    # from one processor to the next; the networks here are too small to gain from it.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf

    return tf


def require_tensorflow(recipe: Recipe) -> None:
    """Raises TensorFlowMissing if the recipe is fitted by TensorFlow and that is not installed; imports nothing."""
    if recipe.has_network and find_spec("tensorflow") is None:
        raise TensorFlowMissing


def load_tensorflow() -> None:
    """Import TensorFlow now, so that the time of a fit is without it. Never in a process that forks."""
    tensorflow()


def keras() -> Any:
    """The keras module, on the TensorFlow backend."""
    tensorflow()
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    return keras
