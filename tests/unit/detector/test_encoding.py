"""Columns that come as codes become the same numbers wherever the version scores."""

from __future__ import annotations

import numpy as np
import pytest

from pgoutlier.db.past import kernel
from pgoutlier.detector import encoding, fit, recipe_named
from pgoutlier.detector.encoding import COUNT_UNIT, MOST_VALUES, PRIOR_ROWS, encoded, fit_encodings
from pgoutlier.models_store import artifact
from pgoutlier.models_store.artifact import ArtifactRefused

NAMES = ("x", "rarity(country)", "risk(shop, 7d)")


def rows_of(n: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    counted = random.integers(0, 50, size=n)
    return np.column_stack(
        [
            random.normal(size=n),
            random.choice([7.0, 11.0, 13.0, -1.0], p=[0.6, 0.3, 0.09, 0.01], size=n),
            counted * COUNT_UNIT + random.binomial(counted, 0.05),
        ]
    )


def test_a_rarity_is_the_logarithm_of_the_share_among_the_training_rows() -> None:
    column = np.array([[5.0]] * 6 + [[9.0]] * 3)
    (found,) = fit_encodings(column, {0: "rarity"})
    shares = np.exp(-found.apply(np.array([5.0, 9.0, 1.0, np.nan])))
    np.testing.assert_allclose(shares, [0.6, 0.3, 0.1, np.nan])


def test_so_many_values_are_kept_and_the_others_have_one_share() -> None:
    codes = np.concatenate([np.repeat(np.arange(MOST_VALUES), 3.0), MOST_VALUES + np.arange(500)])
    (found,) = fit_encodings(codes[:, None], {0: "rarity"})
    assert len(found.codes) == MOST_VALUES
    values = found.apply(np.array([0.0, MOST_VALUES + 7.0, 1e12]))
    assert values[0] < values[1] == values[2]


def test_a_share_with_nothing_counted_is_that_of_all() -> None:
    column = np.array([[100 * COUNT_UNIT + 5], [100 * COUNT_UNIT + 15]])
    (found,) = fit_encodings(column, {0: "share"})
    none, some = found.apply(np.array([0.0, 20 * COUNT_UNIT + 20]))
    assert none == pytest.approx(0.1)
    assert some == pytest.approx((20 + PRIOR_ROWS * 0.1) / (20 + PRIOR_ROWS))


def test_both_sides_count_in_the_same_unit() -> None:
    assert COUNT_UNIT == kernel.COUNT_UNIT


@pytest.mark.parametrize("recipe", ["tails", "series"])
def test_a_version_keeps_what_becomes_of_codes(recipe: str) -> None:
    matrix = rows_of(2_000)
    codes = {NAMES[1]: "rarity", NAMES[2]: "share"}
    detector = fit(recipe_named(recipe), matrix, NAMES, codes=codes).detector
    again = artifact.unpack(artifact.pack(detector))
    new = rows_of(50, seed=1)
    assert np.array_equal(again.score(new).reconstruction_error, detector.score(new).reconstruction_error)
    assert np.array_equal(again.encoded(new), encoded(new, detector.encodings))
    assert again.with_threshold(3.0).encodings == again.encodings
    assert np.abs(again.encoded(new)).max() < 20


def test_an_artifact_without_codes_is_what_it_was() -> None:
    detector = fit(recipe_named("series"), rows_of(500)[:, :1], NAMES[:1]).detector
    assert b"encodings" not in artifact.pack(detector)


@pytest.mark.parametrize("part", ["codes", "values", "other"])
def test_an_artifact_with_codes_that_cannot_be_is_refused(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = fit(recipe_named("series"), rows_of(500), NAMES, codes={NAMES[1]: "rarity"}).detector
    sound = encoding.arrays_of

    def spoilt(encodings: object) -> dict[str, np.ndarray]:
        arrays = sound(encodings)  # type: ignore[arg-type]
        arrays[f"encoding.1.{part}"] = np.full_like(arrays[f"encoding.1.{part}"], np.nan)
        return arrays

    monkeypatch.setattr(encoding, "arrays_of", spoilt)
    with pytest.raises(ArtifactRefused, match="Encoding 1 has codes"):
        artifact.unpack(artifact.pack(detector))
