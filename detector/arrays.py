"""Names for the array types that cross the functions of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32Matrix: TypeAlias = NDArray[np.float32]
Float64Matrix: TypeAlias = NDArray[np.float64]
Float64Vector: TypeAlias = NDArray[np.float64]
BoolVector: TypeAlias = NDArray[np.bool_]
IntVector: TypeAlias = NDArray[np.int64]
IntMatrix: TypeAlias = NDArray[np.int64]
Arrays: TypeAlias = Mapping[str, NDArray[Any]]
