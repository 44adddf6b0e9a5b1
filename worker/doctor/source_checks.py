"""The checks of one source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import psycopg
from pydantic import ValidationError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from pgoutlier.db.ddl import installation, queue_triggers, written_columns
from pgoutlier.db.errors import PgoutlierError, first_line
from pgoutlier.db.notices import notices
from pgoutlier.db.roles import grants
from pgoutlier.db.scoring import past_statements, score_partitions, write_back
from pgoutlier.db.source import catalog
from pgoutlier.db.source.catalog import RelationInfo
from pgoutlier.db.source.definition import Source
from pgoutlier.db.sources import attach
from pgoutlier.db.sql import owners
from pgoutlier.db.sql.identifiers import display
from pgoutlier.db.status import overview
from pgoutlier.db.training import newest
from pgoutlier.db.upkeep import turns
from pgoutlier.db.versions import aliases
from pgoutlier.detector import Recipe
from pgoutlier.models_store import registry
from pgoutlier.models_store.artifact import ArtifactRefused
from pgoutlier.worker.doctor.finding import Finding, allowed
from pgoutlier.worker.runtime import Runtime
from pgoutlier.worker.scoring.sequences import index_advice, require_order

# Of fewer all are read within a second.
_MANY_ROWS = 1_000_000

Check = Callable[[Connection, Runtime, Source], Finding]


def of_source(connection: Connection, runtime: Runtime, source: Source) -> Iterator[Finding]:
    """Everything that has to be right for rows of the source to be scored, and what was turned on for it."""
    checks: tuple[Check, ...] = (_relation, _triggers, _views, _owners, _champion, _order, _newest, _problem)
    looks: list[Callable[[], Iterator[Finding]]] = [
        *(partial(_single, check, connection, runtime, source) for check in checks),
        partial(_rows_before, connection, source),
        partial(_challenger, connection, runtime, source),
        partial(_webhook, connection, runtime, source),
        partial(_columns, connection, source),
        partial(_kept, connection, source),
    ]
    # All behind one savepoint, for each costs as much as most checks; one by one where this role may not do one.
    try:
        with connection.begin_nested():
            found = [finding for look in looks for finding in look()]
    except (DBAPIError, psycopg.Error):
        found = [finding for look in looks for finding in allowed(connection, source.name, look)]
    yield from found


def _single(check: Check, connection: Connection, runtime: Runtime, source: Source) -> Iterator[Finding]:
    yield check(connection, runtime, source)


def _relation(connection: Connection, _: Runtime, source: Source) -> Finding:
    definition = source.definition
    if source.table_problem is not None:
        return Finding(
            source.name, False, source.table_problem, f"as it says, or: pgoutlier detach {source.name}"
        )
    try:
        changed = _changed_key(catalog.inspect(connection, definition.relation), source)
        if changed is not None:
            return changed
        attach.check_table(connection, definition)
        info = catalog.inspect(connection, definition.feature_relation)
        for feature in definition.features:
            for column in feature.columns:
                info.column(column)
        needed = [(r, "SELECT") for r in (definition.relation, definition.feature_relation)]
        grants = catalog.missing_grants(connection, needed)
    except PgoutlierError as error:
        return Finding(source.name, False, str(error), f"restore it, or: pgoutlier detach {source.name}")
    if grants:
        return Finding(source.name, False, "this role may not read the table", " ".join(grants))
    return Finding(source.name, True, definition.describe())


def _changed_key(table: RelationInfo, source: Source) -> Finding | None:
    key = source.definition.key
    for name, kind in zip(key.columns, key.types, strict=True):
        column, shown = table.columns.get(name), display(name)
        if column is None:
            return Finding(
                source.name,
                False,
                f"the key {shown} of {table.relation} is gone, so nothing is scored or removed",
                "if it has another name now, run the same `pgoutlier attach` again with that as --key; if there is"
                f" another key: pgoutlier adopt {source.name} --key COLUMN, which scores all rows anew",
            )
        if column.key_type != kind:
            return Finding(
                source.name,
                False,
                f"the key {shown} is {column.type_name} now, and was {kind}; rows whose keys do not fit wait",
                "run the same `pgoutlier attach` again, which keeps the scores",
            )
    return None


def _triggers(connection: Connection, _: Runtime, source: Source) -> Finding:
    states = installation.triggers_enabled(connection, source.definition)
    missing = [event for event, on in states.items() if not on]
    if not missing and catalog.is_subscribed(connection, source.definition.relation):
        return _replicated(connection, source)
    if not missing:
        return Finding(f"{source.name} triggers", True, "on INSERT and UPDATE")
    trigger = queue_triggers.trigger_name(source.name, missing[0])
    return Finding(
        f"{source.name} triggers",
        False,
        f"the {' and '.join(missing)} trigger is missing or disabled; only the sweep finds new rows",
        f"ALTER TABLE {source.definition.relation} ENABLE TRIGGER {trigger}; if it is gone,"
        " run the same `pgoutlier attach` again",
    )


def _replicated(connection: Connection, source: Source) -> Finding:
    what, relation = f"{source.name} triggers", source.definition.relation
    if installation.row_triggers_enabled(connection, source.definition):
        return Finding(what, True, "on INSERT and UPDATE, and for rows that logical replication applies")
    names = queue_triggers.row_triggers(source.definition)
    return Finding(
        what,
        False,
        f"logical replication writes {relation} and fires none of them: new rows wait for the sweep, and changed ones"
        " keep their scores",
        f"run the same `pgoutlier attach` again as an owner of {relation}; if they are there and disabled:"
        f" {' '.join(f'ALTER TABLE {relation} ENABLE REPLICA TRIGGER {name};' for name in names)}",
    )


def _views(connection: Connection, _: Runtime, source: Source) -> Finding:
    what, lacking = f"{source.name} views", installation.lacks(connection, source.definition)
    if source.migration is not None:
        relation = str(source.definition.relation).replace("'", "''")
        return Finding(
            what,
            False,
            f"a migration began at {source.migration['begun_at']} and has not ended: the views are away",
            f"SELECT outlier.after_migration('{relation}'); or, if it says that it cannot, run the same"
            " `pgoutlier attach` again, with the names that the columns have now",
        )
    open_to_all = installation.shows_too_much(connection, source.definition)
    if lacking or open_to_all:
        wrong = [f"there is no {', '.join(lacking)}"] if lacking else []
        if open_to_all:
            hidden = "rows that row-level security may hide, or scores of theirs"
            wrong.append(f"by {', '.join(open_to_all)} one sees {hidden}")
        mend = (
            "run the same `pgoutlier attach` again, and then `pgoutlier db grant` for each role that had it"
        )
        return Finding(what, False, "; ".join(wrong), mend)
    if catalog.has_policies(connection, source.definition.relation) and (
        readers := grants.readers_of_all_verdicts(connection)
    ):
        detail = f"{', '.join(map(display, readers))} may read outlier.verdicts, also those on rows that policies hide"
        mend = "; ".join(f"pgoutlier db grant {display(role)}" for role in readers)
        return Finding(what, False, detail, mend)
    cut_off = grants.analysts_without_rows(connection, source.definition)
    if cut_off:
        detail = f"{', '.join(cut_off)} may read them, and not what they show of {source.definition.relation}"
        return Finding(what, False, detail, "; ".join(f"pgoutlier db grant {role}" for role in cut_off))
    return Finding(what, True, "all there")


def _owners(connection: Connection, _: Runtime, source: Source) -> Finding:
    what = f"{source.name} owners"
    found = owners.of_source(connection, source.name, owners.schema_owner(connection))
    if not found:
        return Finding(what, True, "of the role that attached it")
    return Finding(
        what,
        False,
        "; ".join(map(str, found)),
        f"DROP {found[0].kind.upper()} {found[0].object} CASCADE, and run the same `pgoutlier attach` again",
    )


def _champion(connection: Connection, runtime: Runtime, source: Source) -> Finding:
    what = f"{source.name} champion"
    alias = aliases.alias(connection, source.id)
    if alias is None:
        return Finding(what, False, "none yet, so rows stay queued", f"pgoutlier train {source.name}")
    try:
        registry.load(
            connection,
            source,
            alias.version,
            seal=runtime.seal,
        )
    except ArtifactRefused as refusal:
        return Finding(what, False, str(refusal), f"pgoutlier models rollback {source.name}, or train anew")
    return Finding(what, True, f"version {alias.version}")


def _challenger(connection: Connection, runtime: Runtime, source: Source) -> Iterator[Finding]:
    """Nothing without a challenger."""
    challenger = aliases.both(connection, source.id).challenger
    if challenger is None:
        return
    what = f"{source.name} challenger"
    if challenger.problem:
        clear = f"pgoutlier models challenge {source.name} --clear"
        yield Finding(what, False, challenger.problem, f"mend that, or: {clear}")
        return
    yield Finding(what, True, f"version {challenger.version}")


def _webhook(connection: Connection, runtime: Runtime, source: Source) -> Iterator[Finding]:
    """Nothing where notices are off."""
    found = notices.figures(connection, [source.name]).get(source.name)
    if found is None:
        return
    what = f"{source.name} notices"
    if not all(notices.triggers_enabled(connection, source.name).values()):
        yield Finding(
            what, False, "a trigger is missing or disabled", "run the same `pgoutlier webhook set` again"
        )
    if found.sends and runtime.settings.webhook_secret is None:
        secret = "PGOUTLIER_WEBHOOK_SECRET"  # noqa: S105 - its name
        yield Finding(what, False, "there is no secret to sign with", f"set {secret}, also for the workers")
    elif found.problem or not found.enabled:
        yield Finding(
            what,
            False,
            found.problem or "the webhook is paused",
            f"pgoutlier webhook test {source.name}; if it is paused: pgoutlier webhook resume {source.name}",
        )
    elif found.n_dead:
        detail = f"{found.n_dead:,} in dead letters"
        yield Finding(
            what,
            False,
            detail,
            f"pgoutlier webhook dead {source.name}; pgoutlier webhook retry {source.name}",
        )
    else:
        yield Finding(what, True, f"{found.n_pending:,} wait" if found.sends else "written, not sent")


def _columns(connection: Connection, source: Source) -> Iterator[Finding]:
    """Nothing where the scores are not kept in the table itself."""
    if not source.definition.write_columns:
        return
    what, relation = f"{source.name} columns", source.definition.relation
    try:
        lacking = write_back.lacks(connection, source.definition)
    except PgoutlierError as error:
        yield Finding(what, False, str(error), f"restore it, or: pgoutlier detach {source.name}")
        return
    if lacking:
        yield Finding(
            what, False, f"there is no {', '.join(lacking)}", "run the same `pgoutlier attach` again"
        )
    elif not written_columns.may_write(connection, relation):
        role = catalog.server_facts(connection)["role"]
        grant = f"pgoutlier db grant {role} --as worker"
        yield Finding(what, False, f"{role} may not write them, so that as a worker it cannot score", grant)
    elif source.columns_filled_at is None:
        again = "run the same `pgoutlier attach` again, which goes on with that"
        yield Finding(what, False, "scores of before are not all copied", again)
    else:
        yield Finding(what, True, f"written in {relation}")


def _kept(connection: Connection, source: Source) -> Iterator[Finding]:
    """Nothing where scores are one table and stay until their row is gone."""
    definition, what = source.definition, f"{source.name} scores kept"
    if definition.keep_scores_days is None and definition.score_partitions is None:
        return
    days = definition.keep_scores_days
    kept = "until their row is gone" if days is None else f"{days:,} days by {definition.expires_by}"
    if definition.score_partitions is None:
        yield Finding(what, True, kept)
        return
    n_partitions = len(score_partitions.listed(connection, definition))
    n_outside = score_partitions.n_outside(connection, definition)
    detail = f"{kept}, in {n_partitions} partitions by {definition.score_partitions}, ~{n_outside:,} outside"
    if n_outside > score_partitions.MOST_MOVED:
        mend = "let beat prune; what is outside already, of more than that a period, goes row by row"
        yield Finding(what, False, f"{detail}, more than a prune moves into one", mend)
        return
    yield Finding(what, True, detail)


def _order(connection: Connection, runtime: Runtime, source: Source) -> Finding:
    """Whether a recipe that scores rows with those before them finds these."""
    what = f"{source.name} order"
    try:
        recipes = [Recipe.model_validate(source.recipe)]
        champion = registry.champion(connection, source, runtime.cache)
        if champion is not None:
            recipes.append(champion.detector.recipe)
        for recipe in recipes:
            require_order(recipe, source.definition)
        advice = index_advice(connection, source.definition, recipes)
    except (PgoutlierError, ArtifactRefused, ValidationError) as error:
        return Finding(what, False, first_line(error), f"train {source.name} by another recipe, or detach it")
    if advice:
        return Finding(what, False, "no index finds the rows before a row; scoring will be slow", advice)
    return Finding(what, True, "by the time column" if source.definition.time_column else "not needed")


def _rows_before(connection: Connection, source: Source) -> Iterator[Finding]:
    """Nothing without features over the rows before."""
    what, n = f"{source.name} rows before", len(source.definition.past_features)
    if not n:
        return
    advice = past_statements.missing_indexes(connection, source.definition)
    if advice:
        yield Finding(what, False, "no index finds them; scoring will be slow", " ".join(advice))
    else:
        yield Finding(what, True, f"found by index, for {n} feature{'s' if n > 1 else ''}")


def _newest(connection: Connection, _: Runtime, source: Source) -> Finding:
    """Whether the newest rows are found by index, where there are many."""
    what = f"{source.name} newest rows"
    advice = newest.missing_index(connection, source.definition)
    if advice is None:
        return Finding(what, True, "found by index")
    n_rows = turns.n_rows(connection, source.definition.relation)
    if n_rows < _MANY_ROWS:
        return Finding(what, True, f"found without an index; when there are many rows: {advice}")
    return Finding(what, False, f"no index finds them among {n_rows:,} rows", advice)


def _problem(connection: Connection, _: Runtime, source: Source) -> Finding:
    [found] = overview.describe(connection, [source])
    detail = f"{found.n_queued or 0:,} queued, {found.n_quarantined:,} in quarantine"
    if found.problem:
        return Finding(f"{source.name} queue", False, f"{detail}; {found.problem}", "see the sentence before")
    return Finding(f"{source.name} queue", True, detail)
