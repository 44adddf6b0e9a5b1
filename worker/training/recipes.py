"""Which recipe is fitted: by name or that of the source, with its threshold policy or another."""

from __future__ import annotations

from sqlalchemy import Connection

from pgoutlier import detector
from pgoutlier.db.errors import ModelError, SourceError
from pgoutlier.db.source import catalog
from pgoutlier.db.source.definition import Source, SourceDefinition
from pgoutlier.db.verdicts import verdicts
from pgoutlier.detector import DetectorError, Recipe


def chosen_recipe(name: str, *, threshold: str | None = None) -> Recipe:
    """A built-in recipe, with this threshold policy in place of its own.

    Raises ModelError if there is no such recipe or policy.
    """
    try:
        return with_threshold(detector.recipe_named(name), threshold)
    except DetectorError as error:
        raise ModelError(str(error)) from None


def check_columns(connection: Connection, recipe: Recipe, definition: SourceDefinition) -> None:
    """Raises SourceError if the source lacks a column that the recipe's threshold policy is drawn from."""
    policy = recipe.threshold.policy
    if (
        recipe.needs_labels
        and definition.label_column is None
        and not verdicts.any_fraud(connection, definition.name)
    ):
        raise SourceError(
            f"The threshold policy {policy} needs labels and source {definition.name} has none; attach it with"
            f" --label COLUMN, or give verdicts first (pgoutlier label {definition.name} KEY fraud), or use a policy"
            " without labels, such as quantile:0.002."
        )
    if policy == "alert_budget" and not catalog.is_time(
        connection, definition.relation, definition.time_column
    ):
        raise SourceError(
            f"The threshold policy {policy} needs to know how many rows a day brings and source {definition.name}"
            " has no column of times; attach it with --time COLUMN, of a timestamp or date, or use a policy"
            " without a budget, such as quantile:0.002."
        )


def with_threshold(recipe: Recipe, text: str | None) -> Recipe:
    """The recipe with this threshold policy, in place of its own; the recipe itself without one.

    Raises ModelError if the text is no threshold policy.
    """
    if text is None:
        return recipe
    try:
        return recipe.with_threshold(detector.parse_threshold(text).model_dump())
    except DetectorError as error:
        raise ModelError(str(error)) from None


def recipe_of(source: Source, name: str | None) -> Recipe:
    """The built-in recipe of this name, or the source's own without one.

    Raises ModelError if there is no such recipe, or the source's own cannot be read.
    """
    try:
        return Recipe.from_stored(source.recipe) if name is None else detector.recipe_named(name)
    except DetectorError as error:
        raise ModelError(str(error)) from None


def require_tensorflow(recipe: Recipe) -> None:
    """Raises ModelError, saying what to do, if fitting the recipe takes TensorFlow and it is not installed."""
    try:
        detector.require_tensorflow(recipe)
    except DetectorError as error:
        raise ModelError(str(error)) from None
