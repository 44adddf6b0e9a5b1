"""The registry: artifacts there and back, refusals by name, aliases, and what a broken champion does."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import psycopg
import pytest
from pydantic import SecretStr
from safetensors.numpy import save

from pgoutlier.db.errors import ModelError
from pgoutlier.db.versions import aliases, version_rows
from pgoutlier.db.versions.aliases import Pointed
from pgoutlier.detector import RECIPES, Detector, Recipe
from pgoutlier.detector.recipes import DropColumns, Standardise
from pgoutlier.models_store import artifact, registry
from pgoutlier.models_store.artifact import ArtifactRefused
from pgoutlier.models_store.registry import DetectorCache
from pgoutlier.models_store.seal import Seal
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.versions import versions
from tests.support import FEATURES, Table, attach_table, make_champion, make_detector, plain_recipe, register

# What is refused, and why, is no matter of the server.
pytestmark = pytest.mark.postgres18

User = psycopg.Connection[Any]
RECIPES_TO_STORE = {
    **RECIPES,
    "plain": plain_recipe(),
    "imputing": plain_recipe(missing="median"),
    "dropping": plain_recipe(preprocessing=(DropColumns(names=("hour",)), Standardise())),
    "no preprocessing": plain_recipe(preprocessing=()),
}


def store(user: User, version: int, content: bytes, *, sha256: str | None = None) -> None:
    """Replace a version's artifact; the recorded digest stays unless another is given."""
    user.execute("UPDATE outlier.model_versions SET artifact = %s WHERE version = %s", (content, version))
    if sha256 is not None:
        user.execute("UPDATE outlier.model_versions SET sha256 = %s WHERE version = %s", (sha256, version))


def packed(user: User, version: int = 1) -> bytes:
    [(content,)] = user.execute(
        "SELECT artifact FROM outlier.model_versions WHERE version = %s", (version,)
    ).fetchall()
    return bytes(content)


def load(
    table: Table, version: int = 1, *, max_bytes: int = 10**7, signing_key: str | None = None
) -> Detector:
    with table.runtime.engine.begin() as connection:
        return registry.load(connection, table.source, version, seal=Seal(max_bytes, signing_key))


