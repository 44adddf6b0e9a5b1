"""webhook: who is told of flagged rows."""

from __future__ import annotations

from typing import Annotated

import typer

from pgoutlier.db.errors import WebhookError
from pgoutlier.worker.cli.arguments import AsJson, SourceName
from pgoutlier.worker.cli.context import open_runtime
from pgoutlier.worker.console import console, print_json, print_table
from pgoutlier.worker.notices import webhook_control

webhook = typer.Typer(
    no_args_is_help=True,
    help="Notices of flagged rows: written to outlier.notices with NOTIFY outlier_flagged, and sent to a URL. Off"
    " for a source until you set it. Every change is kept in outlier.source_events.",
)


@webhook.command("set")
def webhook_set(
    source: SourceName,
    url: Annotated[
        str | None, typer.Argument(help="Where notices are sent: https://host/path; http on this machine.")
    ] = None,
    notify_only: Annotated[
        bool, typer.Option("--notify-only", help="Write notices and NOTIFY, and send nothing.")
    ] = False,
    per_minute: Annotated[
        int | None, typer.Option(help="Requests a minute at most; 60 if you never say.")
    ] = None,
    insecure_http: Annotated[
        bool, typer.Option("--insecure-http", help="Allow http to other machines, where others can read it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Turn notices on for a source and say where they go. Safe to run again.

    From now on each row that becomes flagged is sent, at least once, as JSON that is signed with
    PGOUTLIER_WEBHOOK_SECRET; docs/operations.md shows how to check that.

    Example: pgoutlier webhook set payments https://alerts.example.com/flagged --per-minute 30
    """
    if (url is None) != notify_only:
        raise WebhookError("Say where to: a URL, or --notify-only to write notices and send nothing.")
    runtime = open_runtime()
    changed = webhook_control.set_webhook(
        runtime, source, url, per_minute=per_minute, insecure_http=insecure_http
    )
    unsigned = url is not None and runtime.settings.webhook_secret is None
    if as_json:
        print_json({"source": source, "changed": changed, "secret_is_set": not unsigned})
        return
    what = "sent" if url else "written to outlier.notices"
    console.print(f"Flagged rows of {source} are {what}{'' if changed else ', as before'}.", highlight=False)
    if unsigned:
        console.print(
            "There is no secret here to sign with: set PGOUTLIER_WEBHOOK_SECRET, also for the workers.",
            highlight=False,
        )


@webhook.command("list")
def webhook_list(as_json: AsJson = False) -> None:
    """All webhooks: where to, what waits, what was given up. Of a URL only the host is shown."""
    found = webhook_control.listing(open_runtime())
    if as_json:
        print_json(found)
        return
    if not found:
        console.print("Notices are off for every source. Turn them on: pgoutlier webhook set --help")
        return
    print_table(
        "",
        ["source", "url", "a minute", "wait", "dead", "note"],
        [
            (
                w.source,
                w.url or "none, notices only",
                w.per_minute,
                w.n_pending,
                w.n_dead,
                "; ".join(filter(None, ("" if w.enabled else "paused", w.problem))),
            )
            for w in found
        ],
    )


@webhook.command("pause")
def webhook_pause(source: SourceName, as_json: AsJson = False) -> None:
    """Send nothing until it is resumed; notices wait."""
    _say(source, "paused", webhook_control.set_enabled(open_runtime(), source, False), as_json=as_json)


@webhook.command("resume")
def webhook_resume(source: SourceName, as_json: AsJson = False) -> None:
    """Send again, what waited first."""
    _say(source, "resumed", webhook_control.set_enabled(open_runtime(), source, True), as_json=as_json)


@webhook.command("remove")
def webhook_remove(source: SourceName, as_json: AsJson = False) -> None:
    """Turn notices off. What was not sent never will be; notices can be read until they are pruned."""
    _say(source, "removed", webhook_control.remove(open_runtime(), source), as_json=as_json)


@webhook.command("test")
def webhook_test(source: SourceName, as_json: AsJson = False) -> None:
    """Send a signed sample from here, with the secret that is set here, and show the answer; exit 1 if it fails.

    Example: pgoutlier webhook test payments
    """
    answer = webhook_control.test(open_runtime(), source)
    if as_json:
        print_json(answer)
    else:
        console.print(
            f"It {answer.answer} ({answer.seconds} s, webhook-id {answer.webhook_id}).",
            highlight=False,
            markup=False,
        )


@webhook.command("dead")
def webhook_dead(
    source: SourceName,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Deliveries that were given up, with the last error. Send them again: pgoutlier webhook retry SOURCE."""
    found = webhook_control.dead_letters(open_runtime(), source, limit=limit)
    if as_json:
        print_json(found)
    elif not found:
        console.print("Nothing was given up.")
    else:
        columns = ["id", "n_notices", "first_id", "last_id", "attempts", "died_at", "last_error"]
        print_table("", columns, [[getattr(entry, c) for c in columns] for entry in found])


@webhook.command("retry")
def webhook_retry(source: SourceName, as_json: AsJson = False) -> None:
    """Send dead letters again, all of a source, each under its old webhook-id, and now what was put off."""
    done = webhook_control.retry(open_runtime(), source)
    if as_json:
        print_json({"source": source, **vars(done)})
    else:
        console.print(
            f"{done.n_notices:,} notices in {done.n_deliveries:,} deliveries are due again.",
            highlight=False,
        )


@webhook.command("history")
def webhook_history(
    source: SourceName,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Who did what with it and when."""
    events = webhook_control.history(open_runtime(), source, limit=limit)
    if as_json:
        print_json(events)
        return
    columns = ["created_at", "created_by", "action", "detail"]
    print_table("", columns, [[getattr(event, c) for c in columns] for event in events])


def _say(source: str, done: str, changed: bool, *, as_json: bool) -> None:
    if as_json:
        print_json({"source": source, "changed": changed})
    else:
        console.print(f"The webhook of {source} is {done}{'' if changed else ' already'}.", highlight=False)
