"""Keys as somebody types or sends them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pgoutlier.db.errors import SourceError
from pgoutlier.db.source.definition import SourceDefinition

# A word, or the values of a key of several columns, by their order or by their names.
Word = str | int | Sequence[Any] | Mapping[str, Any]


def together(source: SourceDefinition, words: Sequence[Word]) -> list[str]:
    """One text a key: each word is one, or of a key of several columns a word a column; such a key may also be JSON."""
    key, keys, left = source.key, [], list(words)
    while left:
        word = left.pop(0)
        if not isinstance(word, str | int):
            keys.append(json.dumps(word, ensure_ascii=False))
        elif key.is_single or str(word).lstrip().startswith(("[", "{")):
            keys.append(str(word))
        else:
            others = [left.pop(0) for _ in key.columns[1:] if left]
            keys.append(json.dumps([word, *others], ensure_ascii=False))
    return keys


def read(source: SourceDefinition, text: str) -> str:
    """A key as it is kept, see db.sql.keys. Raises SourceError if it is none of the source's."""
    try:
        return source.key.canonical(text)
    except ValueError as error:
        why = "" if source.key.is_single else f": {error}"
        raise SourceError(
            f"{text!r} cannot be a key of source {source.name}, whose keys are of type {source.key.type_shown}{why}."
        ) from None
