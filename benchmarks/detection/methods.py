"""What is compared: our recipes and their peers, each as a function from the rows of a split to a score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from benchmarks.detection.baselines import (
    KEPT_VARIANCE,
    TRIMMED_SHARE,
    Score,
    Transform,
    pca_reconstruction,
    rank_normalisation,
    standardisation,
    trimmed_mahalanobis,
)
from benchmarks.detection.sets import CARDS, CREDITCARD, ECG, SERIES, SETS, TIME, Split
from pgoutlier import detector
from pgoutlier.detector.arrays import Float64Matrix
from pgoutlier.detector.recipes import Recipe

# These recipes are measured on the data they were published or made for, all other methods on every set.
MADE_FOR: dict[str, tuple[str, ...]] = {
    "fraud-dense-14-7-4": CREDITCARD,
    "fraud-dense-14-7": CREDITCARD,
    "ecg-dense-32-16-8": (ECG,),
    "series": (ECG,),
    "tails": (CARDS, *SERIES),
    "iforest-lstm-32-16": ("creditcard-time",),  # it scores a row by the rows before it
}


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """score: (n, n_columns) to (n,), larger for rows that stand out more. threshold: where rows are flagged."""

    score: Score
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class Method:
    """fit: from a split's fit_rows alone. settings: what a reader needs to repeat it.

    modules are imported before the clock starts; sets are those it is measured on; with_time: it sees Time.
    """

    name: str
    ours: bool
    settings: str
    fit: Callable[[Split], Fitted]
    modules: tuple[str, ...] = ()
    sets: tuple[str, ...] = SETS
    with_time: bool = False

    def missing_package(self) -> str | None:
        """The first package this needs and this environment lacks."""
        packages = (module.partition(".")[0] for module in self.modules)
        return next((package for package in packages if find_spec(package) is None), None)


def methods() -> dict[str, Method]:
    """Every method by name, ours first."""
    return {method.name: method for method in (*map(_recipe_method, detector.RECIPES.values()), *PEERS)}


def _recipe_method(recipe: Recipe) -> Method:
    # A step that speaks of Time belongs to a system that was published with it.
    with_time = any(TIME in (getattr(step, "only", None) or ()) for step in recipe.preprocessing)
    return Method(
        name=recipe.name,
        ours=True,
        settings="the recipe of this name" + (", with Time" if with_time else ""),
        fit=partial(_fit_recipe, recipe),
        modules=("tensorflow",),
        sets=MADE_FOR.get(recipe.name, SETS),
        with_time=with_time,
    )


def _fit_recipe(recipe: Recipe, split: Split) -> Fitted:
    fitted = detector.fit(recipe, split.fit_rows, split.names, seed=split.seed).detector
    return Fitted(score=lambda rows: fitted.score(rows).reconstruction_error, threshold=fitted.threshold)


def _peer(
    name: str,
    settings: str,
    fit: Callable[[Float64Matrix, int], Score],
    *,
    modules: tuple[str, ...] = (),
    preprocessing: Callable[[Float64Matrix], Transform] | None = None,
) -> Method:
    """fit: from preprocessed rows and seed."""

    def fit_split(split: Split) -> Fitted:
        if preprocessing is None:
            return Fitted(score=fit(split.fit_rows, split.seed))
        transform = preprocessing(split.fit_rows)
        score = fit(transform(split.fit_rows), split.seed)
        return Fitted(score=lambda rows: score(transform(rows)))

    return Method(name=name, ours=False, settings=settings, fit=fit_split, modules=modules)


def _pyod(class_name: str, module: str, *, seeded: bool, **settings: Any) -> Callable[..., Score]:
    def fit(rows: Float64Matrix, seed: int) -> Score:
        seeds = {"random_state": seed} if seeded else {}
        model = getattr(import_module(module), class_name)(**seeds, **settings)
        score: Score = model.fit(rows).decision_function
        return score

    return fit


def _isolation_forest(rows: Float64Matrix, seed: int) -> Score:
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(random_state=seed).fit(rows)
    return lambda new: -forest.score_samples(new)


def _pyod_peer(class_name: str, module: str, settings: str, *, seeded: bool, **given: Any) -> Method:
    path = f"pyod.models.{module}"
    needed = ("torch", path) if class_name == "AutoEncoder" else (path,)
    fit = _pyod(class_name, path, seeded=seeded, **given)
    return _peer(f"PyOD {class_name}", settings, fit, modules=needed)


PEERS = (
    _pyod_peer(
        "AutoEncoder",
        "auto_encoder",
        "defaults: 64-32-64 with batch norm and dropout, 10 epochs, batch 32; standardises by itself",
        seeded=True,
        verbose=0,
    ),
    _pyod_peer("IForest", "iforest", "defaults: 100 trees; features as they are", seeded=True),
    _pyod_peer("ECOD", "ecod", "defaults; ranks a test row among fit and test rows together", seeded=False),
    _pyod_peer("COPOD", "copod", "defaults; ranks a test row among fit and test rows together", seeded=False),
    _pyod_peer("MCD", "mcd", "defaults; features as they are", seeded=True),
    _peer("sklearn IsolationForest", "defaults: 100 trees; features as they are", _isolation_forest),
    _peer(
        "PCA reconstruction",
        f"standardised features; components with {KEPT_VARIANCE:.0%} of the variance; squared error of the rest",
        lambda rows, seed: pca_reconstruction(rows),
        preprocessing=standardisation,
    ),
    _peer(
        "robust Mahalanobis",
        f"standardised features; covariance without the farthest {TRIMMED_SHARE:.0%} of the fit rows",
        lambda rows, seed: trimmed_mahalanobis(rows),
        preprocessing=standardisation,
    ),
    _peer(
        "robust Mahalanobis, ranks",
        f"normal scores of ranks; covariance without the farthest {TRIMMED_SHARE:.0%} of the fit rows",
        lambda rows, seed: trimmed_mahalanobis(rows),
        preprocessing=rank_normalisation,
    ),
)
