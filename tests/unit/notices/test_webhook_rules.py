"""URLs, secrets, signatures and delays of webhooks, for whatever they are given."""

from __future__ import annotations

import base64
import re
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgoutlier.db.errors import WebhookError
from pgoutlier.db.notices.deliveries import Notice
from pgoutlier.db.notices.webhook_secret import keys_of
from pgoutlier.db.settings import Settings
from pgoutlier.worker.notices import webhook_messages, webhook_url
from pgoutlier.worker.notices.http_post import Answer
from pgoutlier.worker.notices.webhook_signature import headers
from tests.receiver import KEY, SECRET, Received

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"
NAMES = st.lists(
    st.text("abz0-_9", min_size=1, max_size=9).map(lambda t: f"a{t}9"), min_size=1, max_size=3
).map(".".join)
PATHS = st.text("/abYZ09._~%!$&'()*+,;=:@-", max_size=20).map(lambda path: f"/{path}") | st.just("")
QUERIES = st.text("abYZ09=&%.-?/:@", min_size=1, max_size=20).map(lambda query: f"?{query}") | st.just("")
KEYS = st.binary(min_size=24, max_size=64)


@given(NAMES, st.integers(1, 65_535) | st.none(), PATHS, QUERIES)
def test_https_anywhere_is_taken_apart_as_it_was_put_together(
    name: str, port: int | None, path: str, query: str
) -> None:
    found = webhook_url.check(f"https://{name}{f':{port}' if port else ''}{path}{query}")
    assert (found.tls, found.host, found.port) == (True, name, port or 443)
    assert found.target == (path or "/") + query
    assert found.host_header == (name if port in (None, 443) else f"{name}:{port}")


@given(st.text(max_size=60) | st.text(max_size=60).map(lambda tail: f"https://{tail}"))
def test_any_text_is_either_refused_by_a_sentence_or_safe_to_send(text: str) -> None:
    try:
        found = webhook_url.check(text)
    except WebhookError:
        return
    assert found.target.startswith("/")
    assert (found.target + found.host).isascii()
    sent = f"POST {found.target} HTTP/1.1\r\nHost: {found.host_header}"
    assert len(sent.split()) == 5, "nothing in it ends the line or begins another"
    assert "@" not in found.host


@given(
    NAMES, st.text("abcXYZ09%", min_size=6, max_size=12), st.sampled_from(("/{}", "?k={}", "/a/{}?b", "//{}"))
)
def test_no_more_than_the_host_is_shown(name: str, secret: str, form: str) -> None:
    assert secret not in webhook_url.shown(f"https://{name}{form.format(secret)}").replace(name, "")
    assert secret not in webhook_url.shown(f"https://{secret}:{secret}@{name}/").replace(name, "")


@given(st.ip_addresses())
def test_http_is_for_this_machine_only(address: IPv4Address | IPv6Address) -> None:
    url = f"http://[{address}]/x" if address.version == 6 else f"http://{address}/x"
    if address.is_loopback:
        assert not webhook_url.check(url).tls
        return
    with pytest.raises(WebhookError, match="--insecure-http"):
        webhook_url.check(url)
    assert webhook_url.check(url, insecure_http=True).port == 80


@pytest.mark.parametrize(
    "url",
    [
        *("", "https://", "https:///x", "https://:443/x", "//host/x", "host/x", "ftp://host/", "HTTPS//x"),
        *("https://host:0/", "https://host:65536/", "https://host:x/", "https://[::1/", "https://[x]/"),
        *("https://a b/", "https://host/a b", "https://host/\n", "https://host\\@other/", "https://hôst/"),
        *("https://me@host/", "https://:p@host/", "https://host/#part", "https://host/#", "https://-.b/"),
        *("https://a..b/", "https://host/" + "x" * 2_000, f"https://{'a' * 64}.b/", "https://ho$t/"),
        *("http://localhost.example/", "http://127.0.0.1.example/", "http://2130706433/", "http://127.1/"),
    ],
)
def test_what_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(WebhookError) as raised:
        webhook_url.check(url)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "LOCALHOST"])
def test_loopback_needs_no_tls(host: str) -> None:
    assert not webhook_url.check(f"http://{host}:8000/x").tls


