"""Settings from the environment and .env; complaints name the variable and never show its value."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as chosen
from hypothesis import strategies as st
from kombu.utils.url import parse_url
from pydantic import ValidationError

from pgoutlier.db.engine import make_engine, sqlalchemy_url
from pgoutlier.db.errors import SettingsError
from pgoutlier.db.settings import load_settings

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment and a folder without any; the folder."""
    for name in list(os.environ):
        if name.startswith("PGOUTLIER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", f"mysql://root:{SECRET}@host/db"),
        ("DATABASE_URL", SECRET),
        ("DATABASE_DIRECT_URL", f"mysql://root:{SECRET}@host/db"),
        ("DATABASE_DIRECT_URL", f"postgresql://root:{SECRET}@{SECRET}@host/db"),
        ("BROKER_URL", f"amqp://guest:{SECRET}@host"),
        ("LOG_FORMAT", SECRET),
        ("BATCH_ROWS", SECRET),
        ("BATCH_ROWS", "0"),
        ("BATCH_ROWS", "1e9"),
        ("MAX_ATTEMPTS", "-1"),
        ("RETRY_BASE_SECONDS", "0"),
        ("RETRY_BASE_SECONDS", "nan"),
        ("RETRY_BASE_SECONDS", "inf"),
        ("SWEEP_EVERY_SECONDS", f"5 {SECRET}"),
        ("SCORE_THREADS", "1000"),
        ("ARTIFACT_MAX_BYTES", "12 MB"),
    ],
)
def test_what_cannot_be_used_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"PGOUTLIER_{name}", value)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert f"PGOUTLIER_{name}:" in raised.value.sentence
    assert SECRET not in raised.value.sentence
    assert value not in raised.value.sentence.replace("greater than 0", "").replace("less than", "")
    assert raised.value.__cause__ is None


def test_every_complaint_is_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOUTLIER_BATCH_ROWS", "many")
    monkeypatch.setenv("PGOUTLIER_LOG_FORMAT", "yaml")
    with pytest.raises(SettingsError, match=r"PGOUTLIER_LOG_FORMAT: .*PGOUTLIER_BATCH_ROWS: "):
        load_settings()


def test_an_empty_url_is_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "DATABASE_DIRECT_URL", "BROKER_URL"):
        monkeypatch.setenv(f"PGOUTLIER_{name}", "")
    settings = load_settings()
    assert (settings.database_url, settings.database_direct_url, settings.broker_url) == (None, None, None)


