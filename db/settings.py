"""Settings: read once from PGOUTLIER_* and .env, typed, frozen, passed down as plain values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pgoutlier.db.embedded import default_data_dir
from pgoutlier.db.errors import SettingsError
from pgoutlier.db.notices import webhook_secret

PREFIX = "PGOUTLIER_"
_EMBEDDED = "embedded"
Seconds = Annotated[float, Field(gt=0, le=366 * 86_400)]


class Settings(BaseSettings):
    """Everything that can be changed from outside. Durations are seconds, sizes are bytes or rows."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_file_encoding="utf-8", frozen=True, extra="ignore"
    )

    database_url: SecretStr | None = Field(
        None,
        description="PostgreSQL 15 or later, as postgresql://user@host/db; unset or `embedded`: the embedded server",
    )
    database_direct_url: SecretStr | None = Field(
        None,
        description="the same database with no pooler between, where the other URL leads through one: for sessions that"
        " hear notifications and hold locks",
    )
    broker_url: SecretStr | None = Field(
        None,
        description="Redis 6.2+ or Valkey, as redis://host:6379/0; unset or `embedded`: the embedded server",
    )
    broker_key_prefix: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.:-]{0,64}$",
        description="what every key and channel in the broker begins with, such as pgoutlier: where others use it too",
    )
    data_dir: Path = Field(
        default_factory=default_data_dir, description="where the embedded servers keep their data"
    )
    signing_key: SecretStr | None = Field(
        None, description="when set, model artifacts are signed with it, and unsigned ones are refused"
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="webhooks are signed with it: whsec_ and the base64 of 24 to 64 bytes; several, apart by"
        " spaces, while one is replaced",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: readable on a terminal, JSON elsewhere"
    )

    batch_rows: int = Field(
        20_000, ge=1, le=100_000, description="rows claimed and scored in one transaction"
    )
    job_range_rows: int = Field(
        10_000,
        ge=1,
        le=100_000,
        description="rows that a job does in one transaction, between looks at new ones",
    )
    drain_budget_seconds: Seconds = Field(
        30, description="how long one drain or job task goes on before it hands over"
    )
    max_attempts: int = Field(
        3,
        ge=1,
        le=20,
        description="whole-batch retries before a batch is bisected; tries of a range before its job fails",
    )
    retry_base_seconds: Seconds = Field(1, description="delay after the first failure; doubles each time")
    score_threads: int = Field(2, ge=1, le=64, description="threads of the score worker that `up` starts")

    drain_every_seconds: Seconds = Field(
        5, description="beat: safety net in case a wake-up was lost, for queued rows and for jobs"
    )
    deliver_every_seconds: Seconds = Field(5, description="beat: deliver notices that are due")
    sweep_every_seconds: Seconds = Field(300, description="beat: look for rows that got past the triggers")
    retrain_every_seconds: Seconds = Field(86_400, description="beat: train a new version of every source")
    prune_every_seconds: Seconds = Field(
        3_600, description="beat: remove scores of rows that are gone, and what is kept no longer"
    )
    upkeep_turn_seconds: Seconds = Field(
        86_400,
        description="in which sweep and prune have looked at every row once, a part of them each time",
    )
    drift_every_seconds: Seconds = Field(3_600, description="beat: measure the drift of every source")
    drift_rows: int = Field(20_000, ge=500, le=1_000_000, description="newest rows that drift is measured on")
    drift_psi: float = Field(
        0.25,
        gt=0,
        le=100,
        description="a feature or error whose PSI is larger is a warning, if not by chance",
    )
    drift_quarantine_rate: float = Field(
        0.05, ge=0, le=1, description="a larger share of them in quarantine is a warning"
    )
    retrain_on_drift: bool = Field(
        False, description="train a new version when drift is found, at most one in retrain_every_seconds"
    )
    keep_drift_reports: int = Field(1_000, ge=1, description="drift_reports kept per source by prune")
    keep_history_days: int = Field(
        365,
        ge=1,
        le=36_525,
        description="days that earlier scores are kept by prune, where there is a history",
    )
    keep_jobs: int = Field(100, ge=1, description="jobs kept per source by prune, beside those that run")
    keep_training_runs: int = Field(1_000, ge=1, description="training_runs kept per source by prune")

    keep_versions: int = Field(
        100,
        ge=1,
        description="model versions kept per source by prune, beside those that were ever champion, are the"
        " challenger, or are tagged",
    )

    webhook_batch_notices: int = Field(
        100, ge=1, le=1_000, description="notices sent to a webhook in one request, at most"
    )
    webhook_timeout_seconds: float = Field(
        10, gt=0, le=60, description="a request to a webhook is given up after this time"
    )
    webhook_max_attempts: int = Field(
        10, ge=1, le=100, description="requests before notices become a dead letter"
    )
    webhook_retry_base_seconds: Seconds = Field(
        5, description="delay after the first failed request; doubles each time, to an hour at most"
    )
    keep_notices_seconds: Seconds = Field(
        7 * 86_400, description="age at which prune removes notices that are delivered or were not to be"
    )
    keep_undelivered_seconds: Seconds = Field(
        90 * 86_400, description="the same of notices that could not be delivered, and of dead letters"
    )

    training_rows: int = Field(200_000, ge=200, description="newest rows that a training looks at")
    training_sample_rows: int = Field(
        500_000,
        ge=200,
        description="the most rows that a training reads into memory: a sample of those, if more",
    )
    retrain_after_rows: int = Field(
        0, ge=0, description="train a new version too when about so many rows were scored since; 0: never"
    )
    gate_min_rows: int = Field(
        300, ge=200, description="a version trained on fewer rows is never promoted by its training"
    )
    gate_most_flagged: float = Field(
        0.3, gt=0, le=1, description="nor is one that flags a larger share of the hold-out"
    )
    training_reports: bool = Field(
        True, description="draw a report after each training and keep it with the version"
    )
    artifact_max_bytes: int = Field(64 * 2**20, ge=2**10, description="a larger model artifact is refused")

    @model_validator(mode="before")
    @classmethod
    def _empty_means_unset(cls, data: dict[str, Any]) -> dict[str, Any]:
        optional = ("database_url", "database_direct_url", "broker_url", "webhook_secret")
        return {name: value for name, value in data.items() if value != "" or name not in optional}

    @field_validator("database_url", "broker_url", mode="before")
    @classmethod
    def _embedded_means_none(cls, value: object) -> object:
        return None if value == _EMBEDDED else value

    @field_validator("signing_key", mode="before")
    @classmethod
    def _no_signing_key_by_accident(cls, value: object) -> object:
        if isinstance(value, str) and not value.strip():
            raise ValueError(
                "is empty, so that artifacts would be neither signed nor checked; give it a key, or take it away if"
                " that is meant"
            )
        return value

    @field_validator("database_url", "database_direct_url")
    @classmethod
    def _known_database_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        if value and value.get_secret_value().split("://")[0] not in {
            "postgresql",
            "postgres",
            "postgresql+psycopg",
        }:
            raise ValueError("must start with postgresql://")
        if value:
            _refuse_unescaped(value.get_secret_value())
        return value

    @field_validator("broker_url")
    @classmethod
    def _known_broker_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        schemes = {"redis", "rediss", "redis+socket", "valkey", "valkeys"}
        if value and value.get_secret_value().split("://")[0] not in schemes:
            raise ValueError("must start with redis://, rediss:// or redis+socket://")
        # Celery takes several for one broker and its stand-ins.
        for url in value.get_secret_value().split(";") if value else ():
            _refuse_unescaped(url)
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _usable_webhook_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value:
            webhook_secret.keys_of(value.get_secret_value())
        return value


