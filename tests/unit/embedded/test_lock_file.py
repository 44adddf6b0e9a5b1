"""A lock that is a file, which its holder may delete."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pgoutlier.db.embedded import lock_file


def test_what_the_last_holder_has_left_is_read_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_file.held(path, wait=False) as file:
        assert file.read() == ""
        file.write("left")
    with lock_file.held(path, wait=True) as file:
        assert file.read() == "left"
        file.seek(0)
        file.truncate()
        file.write("mine")
    assert path.read_text() == "mine"


def test_whoever_does_not_wait_is_told_that_another_has_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        lock_file.held(path, wait=False),
        pytest.raises(lock_file.HeldByAnother),
        lock_file.held(path, wait=False),
    ):
        raise AssertionError("two have it")
    with lock_file.held(path, wait=False):
        pass


def test_two_never_hold_it_at_once_though_its_holder_deletes_it(tmp_path: Path) -> None:
    """A waiter that got the lock of a deleted file would have one that nobody else sees."""
    path = tmp_path / "lock"
    n_inside, most_inside = [0], [0]
    guard = threading.Lock()

    def work() -> None:
        for _ in range(200):
            with lock_file.held(path, wait=True):
                with guard:
                    n_inside[0] += 1
                    most_inside[0] = max(most_inside[0], n_inside[0])
                with guard:
                    n_inside[0] -= 1
                path.unlink()

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most_inside[0] == 1


def test_one_that_cannot_be_made_raises_what_the_system_says(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"), lock_file.held(tmp_path / "no" / "lock", wait=False):
        raise AssertionError("it is held")
