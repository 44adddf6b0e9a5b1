"""What commands print."""

from __future__ import annotations

import pytest

from worker.cli.output import print_table


def test_text_of_others_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", ["note"], [["a\x1b[31m[red]b\x9b\x07"]])
    said = capsys.readouterr().out
    assert r"a\x1b[31m[red]b\x9b\x07" in said
    assert not set(said) & {"\x1b", "\x9b", "\x07"}
