from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pgoutlier.detector import RECIPES, InvalidRecipe, Recipe, UnknownRecipe, expected_arrays, recipe_named
from tests.unit.detector.conftest import RECIPES_TO_CHECK, small_recipe
from tests.unit.detector.strategies import UNHURRIED

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("recipe", RECIPES_TO_CHECK.values(), ids=list(RECIPES_TO_CHECK))
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    again = Recipe.model_validate_json(recipe.model_dump_json())
    assert again == recipe
    assert again.recipe_hash == recipe.recipe_hash


def test_the_hash_tells_recipes_apart_and_does_not_depend_on_the_order_of_fields() -> None:
    assert len({recipe.recipe_hash for recipe in RECIPES.values()}) == len(RECIPES)
    recipe = recipe_named("default")
    fields = json.loads(recipe.model_dump_json())
    backwards = json.dumps(dict(reversed(fields.items())))
    assert Recipe.from_json(backwards).recipe_hash == recipe.recipe_hash


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownRecipe, match=r"choose one of: default, .*fraud-dense-14-7-4"):
        recipe_named("nope")


@settings(UNHURRIED)
@given(json_values)
def test_any_json_either_is_a_recipe_or_is_refused(value: Any) -> None:
    text = json.dumps(value)
    with pytest.raises(InvalidRecipe):
        Recipe.from_json(text)


@settings(UNHURRIED)
@given(st.text() | st.binary())
def test_any_text_is_refused_cleanly(text: str | bytes) -> None:
    with pytest.raises(InvalidRecipe):
        Recipe.from_json(text)


@settings(UNHURRIED, max_examples=300)
@given(st.sampled_from(sorted(RECIPES_TO_CHECK)), st.data())
def test_a_mutated_recipe_is_valid_and_bounded_or_is_refused(name: str, data: st.DataObject) -> None:
    document = json.loads(RECIPES_TO_CHECK[name].model_dump_json())
    place = data.draw(st.sampled_from(places(document)))
    mutated = replaced(document, place, data.draw(json_values))
    try:
        recipe = Recipe.from_json(json.dumps(mutated))
    except InvalidRecipe:
        return
    assert Recipe.from_json(recipe.model_dump_json()) == recipe
    n_weights = sum(layer.units for layer in recipe.layers)
    assert n_weights <= 32 * 4096


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": ()},
        {"layers": ({"units": 4097},)},
        {"layers": ({"units": 0},)},
        {"layers": ({"units": 1},) * 33},
        {"layers": ({"units": 4096},) * 3},
        {"layers": ({"units": 4, "activation": "exec"},)},
        {"layers": ({"units": 4, "dropout": 1.0},)},
        {"epochs": 0},
        {"epochs": 10**9},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"seed": -1},
        {"name": "../../etc"},
        {"threshold": {"policy": "fixed", "value": -1.0}},
        {"threshold": {"policy": "quantile", "contamination": 0.0}},
        {"threshold": {"policy": "magic"}},
        {"preprocessing": ({"step": "clip", "low": 1.0, "high": 1.0},)},
        {"preprocessing": ({"step": "standardise"},) * 17},
        {"error_metric": "mse", "join_input": True},
        {"error_metric": "mse", "prototypes": 8},
        {"error_metric": "mahalanobis", "prototypes": 1025},
        {"trim_fit_fraction": 0.1, "pseudo_labels": {"contamination": 0.1}},
        {"pseudo_labels": {"contamination": 0.1, "n_trees": 10**6}},
        {"trim_fraction": 0.9, "error_metric": "mahalanobis"},
        {"preprocessing": ({"step": "pca", "n_components": 2}, {"step": "standardise"})},
        {"preprocessing": ({"step": "pca", "n_components": 2},), "error_metric": "mahalanobis"},
        {"recurrent": {"window": 3, "encoder": (4,), "decoder": (4,)}},
        {"layers": (), "recurrent": {"window": 1, "encoder": (4,), "decoder": (4,)}},
        {"layers": (), "recurrent": {"window": 65, "encoder": (4,), "decoder": (4,)}},
        {"layers": (), "recurrent": {"window": 3, "encoder": (), "decoder": (4,)}},
        {"layers": (), "recurrent": {"window": 3, "encoder": (4,), "decoder": (257,)}},
        {"layers": (), "recurrent": {"window": 3, "encoder": (4,) * 9, "decoder": (4,)}},
        {
            "layers": (),
            "recurrent": {"window": 3, "encoder": (4,), "decoder": (4,)},
            "error_metric": "mahalanobis",
        },
        {
            "layers": (),
            "recurrent": {"window": 3, "encoder": (4,), "decoder": (4,)},
            "threshold": {"policy": "alert_budget", "flags_per_day": 5},
        },
        {
            "layers": (),
            "recurrent": {"window": 3, "encoder": (4,), "decoder": (4,)},
            "threshold": {"policy": "max_f1"},
        },
        {"code": "print()"},
    ],
    ids=str,
)
def test_a_recipe_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        small_recipe(**changes)


def test_a_recipe_that_drops_every_feature_is_refused() -> None:
    recipe = small_recipe(preprocessing=({"step": "drop_columns", "names": ("a", "b")},))
    with pytest.raises(InvalidRecipe, match="drops every feature"):
        expected_arrays(recipe, 2, feature_names=("a", "b"))


def test_the_published_network_has_its_813_parameters() -> None:
    recipe = recipe_named("fraud-dense-14-7")
    names = ("Time", *(f"V{i}" for i in range(1, 29)), "Amount")
    layout = expected_arrays(recipe, 30, feature_names=names)
    assert sum(math.prod(shape) for key, (shape, _) in layout.items() if key.startswith("layer")) == 813


def test_importing_the_package_and_reading_recipes_imports_nothing_that_fits_or_scores() -> None:
    code = (
        "import sys, detector; detector.recipe_named('default'); detector.Detector; "
        "print(sorted({'tensorflow', 'keras', 'sklearn', 'scipy', 'pandas', 'onnx', 'onnxruntime',"
        " 'sqlalchemy', 'celery'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