@given(st.lists(KEYS, min_size=1, max_size=3), st.uuids(), st.integers(0, 2**40), st.binary(max_size=200))
def test_a_signature_holds_for_its_key_and_its_message_only(
    keys: list[bytes], message: object, timestamp: int, body: bytes
) -> None:
    sent = headers(str(message), timestamp, body, keys)
    assert all(Received("/", sent, body).is_signed_by(key) for key in keys)
    assert not Received("/", sent, body + b"x").is_signed_by(keys[0])
    assert not Received("/", sent, body).is_signed_by(keys[0] + b"x")
    for name, other in (("webhook-id", "x"), ("webhook-timestamp", str(timestamp + 1))):
        assert not Received("/", {**sent, name: other}, body).is_signed_by(keys[0])


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of the reference libraries of Standard Webhooks."""
    (key,) = keys_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    sent = headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', [key])
    assert sent["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def documented() -> Any:
    """The function of docs/operations.md that receivers may copy."""
    block = re.search(r"^```python\n(import base64.*?)^```", OPERATIONS.read_text(), re.M | re.S)
    assert block is not None
    found: dict[str, Any] = {}
    exec(block[1], found)
    return found["verified"]


def test_the_documented_check_takes_what_is_sent_and_nothing_else() -> None:
    verified, body = documented(), b'{"a": 1}'
    other = "whsec_" + base64.b64encode(KEY[::-1]).decode()
    now = int(time.time())
    sent = headers("id", now, body, [KEY])
    assert verified(sent, body, SECRET)
    assert verified(headers("id", now, body, [KEY[::-1], KEY]), body, SECRET)
    assert not verified(sent, body + b" ", SECRET)
    assert not verified(sent, body, other)
    assert not verified(headers("id", now - 400, body, [KEY]), body, SECRET)
    assert not verified(headers("id", now + 400, body, [KEY]), body, SECRET)
    assert not verified({**sent, "webhook-timestamp": "soon"}, body, SECRET)
    assert not verified({**sent, "webhook-signature": "v1,é v2,x "}, body, SECRET)


@given(st.lists(KEYS, min_size=1, max_size=3))
def test_secrets_are_read(keys: list[bytes]) -> None:
    assert keys_of("  ".join("whsec_" + base64.b64encode(key).decode() for key in keys)) == keys


@given(st.text(max_size=80) | st.binary(max_size=23).map(lambda b: "whsec_" + base64.b64encode(b).decode()))
def test_other_secrets_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ValueError) as raised:
        keys_of(text)
    assert text.strip() == "" or len(text) < 8 or text not in str(raised.value)


def test_a_setting_that_is_no_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="whsec_"):
        Settings(_env_file=None, webhook_secret="hunter2hunter2")


@given(st.integers(1, 1_000), st.floats(0.001, 1e7), st.floats(0, 1), st.none() | st.floats(0, 1e9))
def test_delays_grow_and_stay_within_bounds(
    attempts: int, base: float, chance: float, asked: float | None
) -> None:
    def delay(n: int) -> float:
        return webhook_messages.retry_delay(n, base_seconds=base, asked_seconds=asked, chance=chance)

    assert 0 < delay(attempts) <= 3_600
    assert delay(attempts) <= delay(attempts + 1)
    assert delay(attempts) >= min(3_600, asked or 0)


NOW = datetime(2026, 3, 1, tzinfo=UTC)


@given(st.text(max_size=40) | st.from_regex(r"[0-9]{1,30}", fullmatch=True) | st.none())
def test_any_retry_after_is_read_or_left(text: str | None) -> None:
    seconds = webhook_messages.asked_seconds(text, NOW)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("0", 0), ("120", 120), (" 7 ", 7), ("9" * 400, 3_600), ("-1", None), ("1.5", None), ("", None)),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0),
        ("Mon, 99 Foo", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert webhook_messages.asked_seconds(text, NOW) == seconds


@given(st.integers(100, 999), st.text(max_size=30), st.text(max_size=600))
def test_what_a_receiver_says_becomes_one_short_line(status: int, reason: str, text: str) -> None:
    line = webhook_messages.said(Answer(status, reason, text, None))
    assert line.startswith(f"answered {status}")
    assert line.isprintable()
    assert len(line) <= 300


@given(st.lists(st.floats(), max_size=3), st.text(max_size=20))
def test_a_body_is_json_whatever_the_row_holds(errors: list[float], key: str) -> None:
    notices = [
        Notice(
            id=i,
            key=key,
            reconstruction_error=error,
            threshold=error,
            model_version=1,
            scored_at=NOW,
            top_features=None,
        )
        for i, error in enumerate(errors)
    ]
    first, second = webhook_messages.body("s", notices), webhook_messages.body("s", notices)
    assert first == second
    assert b"NaN" not in first.replace(key.encode(errors="replace"), b"")
