"""Names of tables and columns as people have them, and as nobody should."""

from __future__ import annotations

from hypothesis import strategies as st

from pgoutlier.db.sql.identifiers import MAX_IDENTIFIER_BYTES

ODD = st.sampled_from(list("%\"'`.,;:()[]{}$\\ \t\nAaÉé😀_0 -/*?#\x7f\x01\u202e\u00a0"))
NAMES = st.one_of(
    st.text(ODD, min_size=1, max_size=40),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=15),
    st.sampled_from(["select", "user", "order", "%s", "%(x)s", "%%", "{}", "{0}", '"', '""', "a.b", "Class"]),
).filter(lambda name: len(name.encode()) <= MAX_IDENTIFIER_BYTES)
