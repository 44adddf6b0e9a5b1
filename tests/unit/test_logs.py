"""What is said in the logs, in how many lines."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest
import structlog
from kombu.message import Message

from worker.logs import configure_logs


def test_a_message_that_cannot_be_acknowledged_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    class Away:
        no_ack_consumers: frozenset[str] = frozenset()

        def basic_ack(self, tag: str, multiple: bool) -> None:
            raise TimeoutError("no answer")

    configure_logs("json")
    message = Message(channel=Away(), delivery_tag="7")
    message.ack_log_error(logging.getLogger("celery.worker"), (TimeoutError,))
    (line,) = capsys.readouterr().err.splitlines()
    assert "'7'" in json.loads(line)["event"]
    assert "Traceback" not in line


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
