"""Versions by themselves: what differs, tags, what is pruned, and carrying one to another database as a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from pgoutlier.db.errors import ModelError
from pgoutlier.detector.recipes import Recurrent
from pgoutlier.models_store import version_file
from pgoutlier.models_store.version_file import MAGIC
from pgoutlier.worker.runtime import make_runtime
from pgoutlier.worker.upkeep import maintenance
from pgoutlier.worker.versions import comparing, version_files, versions
from tests.servers import Postgres
from tests.support import (
    FEATURES,
    Table,
    attach_table,
    detach_table,
    make_detector,
    make_table,
    plain_recipe,
    register,
)

# The statements are plain.
pytestmark = pytest.mark.postgres18

User = psycopg.Connection[Any]
KEY = SecretStr("a key")


def make_versions(table: Table, n: int) -> None:
    for seed in range(n):
        register(table.runtime, table.source, make_detector(FEATURES, seed=seed))


def numbers(table: Table) -> list[int]:
    return table.keys("SELECT version FROM outlier.model_versions ORDER BY version")


def events(table: Table) -> list[tuple[Any, ...]]:
    return table.rows("SELECT version, action, detail FROM outlier.version_events ORDER BY id")


# -- tags and pruning


def test_what_was_champion_is_challenger_or_has_a_tag_is_never_pruned(transactions: Table) -> None:
    runtime = transactions.runtime
    make_versions(transactions, 9)
    for version in (1, 3):
        versions.promote(runtime, "transactions", version, reason="test")
    versions.challenge(runtime, "transactions", 4, reason="test")
    versions.challenge(runtime, "transactions", 5, reason="test")
    assert versions.tag(runtime, "transactions", 6, "audit-2026")
    assert not versions.tag(runtime, "transactions", 6, "audit-2026")
    assert versions.prune(runtime, "transactions", keep=2, dry_run=True) == [2, 4, 7]
    assert numbers(transactions) == list(range(1, 10))
    assert versions.prune(runtime, "transactions", keep=2) == [2, 4, 7]
    assert versions.prune(runtime, "transactions", keep=2) == []
    assert numbers(transactions) == [1, 3, 5, 6, 8, 9]
    assert versions.untag(runtime, "transactions", 6, "audit-2026")
    assert not versions.untag(runtime, "transactions", 6, "audit-2026")
    assert versions.prune(runtime, "transactions", keep=1) == [6, 8]
    assert register(runtime, transactions.source) == 10
    assert events(transactions)[:3] == [
        (6, "tag", "audit-2026"),
        (2, "prune", "kept the newest 2"),
        (4, "prune", "kept the newest 2"),
    ]
    found = versions.history(runtime, "transactions")
    assert len(found) == 4 + 7
    assert [e.alias for e in versions.history(runtime, "transactions", alias="challenger")] == [
        "challenger",
        "challenger",
    ]


def test_maintenance_prunes_versions_by_the_setting(transactions: Table) -> None:
    make_versions(transactions, 4)
    assert maintenance.prune_all(transactions.runtime) == {"transactions": 0}
    assert maintenance.prune_all(transactions.with_settings(keep_versions=3).runtime) == {"transactions": 1}
    assert numbers(transactions) == [2, 3, 4]


REFUSALS = [
    (lambda r: versions.tag(r, "transactions", 1, "two words"), "'two words' cannot be a tag"),
    (lambda r: versions.tag(r, "transactions", 7, "x"), "no model version 7"),
    (lambda r: versions.prune(r, "transactions", keep=0), "At least the newest version is kept"),
    (lambda r: versions.number(r, "transactions", "newest"), "'newest' is not a version"),
    (lambda r: versions.number(r, "transactions", "challenger"), "transactions has no challenger"),
    (lambda r: versions.number(r, "transactions", "99"), "no model version 99"),
    (lambda r: versions.history(r, "transactions", alias="other"), "'other' is not an alias"),
]


def test_what_cannot_be_is_refused_with_a_sentence(transactions: Table) -> None:
    make_versions(transactions, 1)
    for do, sentence in REFUSALS:
        with pytest.raises(ModelError, match=sentence):
            do(transactions.runtime)


def test_versions_are_named_by_number_or_alias(transactions: Table) -> None:
    make_versions(transactions, 3)
    versions.promote(transactions.runtime, "transactions", 2, reason="test")
    versions.challenge(transactions.runtime, "transactions", 3, reason="test")
    found = [
        versions.number(transactions.runtime, "transactions", n) for n in ("1", "champion", "challenger")
    ]
    assert found == [1, 2, 3]


def test_the_difference_of_two_versions_is_what_differs(transactions: Table) -> None:
    runtime = transactions.runtime
    recipe = plain_recipe(name="wider", epochs=7, top_features=2)
    register(runtime, transactions.source, make_detector(FEATURES, threshold=3.0))
    register(runtime, transactions.source, make_detector(("amount", "other"), recipe=recipe, threshold=4.0))
    versions.tag(runtime, "transactions", 2, "try")
    found = comparing.diff(runtime, "transactions", 1, 2)
    by_part = {
        part: {entry.what: (entry.a, entry.b) for entry in getattr(found, part)}
        for part in ("version", "recipe", "metrics", "features")
    }
    assert by_part["version"]["threshold"] == (3.0, 4.0)
    assert by_part["version"]["tags"] == (None, ["try"])
    assert set(by_part["recipe"]) == {"name", "epochs", "top_features"}
    assert by_part["metrics"] == {}
    assert by_part["features"] == {"hour": (True, None), "distance": (True, None), "other": (None, True)}
    same = comparing.diff(runtime, "transactions", 1, 1)
    assert all(getattr(same, part) == [] for part in ("version", "recipe", "metrics", "features"))


# -- files


@contextmanager
def elsewhere(postgres: Postgres, table: Table, **changes: Any) -> Iterator[Table]:
    """The same table in another database."""
    with postgres.database() as url, psycopg.connect(url, autocommit=True) as user:
        settings = table.runtime.settings.model_copy(update={"database_url": SecretStr(url), **changes})
        runtime = make_runtime(settings, application_name="tests")
        try:
            yield make_table(user, runtime)
        finally:
            runtime.engine.dispose()


@pytest.fixture
def exported(transactions: Table, tmp_path: Path) -> Path:
    make_versions(transactions, 2)
    path = tmp_path / "two.pgo"
    n_bytes = version_files.export(transactions.runtime, "transactions", 2, path)
    assert path.stat().st_size == n_bytes
    return path


def test_a_version_goes_to_another_database_and_scores_the_same(
    transactions: Table, exported: Path, postgres: Postgres
) -> None:
    versions.promote(transactions.runtime, "transactions", 2, reason="test")
    transactions.insert(1, 20)
    transactions.drain()
    detached = transactions.errors()
    detach_table(transactions)
    with elsewhere(postgres, transactions) as other:
        assert version_files.import_(other.runtime, "transactions", exported) == (1, True)
        assert version_files.import_(other.runtime, "transactions", exported) == (1, False)
        row = versions.described(other.runtime, "transactions", 1)
        assert (row.imported_from["source"], row.imported_from["version"]) == ("transactions", 2)
        assert (row.n_training_rows, row.parent_version) == (500, None)
        assert events(other) == [(1, "import", "version 2 of transactions")]
        versions.promote(other.runtime, "transactions", 1, reason="test")
        other.insert(1, 20)
        other.drain()
        assert other.errors() == pytest.approx(detached, rel=1e-12)


def test_the_same_version_gives_the_same_file_and_is_found_again(
    transactions: Table, exported: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.pgo"
    version_files.export(transactions.runtime, "transactions", 2, again)
    assert again.read_bytes() == exported.read_bytes()
    assert version_files.import_(transactions.runtime, "transactions", again) == (2, False)
    assert numbers(transactions) == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.pgo", "two.pgo"]


def rebuilt(
    content: bytes, change: Callable[[dict[str, Any]], object] | None = None, packed: bytes = b""
) -> bytes:
    """The file with another header or artifact, and a digest that fits."""
    start = len(MAGIC) + 8
    n_header = int.from_bytes(content[len(MAGIC) : start], "big")
    header = json.loads(content[start : start + n_header])
    if change is not None:
        change(header)
    text = json.dumps(header).encode()
    body = MAGIC + len(text).to_bytes(8, "big") + text + (packed or content[start + n_header : -64])
    signed = body + bytes(32)
    return signed + hashlib.sha256(signed).digest()


SPOILT = [
    (lambda c: b"", "is not a model version that pgoutlier has exported"),
    (lambda c: b"\x80\x04K\x01.", "is not a model version"),
    (lambda c: MAGIC, "is truncated"),
    (lambda c: c[:-1], "is truncated or was changed"),
    (lambda c: c + b"x", "is truncated or was changed"),
    (lambda c: c[:200] + bytes([c[200] ^ 1]) + c[201:], "is truncated or was changed"),
    (lambda c: rebuilt(c, lambda h: h.update(code="import os")), "header that does not describe"),
    (lambda c: rebuilt(c, lambda h: h.update(metrics={"a": float("nan")})), "header that does not"),
    (lambda c: rebuilt(c, lambda h: h.update(training_from="\x00")), "header that does not"),
    (lambda c: rebuilt(c, lambda h: h.update(training_from="\ud800")), "header that does not"),
    (lambda c: rebuilt(c, lambda h: h.update(format_version=2)), "header that does not"),
    (lambda c: rebuilt(c, lambda h: h.update(n_training_rows=2**70)), "header that does not"),
    (lambda c: rebuilt(c, packed=b"rubbish"), "artifact that cannot be used: it is truncated"),
    (
        lambda c: (lambda s: s + hashlib.sha256(s).digest())(MAGIC + b"\xff" * 8 + bytes(100)),
        "header that is longer than it may be",
    ),
]


def test_a_file_that_is_not_what_was_exported_is_refused_and_nothing_is_stored(
    transactions: Table, exported: Path
) -> None:
    content = exported.read_bytes()
    for spoil, sentence in SPOILT:
        exported.write_bytes(spoil(content))
        with pytest.raises(ModelError, match=rf"two\.pgo .*{sentence}.*nothing was imported"):
            version_files.import_(transactions.runtime, "transactions", exported)
    assert numbers(transactions) == [1, 2]
    assert [event[1] for event in events(transactions)] == ["export"]


def test_a_file_larger_than_any_version_is_not_read_whole(transactions: Table, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(version_file.largest(transactions.runtime.settings.artifact_max_bytes) + 1)
    with pytest.raises(ModelError, match="is larger than any model version"):
        version_files.import_(transactions.runtime, "transactions", path)


def test_signatures_are_wanted_where_a_key_is_set(
    transactions: Table, exported: Path, tmp_path: Path, postgres: Postgres
) -> None:
    signing = transactions.with_settings(signing_key=KEY)
    register(signing.runtime, signing.source, make_detector(FEATURES, seed=9))
    signed = tmp_path / "signed.pgo"
    version_files.export(signing.runtime, "transactions", 3, signed)
    with elsewhere(postgres, transactions, signing_key=KEY) as other:
        with pytest.raises(ModelError, match="is not signed, and PGOUTLIER_SIGNING_KEY is set"):
            version_files.import_(other.runtime, "transactions", exported)
        foreign = other.with_settings(signing_key=SecretStr("another"))
        with pytest.raises(ModelError, match="was not signed with this PGOUTLIER_SIGNING_KEY"):
            version_files.import_(foreign.runtime, "transactions", signed)
        assert version_files.import_(other.runtime, "transactions", signed) == (1, True)
        assert versions.promote(other.runtime, "transactions", 1, reason="signed here, too")
    with elsewhere(postgres, transactions) as open_to_all:
        assert version_files.import_(open_to_all.runtime, "transactions", signed) == (1, True)


def test_a_file_of_other_features_or_of_a_recipe_that_does_not_fit_is_refused(
    transactions: Table, exported: Path, user: User
) -> None:
    user.execute("CREATE TABLE other (id int PRIMARY KEY, amount float8, hour float8)")
    other = attach_table(user, transactions.runtime, relation="other", key="id", features="amount,hour")
    with pytest.raises(
        ModelError, match=r"other features \(amount, hour, distance\) than other has \(amount, hour\)"
    ):
        version_files.import_(other.runtime, "other", exported)
    recipe = plain_recipe(layers=(), recurrent=Recurrent(window=3, encoder=(2,), decoder=(2,)))
    register(transactions.runtime, transactions.source, make_detector(FEATURES, recipe=recipe))
    version_files.export(transactions.runtime, "transactions", 3, exported)
    user.execute("DELETE FROM outlier.model_versions WHERE version = 3")
    with pytest.raises(ModelError, match="no time column"):
        version_files.import_(transactions.runtime, "transactions", exported)
    assert numbers(transactions) == [1, 2]


def test_a_version_that_is_damaged_or_cannot_be_written_leaves_no_file(
    transactions: Table, exported: Path, tmp_path: Path
) -> None:
    before = exported.read_bytes()
    transactions.user.execute("UPDATE outlier.model_versions SET artifact = 'x' WHERE version = 1")
    with pytest.raises(ModelError, match="Not exported: version 1 of transactions is refused"):
        version_files.export(transactions.runtime, "transactions", 1, exported)
    for path in (tmp_path / "no folder" / "file", tmp_path, Path("/")):
        with pytest.raises(ModelError, match=r"cannot be written|is a folder"):
            version_files.export(transactions.runtime, "transactions", 2, path)
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        version_files.import_(transactions.runtime, "transactions", tmp_path / "nothing")
    assert exported.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["two.pgo"]
    assert len(events(transactions)) == 1
