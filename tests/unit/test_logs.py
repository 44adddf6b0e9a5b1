"""What is said in the logs, in how many lines."""

from __future__ import annotations

import io
import sys

import pytest
import structlog

from pgoutlier.worker.logs import configure_logs


def test_a_log_goes_to_the_standard_error_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger()
    configure_logs("json")
    log.info("before")
    with pytest.MonkeyPatch.context() as patched:
        replaced = io.StringIO()
        patched.setattr(sys, "stderr", replaced)
        log.info("meanwhile")
    log.info("after")
    assert "meanwhile" in replaced.getvalue()
    said = capsys.readouterr().err
    assert "before" in said
    assert "after" in said
    assert "meanwhile" not in said
