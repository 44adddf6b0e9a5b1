"""The parser of exported versions: whatever bytes come, it gives the version that was written, or refuses them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgoutlier.models_store import artifact, version_file
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
    return version_file.parse(content, max_artifact_bytes=10**6, signing_key=signing_key)


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
