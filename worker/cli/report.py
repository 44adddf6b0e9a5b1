"""report."""

from __future__ import annotations

import sys
import webbrowser
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated

import typer

from db.errors import PgoutlierError
from worker.cli.context import open_runtime
from worker.cli.output import console, errors, print_json
from worker.cli.sources import AsJson, SourceName


class ReportError(PgoutlierError):
    """A report that cannot be written where it should go."""


def report(
    source: SourceName,
    version: Annotated[
        int | None,
        typer.Option(
            min=1, help="The page that was kept when this version was trained, in place of a live one."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to; - for standard output. Default: report-SOURCE.html."),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Look at this many of the newest rows of the table.")
    ] = 20_000,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pictures of a model and of what it scored, as one HTML page that needs no network.

    Without --version it is of the champion and the newest rows it has scored: errors against the threshold, what made
    flagged rows stand out, drift since the training, and ROC, precision and recall if the source has a label column.
    """
    runtime = open_runtime()
    from worker.report import of_source

    with errors.status("drawing") if errors.is_terminal else nullcontext():
        if version is None:
            version, page = of_source.live_page(runtime, source, newest=rows)
        else:
            page = of_source.kept_page(runtime, source, version)
    if output == Path("-"):
        sys.stdout.write(page)
        return
    path = output or Path(f"report-{source}.html")
    write_page(path, page)
    if as_json:
        print_json({"source": source, "version": version, "path": str(path), "n_bytes": len(page.encode())})
    else:
        console.print(
            f"{path} ({len(page.encode()) / 1e3:,.0f} kB, version {version})", highlight=False, soft_wrap=True
        )
    if show:
        webbrowser.open(path.resolve().as_uri())


def write_page(path: Path, page: str) -> None:
    """The page into the file, whole or not at all. Raises ReportError if that cannot be."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise ReportError(
            f"The report cannot be written to {path}: {error.strerror}; name another --output."
        ) from None