def with_header(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The artifact with another header and the same arrays."""
    n_header = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n_header])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + n_header :]


def describe(content: bytes, **changes: Any) -> bytes:
    """The artifact with another description of its detector."""

    def change(header: dict[str, Any]) -> None:
        description = json.loads(header["__metadata__"]["pgoutlier"])
        header["__metadata__"]["pgoutlier"] = json.dumps({**description, **changes})

    return with_header(content, change)


def champion_version(table: Table) -> int | None:
    with table.runtime.engine.begin() as connection:
        found = aliases.alias(connection, table.source.id)
    return found.version if found else None


def history(table: Table) -> list[tuple[str, int | None, int, str]]:
    return table.rows("SELECT action, from_version, to_version, reason FROM outlier.alias_events ORDER BY id")


def fresh_cache(table: Table) -> Table:
    """The table in a worker that has loaded nothing yet."""
    cache = DetectorCache(table.runtime.seal)
    return replace(table, runtime=replace(table.runtime, cache=cache))


# -- there and back


@pytest.mark.parametrize("recipe", RECIPES_TO_STORE.values(), ids=RECIPES_TO_STORE.keys())
def test_a_detector_comes_back_as_it_was(transactions: Table, recipe: Recipe) -> None:
    detector = make_detector(FEATURES, recipe=recipe, threshold=1.25)
    register(transactions.runtime, transactions.source, detector)
    loaded = load(transactions)
    assert (loaded.recipe, loaded.feature_names, loaded.threshold) == (
        detector.recipe,
        detector.feature_names,
        detector.threshold,
    )
    assert set(loaded.arrays) == set(detector.arrays)
    for name, array in detector.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array, strict=True)
    assert artifact.pack(loaded) == artifact.pack(detector)


def test_versions_are_numbered_by_source_and_describe_themselves(transactions: Table) -> None:
    assert [register(transactions.runtime, transactions.source) for _ in range(3)] == [1, 2, 3]
    versions.promote(transactions.runtime, "transactions", 2, reason="best")
    register(transactions.runtime, transactions.source)
    with transactions.runtime.engine.begin() as connection:
        listed = version_rows.versions(connection, transactions.source.id)
    assert [(v.version, v.aliases, v.parent_version) for v in listed] == [
        (4, None, 2),
        (3, None, None),
        (2, ["champion"], None),
        (1, None, None),
    ]
    assert listed[0].feature_names == list(FEATURES)
    assert listed[0].recipe["name"] == "plain"
    assert not listed[0].signed


def test_versions_registered_at_once_get_numbers_of_their_own(transactions: Table) -> None:
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda _: register(transactions.runtime, transactions.source), range(8)))
    assert sorted(numbers) == list(range(1, 9))


# -- refusals


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("an artifact was unpickled",))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (b"\x00" * 7, "truncated"),
        (b"\xff" * 8, "header is too large"),
        (b"\x80\x04K\x01.", "truncated"),
        (pickle.dumps(Harmful()), "header is too large|truncated|does not describe"),
        (b"PK\x03\x04" + b"config.json" * 50, "header is too large"),
        (b"\x89HDF\r\n\x1a\n" + bytes(500), "header is too large"),
        ((2).to_bytes(8, "little") + b"{}", "does not describe a detector"),
        ((2).to_bytes(8, "little") + b"[]", "does not describe a detector"),
        ((4).to_bytes(8, "little") + b"null", "does not describe a detector"),
        ((3).to_bytes(8, "little") + b'"a"', "does not describe a detector"),
        ((40_000).to_bytes(8, "little") + b"[" * 40_000, "does not describe a detector"),
        (save({"x": np.zeros(3)}), "does not describe a detector"),
        (save({"x": np.zeros(3)}, metadata={"pgoutlier": "{}"}), "does not describe a detector"),
    ],
    ids=[
        "nothing", "seven bytes", "endless header", "pickle", "harmful pickle", "keras zip", "h5", "empty header",
        "list", "null", "string", "nested", "no description", "empty description",
    ],
)  # fmt: skip
def test_bytes_that_are_no_artifact_are_refused(transactions: Table, content: bytes, reason: str) -> None:
    register(transactions.runtime, transactions.source)
    store(transactions.user, 1, content, sha256=artifact.digest(content))
    with pytest.raises(ArtifactRefused, match=rf"version 1 of transactions is refused: .*({reason})"):
        load(transactions)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda content: content[:-1], "cannot be used"),
        (lambda content: content + b"\x00", "cannot be used"),
        (lambda content: content[: len(content) // 2], "truncated|cannot be used"),
        (lambda content: describe(content, format_version=2), "its format is 2, this program reads 1"),
        (lambda content: describe(content, threshold="NaN"), "does not describe"),
        (lambda content: describe(content, feature_names=["amount"]), "has not the shape"),
        (lambda content: describe(content, feature_names=["a", "a", "b"]), "same name"),
        (lambda content: describe(content, code="import os"), "does not describe"),
        (
            lambda content: with_header(content, lambda h: h.pop("layer.0.kernel")),
            "missing or unknown: layer.0.kernel",
        ),
        (
            lambda content: with_header(content, lambda h: h.update(extra=h["layer.0.bias"])),
            "missing or unknown: extra",
        ),
        (
            lambda content: with_header(content, lambda h: h["layer.0.bias"].update(shape=[10**12])),
            "layer.0.bias has not the shape",
        ),
        (
            lambda content: with_header(content, lambda h: h["layer.0.bias"].update(dtype="I32")),
            "layer.0.bias is not float32",
        ),
        (
            lambda content: with_header(content, lambda h: h["layer.0.bias"].update(dtype="F16")),
            "layer.0.bias is not float32",
        ),
        (
            lambda content: with_header(
                content, lambda h: h["layer.0.bias"].update(data_offsets=[0, 10**15])
            ),
            "cannot be used",
        ),
        (lambda content: with_header(content, lambda h: h.update({"layer.0.bias": 7})), "has not the shape"),
    ],
)
def test_a_spoilt_artifact_is_refused_by_name(
    transactions: Table, spoil: Callable[[bytes], bytes], reason: str
) -> None:
    register(transactions.runtime, transactions.source)
    content = spoil(packed(transactions.user))
    store(transactions.user, 1, content, sha256=artifact.digest(content))
    with pytest.raises(ArtifactRefused, match=rf"version 1 of transactions is refused: .*({reason})"):
        load(transactions)


@pytest.mark.parametrize(("array", "value"), [("layer.0.bias", np.nan), ("preprocessing.0.scale", 0.0)])
def test_arrays_that_cannot_score_are_refused(transactions: Table, array: str, value: float) -> None:
    detector = make_detector(FEATURES)
    register(transactions.runtime, transactions.source, detector)
    arrays = {name: values.copy() for name, values in detector.arrays.items()}
    arrays[array][:] = value
    n_header = int.from_bytes(packed(transactions.user)[:8], "little")
    metadata = json.loads(packed(transactions.user)[8 : 8 + n_header])["__metadata__"]
    content = save(arrays, metadata=metadata)
    store(transactions.user, 1, content, sha256=artifact.digest(content))
    with pytest.raises(ArtifactRefused, match=f"cannot be used: .*{array}"):
        load(transactions)


def test_an_artifact_of_another_digest_is_refused(transactions: Table) -> None:
    register(transactions.runtime, transactions.source)
    store(transactions.user, 1, artifact.pack(make_detector(FEATURES, seed=5)))
    with pytest.raises(ArtifactRefused, match="do not have the recorded sha256"):
        load(transactions)


def test_an_oversized_artifact_is_not_even_sent(transactions: Table) -> None:
    register(transactions.runtime, transactions.source)
    n_bytes = len(packed(transactions.user))
    load(transactions, max_bytes=n_bytes)
    with pytest.raises(
        ArtifactRefused, match=f"has {n_bytes} bytes, more than the {n_bytes - 1} of PGOUTLIER_"
    ):
        load(transactions, max_bytes=n_bytes - 1)


def test_signatures_are_checked_when_a_key_is_set(transactions: Table) -> None:
    signing = transactions.with_settings(signing_key=SecretStr("one key"))
    register(signing.runtime, signing.source)
    register(transactions.runtime, transactions.source)
    load(transactions, 1, signing_key="one key")
    load(transactions, 1, signing_key=None)
    with pytest.raises(ArtifactRefused, match="not made with this PGOUTLIER_SIGNING_KEY"):
        load(transactions, 1, signing_key="another key")
    with pytest.raises(ArtifactRefused, match="it is not signed, and PGOUTLIER_SIGNING_KEY is set"):
        load(transactions, 2, signing_key="one key")
    other = artifact.pack(make_detector(FEATURES, seed=9))
    store(transactions.user, 1, other, sha256=artifact.digest(other))
    with pytest.raises(ArtifactRefused, match="not made with this"):
        load(transactions, 1, signing_key="one key")


def test_a_version_that_is_not_there_is_named(transactions: Table) -> None:
    with pytest.raises(ModelError, match="transactions has no model version 7; see: pgoutlier models list"):
        load(transactions, 7)
    with pytest.raises(ModelError, match="no model version 7"):
        versions.promote(transactions.runtime, "transactions", 7, reason="test")


# -- a thousand mutations


def mutations(content: bytes, n: int) -> list[bytes]:
    """Copies with one to four random bytes changed, half of them within the header; some cut or grown."""
    chance = random.Random(20210)
    n_header = int.from_bytes(content[:8], "little") + 8
    mutated = []
    for number in range(n):
        copy = bytearray(content)
        end = n_header if number % 2 else len(content)
        for _ in range(chance.randint(1, 4)):
            copy[chance.randrange(end)] = chance.randrange(256)
        if number % 50 == 0:
            del copy[chance.randrange(len(copy)) :]
        if number % 51 == 0:
            copy += chance.randbytes(chance.randint(1, 100))
        if bytes(copy) != content:
            mutated.append(bytes(copy))
    return mutated


def test_no_mutation_loads_as_valid(transactions: Table) -> None:
    register(transactions.runtime, transactions.source)
    content = packed(transactions.user)
    stored = transactions.keys("SELECT sha256 FROM outlier.model_versions")[0]
    spoilt = mutations(content, 1_000)
    assert len(spoilt) > 950
    for copy in spoilt:
        with pytest.raises(ArtifactRefused):
            artifact.verify(copy, sha256=stored, signature=None, signing_key=None)
    for copy in spoilt[:40]:
        store(transactions.user, 1, copy)
        with pytest.raises(ArtifactRefused, match="recorded sha256"):
            load(transactions)


@pytest.mark.parametrize("recipe", ["plain", "default", "imputing"])
def test_a_mutation_with_a_digest_of_its_own_is_refused_or_a_sound_detector(recipe: str) -> None:
    """Who can write the digest too can store any detector, but never something that breaks a worker."""
    content = artifact.pack(make_detector(FEATURES, recipe=RECIPES_TO_STORE[recipe]))
    n_loaded = 0
    for number, copy in enumerate(mutations(content, 1_000)):
        try:
            detector = artifact.unpack(copy)
        except ArtifactRefused:
            continue
        n_loaded += 1
        assert all(np.isfinite(array).all() for array in detector.arrays.values())
        assert np.isfinite(detector.threshold)
        if number % 100 == 0:
            n_features = len(detector.feature_names)
            assert detector.score(np.ones((2, n_features))).reconstruction_error.shape == (2,)
    assert 0 < n_loaded < 1_000


# -- champions that cannot be used


def test_the_last_good_champion_keeps_scoring_and_the_problem_stays_visible(transactions: Table) -> None:
    transactions.promote(make_detector(FEATURES, seed=1))
    transactions.promote(make_detector(FEATURES, seed=2))
    transactions.promote(make_detector(FEATURES, seed=3))
    store(transactions.user, 3, packed(transactions.user, 3)[:-5])
    store(transactions.user, 2, b"rubbish")
    for key in (1, 2, 3):
        transactions.insert(key)
        transactions.drain()
        assert "version 3 of transactions is refused" in (transactions.source.last_problem or "")
        assert "version 1 goes on scoring" in (transactions.source.last_problem or "")
    assert transactions.rows("SELECT key, model_version FROM outlier.scores_{source} ORDER BY key") == [
        (1, 1),
        (2, 1),
        (3, 1),
    ]
    transactions.promote(make_detector(FEATURES, seed=4))
    transactions.insert(4)
    transactions.drain()
    assert transactions.source.last_problem is None
    assert champion_version(transactions) == 4


def test_a_worker_that_has_the_champion_loaded_does_not_read_it_again(transactions: Table) -> None:
    transactions.promote()
    transactions.insert(1)
    transactions.drain()
    store(transactions.user, 1, b"rubbish")
    transactions.insert(2)
    transactions.drain()
    assert transactions.scored() == [1, 2]
    other = fresh_cache(transactions)
    transactions.insert(3)
    other.drain()
    assert other.queued() == [3]
    assert "version 1 of transactions is refused" in (other.source.last_problem or "")
    assert other.quarantined() == {}
    transactions.make_due()
    transactions.drain()
    assert transactions.scored() == [1, 2, 3]


def test_a_broken_version_is_not_promoted(transactions: Table) -> None:
    transactions.promote()
    register(transactions.runtime, transactions.source)
    store(transactions.user, 2, b"rubbish")
    with pytest.raises(
        ModelError, match=r"Not promoted: version 2 of transactions is refused.*stays as it is"
    ):
        versions.promote(transactions.runtime, "transactions", 2, reason="test")
    assert champion_version(transactions) == 1
    assert len(history(transactions)) == 1


def test_the_cache_holds_few_detectors_and_loads_each_once(transactions: Table) -> None:
    for seed in range(3):
        register(transactions.runtime, transactions.source, make_detector(FEATURES, seed=seed))
    cache = DetectorCache(Seal(10**7), capacity=2)
    with transactions.runtime.engine.begin() as connection:
        source = transactions.source

        def get(version: int) -> Detector:
            found = version_rows.version_id(connection, source.id, version)
            assert found is not None
            return cache.get(connection, source, Pointed(found, version))

        first, second = get(1), get(2)
        assert get(1) is first
        get(3)
        assert get(1) is first
        assert get(2) is not second


# -- aliases


def test_promote_and_rollback_are_recorded_and_replayed(transactions: Table) -> None:
    runtime = transactions.runtime
    for seed in range(3):
        register(runtime, transactions.source, make_detector(FEATURES, seed=seed))
    with pytest.raises(ModelError, match="no earlier champion to roll back to"):
        versions.rollback(runtime, "transactions", reason="too early")
    assert versions.promote(runtime, "transactions", 1, reason="first")
    assert not versions.promote(runtime, "transactions", 1, reason="again")
    with pytest.raises(ModelError, match="no earlier champion"):
        versions.rollback(runtime, "transactions", reason="only one")
    assert versions.promote(runtime, "transactions", 2, reason="better")
    assert versions.promote(runtime, "transactions", 3, reason="best")
    assert versions.rollback(runtime, "transactions", reason="too many alarms") == (3, 2)
    assert versions.rollback(runtime, "transactions", reason="still") == (2, 1)
    with pytest.raises(ModelError, match="no earlier champion"):
        versions.rollback(runtime, "transactions", reason="further")
    assert versions.promote(runtime, "transactions", 3, reason="after all")
    assert versions.rollback(runtime, "transactions", reason="no") == (3, 1)
    assert champion_version(transactions) == 1
    assert history(transactions) == [
        ("promote", None, 1, "first"),
        ("promote", 1, 2, "better"),
        ("promote", 2, 3, "best"),
        ("rollback", 3, 2, "too many alarms"),
        ("rollback", 2, 1, "still"),
        ("promote", 1, 3, "after all"),
        ("rollback", 3, 1, "no"),
    ]
    [who] = set(transactions.keys("SELECT created_by FROM outlier.alias_events"))
    assert who == "postgres"


def test_a_rollback_to_a_version_that_is_broken_is_refused(transactions: Table) -> None:
    transactions.promote()
    transactions.promote(make_detector(FEATURES, seed=1))
    store(transactions.user, 1, b"rubbish")
    with pytest.raises(ModelError, match="Not rolled back: version 1 of transactions is refused"):
        versions.rollback(transactions.runtime, "transactions", reason="test")
    assert champion_version(transactions) == 2


def test_promotions_at_once_form_one_history(transactions: Table) -> None:
    runtime = transactions.runtime
    numbers = [register(runtime, transactions.source) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        moved = list(pool.map(lambda v: versions.promote(runtime, "transactions", v, reason="race"), numbers))
    assert moved == [True] * 6
    events = history(transactions)
    assert events[0][1] is None
    assert [event[1] for event in events[1:]] == [event[2] for event in events[:-1]]
    assert champion_version(transactions) == events[-1][2]


def test_champions_of_two_sources_are_their_own(transactions: Table, user: User, runtime: Runtime) -> None:
    user.execute("CREATE TABLE other (LIKE transactions INCLUDING ALL)")
    other = attach_table(user, runtime, relation="other", key="id", features="amount,hour,distance")
    assert make_champion(runtime, transactions.source) == 1
    assert make_champion(runtime, transactions.source) == 2
    assert make_champion(runtime, other.source) == 1
    assert (champion_version(transactions), champion_version(other)) == (2, 1)
