"""A lock that is a file: held by one process of a machine at a time, and let go by whatever ends that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


class HeldByAnother(Exception):
    """Another process has the lock, and it was not to be waited for."""


@contextmanager
def held(path: Path, *, wait: bool) -> Iterator[TextIO]:
    """Hold the lock; yields the file, to be read and written, with what the last holder has left in it.

    The holder may delete the file, as the last thing it does. Raises HeldByAnother unless it waits, OSError if the file
    cannot be made.
    """
    import fcntl  # there is none on Windows

    while True:
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise HeldByAnother(str(path)) from None
            if _is_at(path, file):
                file.seek(0)
                yield file
                return


def _is_at(path: Path, file: TextIO) -> bool:
    """Whoever held it before may have deleted the file, and another one may be there by now."""
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False
