"""Threshold policies as people write them: the policy's name and, where it has one, its number."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from pgoutlier.detector.errors import InvalidRecipe
from pgoutlier.detector.recipes import MeanStdThreshold, ThresholdPolicy

# Each policy, the field that its number fills, and how that number is shown in help and errors.
_FIELDS: dict[str, tuple[str, str] | None] = {
    "quantile": ("contamination", "SHARE"),
    "mean_std": ("k", "K"),
    "fixed": ("value", "X"),
    "alert_budget": ("flags_per_day", "FLAGS_PER_DAY"),
    "max_f1": None,
    "precision_equals_recall": None,
    "target_precision": ("precision", "PRECISION"),
    "target_recall": ("recall", "RECALL"),
}
THRESHOLD_FORMS = ", ".join(
    name if field is None else f"{name}:{field[1]}" for name, field in _FIELDS.items()
)
_POLICY: TypeAdapter[ThresholdPolicy] = TypeAdapter(ThresholdPolicy)


def parse_threshold(text: str) -> ThresholdPolicy:
    """The policy that a text such as "quantile:0.002" or "max_f1" names.

    Raises InvalidRecipe, in one sentence, if there is no such policy, its number is missing, no number, or out of
    bounds, or it takes none.
    """
    name, colon, number = text.strip().partition(":")
    if name not in _FIELDS:
        raise InvalidRecipe(f"There is no threshold policy {name!r}; write one of: {THRESHOLD_FORMS}.")
    field = _FIELDS[name]
    if field is None:
        if colon:
            raise InvalidRecipe(f"The threshold policy {name} takes no number; write {name} alone.")
        return _POLICY.validate_python({"policy": name})
    try:
        return _POLICY.validate_python({"policy": name, field[0]: float(number)})
    except ValidationError as error:
        raise InvalidRecipe(f"{text!r} cannot be used: {error.errors()[0]['msg']}.") from None
    except ValueError:
        raise InvalidRecipe(f"{text!r} names no number; write {name}:{field[1]}.") from None


def threshold_text(policy: ThresholdPolicy) -> str:
    """The policy as `parse_threshold` reads it, with a word more where it is drawn from the fit rows."""
    field = _FIELDS[policy.policy]
    text = policy.policy if field is None else f"{policy.policy}:{getattr(policy, field[0])!r}"
    if isinstance(policy, MeanStdThreshold) and policy.rows == "fit":
        return f"{text} of the fit rows"
    return text
