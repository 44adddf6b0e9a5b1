"""The parser of exported versions: whatever bytes come, it gives the version that was written, or refuses them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgoutlier.models_store import artifact, version_file
from pgoutlier.models_store.seal import Seal
from pgoutlier.models_store.version_file import MAGIC, FileRefused, Header, Origin, VersionFile
from tests.support import FEATURES, make_detector

KEY = "a key"
DETECTOR = make_detector(FEATURES, threshold=2.5)
HEADER = Header(
    origin=Origin(source="t", version=3, created_at=datetime(2026, 1, 2, tzinfo=UTC), created_by="ana"),
    metrics={"seconds": 1.5, "history": {"loss": [3, 2.0]}},
    n_training_rows=500,
    training_from="2026-01-01",
    training_to=None,
    drift_reference=None,
)
FILES = {key: version_file.dump(HEADER, artifact.pack(DETECTOR), signing_key=key) for key in (None, KEY)}


def parse(content: bytes, *, signing_key: str | None = None) -> VersionFile:
    return version_file.parse(content, seal=Seal(10**6, signing_key))


@pytest.mark.parametrize("written", FILES)
@pytest.mark.parametrize("read", FILES)
def test_what_was_written_is_read_unless_a_signature_is_missing(
    written: str | None, read: str | None
) -> None:
    if read and not written:
        with pytest.raises(FileRefused, match="not signed"):
            parse(FILES[written], signing_key=read)
        return
    found = parse(FILES[written], signing_key=read)
    assert found.header == HEADER
    assert artifact.pack(found.detector) == artifact.pack(DETECTOR)


@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_are_refused(content: bytes, begins_right: bool) -> None:
    with pytest.raises(FileRefused):
        parse(MAGIC + content if begins_right else content)


@given(st.sampled_from([None, KEY]), st.data())
def test_a_part_of_a_file_is_refused(key: str | None, data: st.DataObject) -> None:
    content = FILES[key]
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content) - (start == 0)))
    with pytest.raises(FileRefused):
        parse(content[start:end])


@given(st.sampled_from([None, KEY]), st.data())
def test_a_file_with_bits_flipped_is_refused(key: str | None, data: st.DataObject) -> None:
    content = bytearray(FILES[key])
    flips = data.draw(
        st.dictionaries(st.integers(0, len(content) - 1), st.integers(1, 255), min_size=1, max_size=5)
    )
    for place, flip in flips.items():
        content[place] ^= flip
    with pytest.raises(FileRefused):
        parse(bytes(content))


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_digest_of_one_s_own_does_not_make_a_version(text: bytes, packed: bytes) -> None:
    """Whoever makes a digest can make a file, but nothing comes of it that is no detector."""
    import hashlib

    signed = MAGIC + len(text).to_bytes(8, "big") + text + packed + bytes(32)
    with pytest.raises(FileRefused):
        parse(signed + hashlib.sha256(signed).digest())


GATE = {"promotion": "manual", "promoted": False, "reason": "as said"}


def of_metrics(metrics: dict[str, object]) -> bytes:
    """A whole file with metrics that nothing has looked at."""
    header = HEADER.model_copy(update={"metrics": metrics})
    return version_file.dump(header, artifact.pack(DETECTOR), signing_key=None)


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"seconds": 1, "calibration_flag_rate": 0.5, "calibration_error_q99.9": 3.5, "seed": 2**62},
        {"gate": GATE, "history": {"loss": [1, 0.5], "val_loss": []}},
        {"gate": {**GATE, "n_held_out": 1, "n_fraud": 0, "budget": 1, "new": {"auroc": None}, "champion": None,
                  "baseline": {"auroc": 0.5}}},
        {"of_a_later_version": {"what": ["it", "says"]}},
    ],
)  # fmt: skip
def test_metrics_as_the_program_writes_them_are_taken(metrics: dict[str, object]) -> None:
    assert parse(of_metrics(metrics)).header.metrics == metrics


@pytest.mark.parametrize(
    "metrics",
    [
        {"seconds": "long"},
        {"kept_epoch": None},
        {"seed": True},
        {"n_fit": 2**80},
        {"calibration_flag_rate": [0.5]},
        {"history": {"loss": ["NaN"]}},
        {"history": [1, 2]},
        {"history": {"loss": [0.0] * 100_001}},
        {"gate": "promoted"},
        {"gate": {**GATE, "reason": "x" * 5_000}},
        {"gate": {**GATE, "promoted": "yes"}},
        {"gate": {**GATE, "n_held_out": 5}},
        {
            "gate": {
                **GATE,
                "n_held_out": 5,
                "n_fraud": 0,
                "budget": 1,
                "new": 3,
                "champion": None,
                "baseline": None,
            }
        },
        {"[red]x": 1},
        {"\x1b]0;title": 1},
        {f"m{i}": 1 for i in range(300)},
        {"of_a_later_version": "x" * 70_000},
    ],
)
def test_metrics_that_would_be_read_as_something_else_are_refused(metrics: dict[str, object]) -> None:
    with pytest.raises(FileRefused, match="header that does not describe a model version"):
        parse(of_metrics(metrics))
