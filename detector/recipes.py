"""A recipe says what to fit: validated data, never code, so one from a stranger can be read safely.

Every number has a bound, so that a hostile recipe cannot ask for a network that fills the memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from pgoutlier.detector.errors import InvalidRecipe

FeatureName: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]
FeatureNames: TypeAlias = Annotated[tuple[FeatureName, ...], Field(max_length=4096)]
Activation: TypeAlias = Literal["tanh", "relu", "leaky_relu", "sigmoid", "linear", "elu"]
Magnitude: TypeAlias = Annotated[float, Field(ge=-1e6, le=1e6)]

MAX_FEATURES = 4096
MAX_HIDDEN_WEIGHTS = 20_000_000
MIN_BATCH = 16


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Standardise(_Part):
    """Subtract the mean and divide by the standard deviation of the fit rows.

    only: names of the features to treat, those absent from the table are ignored; None treats all.
    """

    step: Literal["standardise"] = "standardise"
    only: FeatureNames | None = None


class GlobalMinMax(_Part):
    """Map the smallest and largest entry of the whole fit matrix to 0 and 1, one pair for all features."""

    step: Literal["global_min_max"] = "global_min_max"


class Clip(_Part):
    """Bound every feature, in the units that the steps before have made."""

    step: Literal["clip"] = "clip"
    low: Magnitude
    high: Magnitude

    @model_validator(mode="after")
    def _low_below_high(self) -> Clip:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


class DropColumns(_Part):
    """Hide features from the network; their contribution is always zero."""

    step: Literal["drop_columns"] = "drop_columns"
    names: FeatureNames


class Pca(_Part):
    """Project the features on the principal components of the fit rows, as many as there are features at most.

    The last step: the network then reconstructs components, and errors are told of features by turning the
    residual back, see `detector.reference`.
    """

    step: Literal["pca"] = "pca"
    n_components: int = Field(ge=1, le=4096)


class Tails(_Part):
    """Turn each value into how far out in the upper tail of its feature it is, see `detector.tails`.

    The last step, and the only one that fits anything: with error_metric "largest", in place of a network.
    """

    step: Literal["tails"] = "tails"


Step: TypeAlias = Annotated[
    Standardise | GlobalMinMax | Clip | DropColumns | Pca | Tails, Field(discriminator="step")
]


class Layer(_Part):
    """A dense layer: activation(x @ kernel + bias), then dropout while fitting.

    activity_l1, activity_l2: penalties on the layer's output, averaged over the rows of the batch.
    """

    units: int = Field(ge=1, le=4096)
    activation: Activation = "relu"
    activity_l1: float = Field(default=0.0, ge=0.0, le=10.0)
    activity_l2: float = Field(default=0.0, ge=0.0, le=10.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)


class Recurrent(_Part):
    """LSTM layers over windows of rows: each row is scored with the window - 1 rows before it.

    The last encoder layer gives one vector, which the decoder gets at every step; a dense layer with the
    recipe's output_activation follows, at every step the same. activation stands in place of the usual tanh.
    """

    window: int = Field(ge=2, le=64)
    encoder: tuple[Annotated[int, Field(ge=1, le=256)], ...] = Field(min_length=1, max_length=8)
    decoder: tuple[Annotated[int, Field(ge=1, le=256)], ...] = Field(min_length=1, max_length=8)
    activation: Activation = "tanh"


class PseudoLabels(_Part):
    """An Isolation Forest says which rows are anomalies, where nobody else does.

    The share `contamination` of them; each of n_trees sees n_samples rows.
    """

    n_trees: int = Field(default=100, ge=1, le=1000)
    n_samples: int = Field(default=256, ge=2, le=100_000)
    contamination: float = Field(gt=0.0, lt=0.5)


class EarlyStopping(_Part):
    """Stop once the validation loss has not fallen by min_delta for `patience` epochs."""

    min_delta: float = Field(default=1e-4, ge=0.0, le=1e6)
    patience: int = Field(default=10, ge=1, le=10_000)
    restore_best: bool = True


class Split(_Part):
    """Which rows are fitted on; the others calibrate residual statistics and threshold.

    order: "time" fits the earliest rows, "random" draws them.
    """

    fit_fraction: float = Field(default=0.8, ge=0.1, le=0.95)
    order: Literal["random", "time"] = "time"


class FixedThreshold(_Part):
    """The threshold is a number of the recipe, in the unit of the reconstruction error."""

    policy: Literal["fixed"] = "fixed"
    value: float = Field(ge=0.0, le=1e12)


class MeanStdThreshold(_Part):
    """The mean of the reconstruction error plus k of its (population) standard deviations.

    rows: whose errors, those of the calibration rows or, as some published systems do, of the fit rows.
    """

    policy: Literal["mean_std"] = "mean_std"
    k: float = Field(ge=-10.0, le=100.0)
    rows: Literal["calibration", "fit"] = "calibration"


class QuantileThreshold(_Part):
    """The error that a share `contamination` of the calibration rows exceeds."""

    policy: Literal["quantile"] = "quantile"
    contamination: float = Field(gt=0.0, lt=0.5)


class AlertBudgetThreshold(_Part):
    """The lowest threshold that at most this many rows a day exceed, normal and anomalous ones together."""

    policy: Literal["alert_budget"] = "alert_budget"
    flags_per_day: float = Field(gt=0.0, le=1e9)


class LabelledThreshold(_Part):
    """Base of the policies that weigh labelled anomalies against the other rows."""


class PrecisionEqualsRecallThreshold(LabelledThreshold):
    """The threshold that flags as many rows as there are anomalies, so that precision equals recall.

    With a recipe's pseudo-labels, against these.
    """

    policy: Literal["precision_equals_recall"] = "precision_equals_recall"


class MaxF1Threshold(LabelledThreshold):
    """The threshold with the largest harmonic mean of precision and recall."""

    policy: Literal["max_f1"] = "max_f1"


class TargetPrecisionThreshold(LabelledThreshold):
    """The lowest threshold whose precision is at least this."""

    policy: Literal["target_precision"] = "target_precision"
    precision: float = Field(gt=0.0, le=1.0)


class TargetRecallThreshold(LabelledThreshold):
    """The highest threshold whose recall is at least this."""

    policy: Literal["target_recall"] = "target_recall"
    recall: float = Field(gt=0.0, le=1.0)


ThresholdPolicy: TypeAlias = Annotated[
    FixedThreshold
    | MeanStdThreshold
    | QuantileThreshold
    | AlertBudgetThreshold
    | PrecisionEqualsRecallThreshold
    | MaxF1Threshold
    | TargetPrecisionThreshold
    | TargetRecallThreshold,
    Field(discriminator="policy"),
]


class Recipe(_Part):
    """What to fit and how to score with it.

    layers are the hidden ones; the output layer has as many units as features and `output_activation`. In their
    place, recurrent has layers that see each row with the rows before it; pseudo_labels go with it.
    min_steps_per_epoch: with few rows batches get smaller, down to MIN_BATCH rows, to make this many steps.
    scoring_precision: of the network when scoring; "float32" is faster, and exact to 1e-5 only while residuals
    are not thousands of times smaller than features; preprocessing and error are float64 always.
    Cleaning, for fit rows that nobody has labelled, is one of two or neither: trim_fit_fraction, the share of them,
    farthest from the rest, that the network does not see; or pseudo_labels, whose outliers nothing is fitted on.
    far_spreads: rows with a value that is so many spreads out are neither fitted on nor calibrated with, if they are
    few, see `detector.far`; None: all are.
    trim_fraction, join_input, residual_ridge: for error_metric "mahalanobis" only, see `detector.residuals`.
    prototypes: how many there are, see `detector.prototypes`; 0 leaves the Mahalanobis distance alone. Without any
    layers the prototypes are all there is: a row's reconstruction is the nearest of them.
    prototype_weight: how much their distance counts beside the Mahalanobis distance, both on a common scale.
    prototype_cap: beyond so many times the distance of an ordinary row, a longer one counts no more; None: never.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    preprocessing: tuple[Step, ...] = Field(default=(Standardise(),), max_length=16)
    missing: Literal["quarantine", "median"] = "quarantine"
    layers: tuple[Layer, ...] = Field(default=(), max_length=32)
    recurrent: Recurrent | None = None
    pseudo_labels: PseudoLabels | None = None
    output_activation: Activation = "linear"
    loss: Literal["mse", "mae"] = "mse"
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0)
    batch_size: int = Field(default=256, ge=1, le=65_536)
    min_steps_per_epoch: int = Field(default=1, ge=1, le=10_000)
    epochs: int = Field(default=50, ge=1, le=10_000)
    early_stopping: EarlyStopping | None = EarlyStopping()
    split: Split = Split()
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    scoring_precision: Literal["float32", "float64"] = "float64"
    trim_fit_fraction: float = Field(default=0.0, ge=0.0, le=0.25)
    far_spreads: float | None = Field(default=None, ge=10.0, le=1e6)
    error_metric: Literal["mse", "mae", "mahalanobis", "largest"] = "mse"
    trim_fraction: float = Field(default=0.0, ge=0.0, le=0.25)
    join_input: bool = False
    residual_ridge: float = Field(default=0.0, ge=0.0, le=100.0)
    prototypes: int = Field(default=0, ge=0, le=1024)
    prototype_weight: float = Field(default=1.0, gt=0.0, le=100.0)
    prototype_cap: float | None = Field(default=None, ge=1.0, le=1e6)
    threshold: ThresholdPolicy
    top_features: int = Field(default=5, ge=1, le=100)

    @model_validator(mode="after")
    def _is_consistent(self) -> Recipe:
        widths = [layer.units for layer in self.layers]
        if sum(a * b for a, b in pairwise(widths)) > MAX_HIDDEN_WEIGHTS:
            raise ValueError(f"the hidden layers have more than {MAX_HIDDEN_WEIGHTS} weights")
        if self.error_metric != "mahalanobis" and (
            self.join_input or self.trim_fraction or self.residual_ridge
        ):
            raise ValueError(
                "trim_fraction, join_input and residual_ridge belong to error_metric 'mahalanobis'"
            )
        if self.prototypes and ((self.error_metric == "mahalanobis") == self.quantises or self.takes_tails):
            raise ValueError(
                "prototypes go with error_metric 'mahalanobis', or without layers with another one"
            )
        if self.trim_fit_fraction and self.pseudo_labels is not None:
            raise ValueError("rows are cleaned by trim_fit_fraction or by pseudo_labels, not by both")
        return self

    @model_validator(mode="after")
    def _has_one_network(self) -> Recipe:
        if self.layers and self.recurrent is not None:
            raise ValueError("a recipe has either layers or recurrent ones")
        if self.quantises and not self.prototypes:
            raise ValueError("a recipe has layers, recurrent ones, prototypes alone, or the step 'tails'")
        if self.recurrent is not None and (self.error_metric == "mahalanobis" or self.trim_fit_fraction):
            raise ValueError("with recurrent layers the error_metric is 'mse' or 'mae', without trimming")
        if self.recurrent is not None and self.needs_all_rows:
            raise ValueError(
                "with recurrent layers the threshold policy is drawn from normal rows or from pseudo_labels"
            )
        return self

    @model_validator(mode="after")
    def _projects_last(self) -> Recipe:
        if any(isinstance(step, Pca) for step in self.preprocessing[:-1]):
            raise ValueError("the step 'pca' is the last one")
        has_tails = [isinstance(step, Tails) for step in self.preprocessing]
        if (
            any(has_tails) != self.takes_tails
            or any(has_tails[:-1])
            or (self.takes_tails and self.has_network)
        ):
            raise ValueError(
                "the step 'tails' is the last one, and goes with error_metric 'largest' and without layers"
            )
        if self.takes_tails and any(
            isinstance(step, Standardise | GlobalMinMax) for step in self.preprocessing
        ):
            raise ValueError("the step 'tails' takes values in the source's units")
        if self.pca is not None and self.error_metric == "mahalanobis":
            raise ValueError("the step 'pca' goes with error_metric 'mse' or 'mae'")
        return self

    @model_serializer(mode="wrap")
    def _as_before_it_was_there(self, fields_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without far_spreads where it is None: the hash of a recipe of before stays what it was."""
        fields: dict[str, Any] = fields_of(self)
        if self.far_spreads is None:
            del fields["far_spreads"]
        return fields

    @classmethod
    def from_stored(cls, fields: Mapping[str, Any]) -> Recipe:
        """The recipe of these fields, as JSON gives them. Raises InvalidRecipe naming the first that is wrong."""
        return cls.from_json(json.dumps(fields))

    @classmethod
    def from_json(cls, text: str | bytes) -> Recipe:
        """The recipe that this JSON text holds. Raises InvalidRecipe naming the first field that is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the text"
            raise InvalidRecipe(f"The recipe is invalid at {where}: {first['msg']}.") from error

    def with_threshold(self, policy: dict[str, Any]) -> Recipe:
        """This recipe with another threshold policy, as its fields. Raises InvalidRecipe if that cannot be."""
        return Recipe.from_stored({**self.model_dump(mode="json"), "threshold": policy})

    @property
    def quantises(self) -> bool:
        """Whether there is no network, and each row is reconstructed as the prototype nearest to it."""
        return not self.has_network and not self.takes_tails

    @property
    def has_network(self) -> bool:
        """Whether there is one to fit, which TensorFlow does."""
        return bool(self.layers) or self.recurrent is not None

    @property
    def takes_tails(self) -> bool:
        """Whether a row's error is that of the feature that is farthest out in its tail, with nothing reconstructed."""
        return self.error_metric == "largest"

    @property
    def prototype_limit(self) -> float:
        """The most that the distance from the nearest prototype adds to an error."""
        return math.inf if self.prototype_cap is None else self.prototype_weight * self.prototype_cap

    @property
    def window(self) -> int:
        """How many rows are scored together: 1, a row by itself, without recurrent layers."""
        return 1 if self.recurrent is None else self.recurrent.window

    @property
    def pca(self) -> Pca | None:
        """The projection, if the recipe has one."""
        last = self.preprocessing[-1] if self.preprocessing else None
        return last if isinstance(last, Pca) else None

    def n_inputs(self, n_kept: int) -> int:
        """How many values of a row the network sees, of n_kept features that no step drops."""
        return n_kept if self.pca is None else min(self.pca.n_components, n_kept)

    def batch_rows(self, n_rows: int) -> int:
        """How many of n_rows fit rows make a batch."""
        return min(self.batch_size, max(MIN_BATCH, n_rows // self.min_steps_per_epoch))

    @property
    def recipe_hash(self) -> str:
        """SHA-256, hexadecimal, of the recipe's JSON with sorted keys and no spaces."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def needs_labels(self) -> bool:
        """Whether the threshold cannot be drawn without labelled anomalies; pseudo-labels serve as such."""
        against_pseudo_labels = self.recurrent is not None and self.pseudo_labels is not None
        return isinstance(self.threshold, LabelledThreshold) and not against_pseudo_labels

    @property
    def needs_all_rows(self) -> bool:
        """Whether the threshold is drawn from rows as they come, not from the normal ones alone."""
        return self.needs_labels or isinstance(self.threshold, AlertBudgetThreshold)

    def kept_columns(self, feature_names: Sequence[str]) -> tuple[int, ...]:
        """Indices of the features that no step drops. Raises InvalidRecipe when none is left."""
        dropped = {
            name for step in self.preprocessing if isinstance(step, DropColumns) for name in step.names
        }
        kept = tuple(i for i, name in enumerate(feature_names) if name not in dropped)
        if not kept:
            raise InvalidRecipe(f"Recipe {self.name!r} drops every feature; leave it at least one.")
        return kept