def test_a_direct_url_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server would be started beside it, and another database be listened to."""
    monkeypatch.setenv("PGOUTLIER_DATABASE_DIRECT_URL", f"postgresql://me:{SECRET}@host/db")
    for url in ("", "embedded"):
        monkeypatch.setenv("PGOUTLIER_DATABASE_URL", url)
        with pytest.raises(SettingsError, match="PGOUTLIER_DATABASE_DIRECT_URL is set and") as raised:
            load_settings()
        assert SECRET not in raised.value.sentence


@pytest.mark.parametrize(
    ("name", "url", "forgotten"),
    [
        ("DATABASE_URL", f"postgresql://me:{SECRET}@host/db", "BROKER_URL"),
        ("BROKER_URL", f"redis://:{SECRET}@host", "DATABASE_URL"),
    ],
)
def test_one_url_alone_is_refused_unless_the_other_server_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str, forgotten: str
) -> None:
    """Else a server would be started in place of one that was forgotten."""
    monkeypatch.setenv(f"PGOUTLIER_{name}", url)
    for nothing in (None, ""):
        if nothing is not None:
            monkeypatch.setenv(f"PGOUTLIER_{forgotten}", nothing)
        with pytest.raises(
            SettingsError, match=f"PGOUTLIER_{name} is set and PGOUTLIER_{forgotten} is not"
        ) as raised:
            load_settings()
        assert SECRET not in raised.value.sentence
    monkeypatch.setenv(f"PGOUTLIER_{forgotten}", "embedded")
    settings = load_settings()
    assert getattr(settings, name.lower()).get_secret_value() == url
    assert getattr(settings, forgotten.lower()) is None


@pytest.mark.parametrize("value", ["", "  ", "\t"])
def test_an_empty_signing_key_is_refused_and_turns_nothing_off(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("PGOUTLIER_SIGNING_KEY", value)
    with pytest.raises(SettingsError, match=r"PGOUTLIER_SIGNING_KEY: .*neither signed nor checked"):
        load_settings()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_usual_spelling_of_a_database_url_is_taken(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("PGOUTLIER_DATABASE_URL", f"{scheme}://me:{SECRET}@host/db")
    monkeypatch.setenv("PGOUTLIER_BROKER_URL", "embedded")
    url = load_settings().database_url
    assert url is not None
    assert make_engine(url.get_secret_value()).dialect.driver == "psycopg"


def test_secrets_are_not_printed_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOUTLIER_DATABASE_URL", f"postgresql://me:{SECRET}@host/db")
    monkeypatch.setenv("PGOUTLIER_BROKER_URL", f"redis://:{SECRET}@host")
    monkeypatch.setenv("PGOUTLIER_SIGNING_KEY", SECRET)
    assert SECRET not in repr(load_settings())
    assert SECRET not in str(load_settings())


def test_the_environment_outranks_the_file(monkeypatch: pytest.MonkeyPatch, no_settings: Path) -> None:
    (no_settings / ".env").write_text("PGOUTLIER_BATCH_ROWS=7\nPGOUTLIER_MAX_ATTEMPTS=2\nOTHER=1\n")
    monkeypatch.setenv("PGOUTLIER_BATCH_ROWS", "9")
    settings = load_settings()
    assert (settings.batch_rows, settings.max_attempts) == (9, 2)


def test_a_file_that_cannot_be_read_is_named(no_settings: Path) -> None:
    (no_settings / ".env").write_bytes(b"PGOUTLIER_SIGNING_KEY=\xff\xfe" + SECRET.encode())
    with pytest.raises(SettingsError, match=r"\.env") as raised:
        load_settings()
    assert SECRET not in raised.value.sentence


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().batch_rows = 5


@pytest.mark.parametrize(
    "url",
    [f"postgresql://me:{SECRET}@host:port/db", f"postgresql://me:{SECRET}@[::1/db", f"me:{SECRET}@host"],
)
def test_a_url_that_cannot_be_parsed_is_named_and_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="PGOUTLIER_DATABASE_URL cannot be parsed") as raised:
        make_engine(url)
    assert SECRET not in raised.value.sentence


_URLS = {
    "DATABASE_URL": ("postgresql://me:", "@db.example.com:5432/shop"),
    "BROKER_URL": ("redis://:", "@broker.example.com:6379/0"),
}


def _complaint(name: str, password: str) -> str | None:
    """What is said of a URL with this password, or None if it is taken, for the password that it is."""
    before, after = _URLS[name]
    with pytest.MonkeyPatch.context() as patch:
        for url in _URLS:
            patch.setenv(f"PGOUTLIER_{url}", "embedded")
        patch.setenv(f"PGOUTLIER_{name}", f"{before}{password}{after}")
        try:
            settings = load_settings()
        except SettingsError as error:
            return error.sentence
    if name == "DATABASE_URL":
        url = sqlalchemy_url(settings.database_url.get_secret_value())  # type: ignore[union-attr]
        assert (url.password, url.host) == (unquote(password), "db.example.com")
    else:
        parts = parse_url(settings.broker_url.get_secret_value())  # type: ignore[union-attr]
        assert (parts["password"], parts["hostname"]) == (unquote(password), "broker.example.com")
    return None


@pytest.mark.parametrize("name", _URLS)
@chosen(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(password=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=24))
@example("pa@ssword")
@example("pa/ssword")
@example("pa#ssword")
@example("pa?ssword")
@example("p%ssword")
@example("pa[ssword")
@example("12/345678")
@example("secret;redis://x")
def test_a_password_is_taken_as_it_is_or_refused_and_never_shown(name: str, password: str) -> None:
    said = _complaint(name, password)
    # The same is said of every password.
    assert said in {None, _complaint(name, "a@b")}


@pytest.mark.parametrize("name", _URLS)
@chosen(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(password=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=24))
def test_a_password_that_is_escaped_is_always_taken(name: str, password: str) -> None:
    assert _complaint(name, quote(password, safe="")) is None


@pytest.mark.parametrize("name", _URLS)
@pytest.mark.parametrize("password", ["p\u2100ss", "p\uff0fss", "s\u00e9cret"])
def test_other_letters_are_taken_or_refused_and_never_shown(name: str, password: str) -> None:
    assert _complaint(name, password) in {None, _complaint(name, "a@b")}


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://:pass@host:6379/0;redis://:pass@other:6379/0",
        "redis+socket:///run/valkey/valkey.sock?virtual_host=0",
        "rediss://user:pass@[::1]:6380/1?ssl_cert_reqs=required",
    ],
)
def test_every_usual_broker_url_is_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PGOUTLIER_BROKER_URL", url)
    monkeypatch.setenv("PGOUTLIER_DATABASE_URL", "embedded")
    assert load_settings().broker_url is not None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///shop?host=/run/postgresql",
        "postgresql://me@/shop?host=/tmp/a%20b&port=5433",
        "postgresql://me@%2Frun%2Fpostgresql/shop",
        "postgresql://[::1]:5432/shop?sslmode=require",
    ],
)
def test_every_usual_database_url_is_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PGOUTLIER_DATABASE_URL", url)
    monkeypatch.setenv("PGOUTLIER_BROKER_URL", "embedded")
    assert load_settings().database_url is not None
