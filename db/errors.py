"""Errors a user can mend. Each carries data and a sentence that says what is wrong and what to do next."""

from __future__ import annotations


class PgoutlierError(Exception):
    """Base of every error the command line prints as one sentence.

    exit_code: 2 for input that has to be changed, 1 for something that failed.
    """

    exit_code = 2

    def __init__(self, sentence: str, **data: object) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.data = data


class SettingsError(PgoutlierError):
    """A PGOUTLIER_* variable or .env line that cannot be used."""


class SourceError(PgoutlierError):
    """A relation, column, key or feature that cannot be watched, or no such source."""


class MissingPrivilege(SourceError):
    """The connecting role lacks a right; the sentence names the GRANT that mends it."""


class TableReplaced(SourceError):
    """The table of a source is gone, or another one has its name."""


class SchemaNotReady(PgoutlierError):
    """The schema `outlier` is missing or older than this program."""


class LockTaken(PgoutlierError):
    """A session of a role without rights here holds a lock of ours; the sentence says how to end it."""

    exit_code = 1


class LockLost(PgoutlierError):
    """A lock was held for longer than a transaction, and is another's by now."""

    exit_code = 1


class ModelError(PgoutlierError):
    """No such model version or alias, or a move of an alias that cannot be made."""


class NoChampion(ModelError):
    """Nothing scores the rows of a source yet."""

    def __init__(self, source_name: str) -> None:
        super().__init__(f"{source_name} has no champion yet; train one: pgoutlier train {source_name}")


class VerdictError(PgoutlierError):
    """A verdict that cannot be given, or a file of verdicts that cannot be read."""


class ScheduleError(PgoutlierError):
    """A schedule that cannot be kept: its task, arguments, crontab, interval or time zone; or no such schedule."""


class JobError(PgoutlierError):
    """No such job, or one that cannot be started, cancelled or resumed as things are."""


class WebhookError(PgoutlierError):
    """A webhook that cannot be used: its URL, its limit, no secret to sign with; or no such webhook."""


class DeliveryFailed(PgoutlierError):
    """The receiver of a webhook did not take what was sent."""

    exit_code = 1


class TrainingBusy(PgoutlierError):
    """Another training of the same source is under way."""

    exit_code = 1


class KeysTooLong(Exception):
    """Rows that cannot be read together, because one of their keys is so long: no fault of any of them."""


def first_line(error: BaseException) -> str:
    """The first line of an error, of the driver's where another library has wrapped it; its class if it says nothing.

    PostgreSQL's further lines may quote the user's data.
    """
    original = getattr(error, "orig", None) or error
    return (str(original).strip().splitlines() or [type(original).__name__])[0]