def _refuse_unescaped(url: str) -> None:
    """Raise ValueError unless the URL can be read in one way only, and say nothing of what is in it.

    Of an unescaped password, programs take some part for the host, and show that.
    """
    scheme, separator, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    credentials, at, place = authority.rpartition("@")
    port = re.fullmatch(r"([^\[\]:]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?", place)
    if (
        not (scheme and separator)
        or rest.count("@") != len(at)
        or re.search(r"%(?![0-9A-Fa-f]{2})|[\s\[\]\\;]", credentials)
        or not port
        or not _splits(url)
    ):
        raise ValueError(
            "cannot be read as user:password@host:port/name; in user and password write @ as %40, : as %3A, / as %2F,"
            " ? as %3F, # as %23, % as %25, a space as %20, ; as %3B, [ as %5B, ] as %5D and other special characters"
            " likewise"
        )


def _splits(url: str) -> bool:
    try:
        urlsplit(url)
    except ValueError:
        return False
    return True


def load_settings() -> Settings:
    """Settings from the environment and .env. Raises SettingsError naming each variable that cannot be used."""
    try:
        settings = Settings()
    except ValidationError as error:
        # The value itself is left out: it may be a secret.
        complaints = "; ".join(
            f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise SettingsError(f"Cannot use the settings: {complaints}. Mend the environment or .env.") from None
    except (UnicodeDecodeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise SettingsError(f"Cannot read .env in {Path.cwd()}: {reason}.") from None
    _require_both_urls(settings)
    return settings


def _require_both_urls(settings: Settings) -> None:
    """A server that nobody asked for would be started in place of one that was forgotten."""
    urls = {"database_url": "PostgreSQL", "broker_url": "Valkey"}
    for name, server in urls.items():
        other = next(each for each in urls if each != name)
        if getattr(settings, other) and name not in settings.model_fields_set:
            raise SettingsError(
                f"{PREFIX}{other.upper()} is set and {PREFIX}{name.upper()} is not; set it, too, or to {_EMBEDDED} for"
                f" the embedded {server}."
            )
    if settings.database_direct_url and not settings.database_url:
        raise SettingsError(
            f"{PREFIX}DATABASE_DIRECT_URL is set and {PREFIX}DATABASE_URL names no server; set that, too,"
            " or take the first away."
        )
