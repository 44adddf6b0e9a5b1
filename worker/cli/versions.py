"""models history, diff, tag, untag, prune, export, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgoutlier.worker.cli.arguments import AsJson, SourceName, Version
from pgoutlier.worker.cli.context import open_runtime
from pgoutlier.worker.cli.models import print_history
from pgoutlier.worker.console import console, plain, print_json, print_table
from pgoutlier.worker.versions import comparing, version_files, versions

Tag = Annotated[str, typer.Argument(help="Letters, digits, dots, hyphens and underscores.")]
File = Annotated[Path, typer.Argument(help="The file.")]


def history(
    source: SourceName,
    alias: Annotated[
        str | None, typer.Option(help="Only moves of this alias: champion or challenger.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Who moved champion and challenger, when, from where to where and why; who tagged, pruned, exported, imported."""
    events = versions.history(open_runtime(), source, alias=alias, limit=limit)
    if as_json:
        print_json(events)
    elif not events:
        console.print("Nothing has been done with its versions yet.")
    else:
        print_history("", events)


def diff(source: SourceName, a: Version, b: Version, as_json: AsJson = False) -> None:
    """What differs between two versions: recipe, threshold, training rows, metrics, features.

    Example: pgoutlier models diff payments champion challenger
    """
    runtime = open_runtime()
    one, other = (versions.number(runtime, source, version) for version in (a, b))
    found = comparing.diff(runtime, source, one, other)
    if as_json:
        print_json(found)
        return
    parts = {part: getattr(found, part) for part in ("version", "recipe", "metrics", "features")}
    for part, differences in parts.items():
        if differences:
            rows = [(entry.what, _shown(entry.a), _shown(entry.b)) for entry in differences]
            print_table(part, ["what", f"version {one}", f"version {other}"], rows)
    same = [part for part, differences in parts.items() if not differences]
    if same:
        console.print(f"The same in both: {', '.join(same)}.", highlight=False)


def _shown(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def tag(source: SourceName, version: Version, name: Tag, as_json: AsJson = False) -> None:
    """Tag a version. A version with a tag is never pruned."""
    runtime = open_runtime()
    number = versions.number(runtime, source, version)
    changed = versions.tag(runtime, source, number, name)
    if as_json:
        print_json({"source": source, "version": number, "tag": name, "changed": changed})
    else:
        word = "now has" if changed else "already has"
        console.print(f"Version {number} of {source} {word} the tag {name}.", highlight=False, markup=False)


def untag(source: SourceName, version: Version, name: Tag, as_json: AsJson = False) -> None:
    """Take a tag away from a version."""
    runtime = open_runtime()
    number = versions.number(runtime, source, version)
    changed = versions.untag(runtime, source, number, name)
    if as_json:
        print_json({"source": source, "version": number, "tag": name, "changed": changed})
    else:
        word = "no longer has" if changed else "does not have"
        console.print(f"Version {number} of {source} {word} the tag {name}.", highlight=False, markup=False)


def prune(
    source: SourceName,
    keep: Annotated[
        int | None, typer.Option(min=1, help="How many of the newest stay (PGOUTLIER_KEEP_VERSIONS).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which would go, and change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove old versions, but none that was ever champion, is the challenger, has a job or a tag.

    Beat does the same now and then, with PGOUTLIER_KEEP_VERSIONS.
    """
    gone = versions.prune(open_runtime(), source, keep=keep, dry_run=dry_run)
    if as_json:
        print_json({"source": source, "removed": gone, "dry_run": dry_run})
    elif not gone:
        console.print(f"No version of {source} can go.", highlight=False)
    else:
        word = "Would remove" if dry_run else "Removed"
        noun = "version" if len(gone) == 1 else "versions"
        console.print(f"{word} {noun} {', '.join(map(str, gone))} of {source}.", highlight=False)


def export(source: SourceName, version: Version, file: File, as_json: AsJson = False) -> None:
    """Write a version to one file, for the same features in another database.

    The file has a sha256, and is signed when PGOUTLIER_SIGNING_KEY is set. Nothing in it can run.

    Example: pgoutlier models export payments champion payments-7.pgo
    """
    runtime = open_runtime()
    number = versions.number(runtime, source, version)
    n_bytes = version_files.export(runtime, source, number, file)
    if as_json:
        print_json({"source": source, "version": number, "path": plain(file), "n_bytes": n_bytes})
    else:
        console.print(
            f"{file} ({n_bytes / 1e3:,.0f} kB, version {number} of {source})",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def import_(source: SourceName, file: File, as_json: AsJson = False) -> None:
    """Make an exported file a version of a source with the same features. It is not promoted.

    What is truncated, changed, unsigned while a signing key is set, or no such file is refused, and nothing is stored.
    """
    number, made = version_files.import_(open_runtime(), source, file)
    if as_json:
        print_json({"source": source, "version": number, "imported": made})
    elif made:
        console.print(
            f"It is version {number} of {source} now. To try it: pgoutlier models challenge {source} {number}",
            highlight=False,
            soft_wrap=True,
        )
    else:
        console.print(f"{source} has it already: it is version {number}.", highlight=False)
