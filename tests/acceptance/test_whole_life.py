"""The life of a model, with real processes, by the command line and plain SQL: from attach to rollback, by the guide.

A shop counts items in packs, and one day begins to count them piece by piece: that is the drift.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tests.acceptance.life import SETTINGS, Life, is_fraud, zone_where_it_is_noon
from tests.acceptance.stack import Stack, errors_of
from tests.cookbook import ANALYSTS, OPERATORS, SHOPS, Rows, answer
from tests.support import until

ATTACH = (
    *("attach", "shop.payments", "--features", "amount,items,online,hour(paid_at)"),
    *("--time", "paid_at", "--entity", "customer", "--label", "is_fraud"),
)
# Where the key has a time: in partitions, and for longer than any row here is old.
KEPT = {"id,paid_at": ("--partition-scores", "week", "--keep-scores", "3000d")}
GATE = "metrics -> 'gate' ->> 'reason'"


@pytest.fixture(params=SHOPS)
def life(request: pytest.FixtureRequest, stack: Stack) -> Iterator[Life]:
    """A shop with payments of ten days, an analyst's role, and nothing of ours but the processes and the schema."""
    stack.environment.update(SETTINGS)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with stack.connect() as owner:
        shop, key = SHOPS[request.param]
        made = Life(stack, owner, today, zone_where_it_is_noon(), key)
        owner.execute(f"SET TIME ZONE '{made.zone}'".encode())
        owner.execute(shop.encode())
        owner.execute("CREATE ROLE ana LOGIN")
        owner.execute("GRANT USAGE ON SCHEMA shop TO ana; GRANT SELECT ON shop.customers TO ana")
        owner.execute("SELECT setseed(0.25)")
        made.pay(1_500, days_ago=40, days=10)
        try:
            yield made
        finally:
            stack.stop()
            owner.execute("DROP OWNED BY ana CASCADE; DROP ROLE ana; DROP SCHEMA shop CASCADE")
            owner.execute("TRUNCATE outlier.schedules, outlier.schedule_events")


@pytest.mark.timeout(400)
def test_the_whole_life_of_a_model(life: Life) -> None:
    attach_and_train(life)
    live = score_live_rows(life)
    give_verdicts(life, live)
    the_shop_counts_pieces(life)
    drift_is_measured_as_soon_as_the_schedule_is_edited(life)
    drift_has_a_version_trained_which_waits_for_an_administrator(life)
    the_new_version_scores_as_the_challenger(life)
    the_gate_promotes_a_version_that_does_better(life)
    a_bad_version_is_refused_by_the_gate(life)
    the_champion_is_rolled_back(life)
    if life.key == "id":
        the_cookbook_returns_what_it_says(life)
    else:
        every_row_has_one_score_and_flag_and_verdict(life)
    assert errors_of(life.stack, "payments") == []
    assert all(process.alive() for process in life.stack.processes)


def attach_and_train(life: Life) -> None:
    stack = life.stack
    # Other tests had a beat on these servers.
    with stack.connect() as connection:
        connection.execute("TRUNCATE outlier.schedules, outlier.schedule_events, outlier.beats")
    with ThreadPoolExecutor(1) as starting:
        ready = starting.submit(start_processes, stack)
        assert "as source payments" in life.run(*ATTACH, "--key", life.key, *KEPT.get(life.key, ()))
        life.run("db", "grant", "ana")
        assert "It is the champion" in life.run("train", "payments")
        ready.result()
    life.moves.append(("champion", "promote", None, 1))
    # What the clock has trained is not what the test is about.
    until(
        lambda: life.sql("UPDATE outlier.schedules SET enabled = false WHERE name = 'retrain' RETURNING 1"),
        "beat has made the schedules",
    )


def start_processes(stack: Stack) -> None:
    stack.score_worker()
    stack.train_worker()
    stack.listener()
    stack.beat()
    stack.until_ready()


def score_live_rows(life: Life) -> range:
    """New rows are scored, each once; the rows from before attach are left alone."""
    keys = life.pay_and_wait(300, by_version=1, days_ago=20, days=10, pieces=1)
    assert life.one("SELECT count(*) FROM outlier.scores_payments") == 300
    assert life.one("SELECT count(*) FROM outlier.quarantine") == 0
    found = life.flagged(keys)
    assert {key for key in keys if is_fraud(key)} & found, "some fraud is found"
    return keys


def give_verdicts(life: Life, keys: range) -> None:
    """By command, of some that are not flagged too, and in SQL by an analyst's role."""
    normal = [key for key in keys if key % 10 == 1]
    said = life.run("label", "payments", *life.words(normal), "normal", "--note", "asked the customer")
    assert said == f"{len(normal)} verdicts recorded.\n"
    life.verdicts.update(dict.fromkeys(normal, "normal"))
    look_at_what_is_flagged(life, keys)


def look_at_what_is_flagged(life: Life, keys: range) -> None:
    """An analyst says of every fraud that it is one, and of all other flagged rows that they are normal."""
    with life.as_analyst() as ana:
        ana.execute(
            "INSERT INTO outlier.verdicts (source, key, verdict, note)"
            f" SELECT 'payments', {life.key_as_text},"
            " CASE WHEN id %% 25 = 0 THEN 'fraud' ELSE 'normal' END, 'looked at'"
            " FROM outlier.scored_payments WHERE id BETWEEN %s AND %s AND (flagged OR id %% 25 = 0)"
            " AND verdict IS NULL",
            (keys[0], keys[-1]),
        )
        ana.commit()
    looked_at = {key for key in keys if is_fraud(key)} | life.flagged(keys)
    life.verdicts.update({key: "fraud" if is_fraud(key) else "normal" for key in looked_at})


def the_shop_counts_pieces(life: Life) -> None:
    """Four in a pack. The champion does not know that, and flags many rows."""
    keys = life.pay_and_wait(1_500, by_version=1, days_ago=8, days=7, pieces=4)
    assert len(life.flagged(keys)) > 100
    look_at_what_is_flagged(life, keys)


def drift_is_measured_as_soon_as_the_schedule_is_edited(life: Life) -> None:
    """It is due once an hour; from the edit on once a second, with no process started anew."""
    assert life.one("SELECT count(*) FROM outlier.drift_reports") == 0
    assert "every 1 s; set" in life.run("schedule", "set", "drift", "--every", "1s")
    reports = "SELECT features -> 0 ->> 'feature' FROM outlier.drift_reports WHERE drifted AND version = 1"
    until(lambda: life.sql(reports), "drift is found")
    assert life.sql(reports)[0] == ("items",)


def drift_has_a_version_trained_which_waits_for_an_administrator(life: Life) -> None:
    """At most one training a day: until the first one is of yesterday nothing happens."""
    assert life.one("SELECT count(*) FROM outlier.training_runs") == 1
    a_day_goes_by(life)
    until(lambda: life.trained(2), "drift has a version trained")
    assert life.champion() == 1
    assert life.one(f"SELECT {GATE} FROM outlier.training_runs WHERE version = 2") == (
        "an administrator promotes versions of this source"
    )


def a_day_goes_by(life: Life) -> None:
    life.sql("UPDATE outlier.training_runs SET started_at = started_at - interval '1 day'")


def the_new_version_scores_as_the_challenger(life: Life) -> None:
    life.run("models", "challenge", "payments", "2", "--reason", "trained on pieces")
    life.moves.append(("challenger", "challenge", None, 2))
    keys = life.pay_and_wait(200, by_version=1, days_ago=1, days=1, pieces=4)
    life.by_challenger += keys
    compared = life.sql(
        "SELECT champion_version, challenger_version, rows, flagged_by_both + only_champion,"
        " only_champion > 10, only_challenger < 10 FROM outlier.comparison_payments"
    )
    assert compared == [(1, 2, 200, len(life.flagged(keys)), True, True)]
    look_at_what_is_flagged(life, keys)


def the_gate_promotes_a_version_that_does_better(life: Life) -> None:
    """On the newest rows, whose frauds are known by the verdicts. Then there is no drift any more."""
    life.run("models", "policy", "payments", "if_better")
    a_day_goes_by(life)
    until(lambda: life.trained(3), "drift has another version trained")
    assert life.champion() == 3
    life.moves.append(("champion", "promote", 1, 3))
    reason = life.one(f"SELECT {GATE} FROM outlier.training_runs WHERE version = 3")
    assert reason.startswith("better on 150 held-out rows: average precision")
    life.pay_and_wait(600, by_version=3, days_ago=0, days=0.5, pieces=4)
    reports = "SELECT drifted FROM outlier.drift_reports WHERE version = 3"
    until(lambda: life.sql(reports), "drift from the new champion is measured")
    assert life.sql(reports)[0] == (False,)
    life.sql("UPDATE outlier.schedules SET enabled = false WHERE name = 'drift'")


def a_bad_version_is_refused_by_the_gate(life: Life) -> None:
    """Trained by a schedule that is made in SQL, with a threshold that flags nearly every row."""
    life.sql(
        "INSERT INTO outlier.schedules (name, task, args, kwargs, every_seconds, next_run_at) VALUES"
        """ ('eager', 'models.train', '["payments"]', '{"threshold": "fixed:0.5"}', 86400, now())"""
    )
    until(lambda: life.trained(4), "the schedule's training has ended")
    reason = life.one(f"SELECT {GATE} FROM outlier.training_runs WHERE version = 4")
    assert "of the hold-out, above 30.00%" in reason
    assert life.one("SELECT promoted FROM outlier.training_runs WHERE version = 4") is False
    assert life.champion() == 3
    life.sql("DELETE FROM outlier.schedules WHERE name = 'eager'")


def the_champion_is_rolled_back(life: Life) -> None:
    """The next batch is scored by the version before; nothing was started anew."""
    said = life.run("models", "rollback", "payments", "--reason", "the shop counts packs again")
    assert said == "payments is back on version 1 (was 3).\n"
    life.moves.append(("champion", "rollback", 3, 1))
    life.by_challenger += life.pay_and_wait(50, by_version=1, days_ago=0.5, days=0.5, pieces=1)
    assert life.one("SELECT n_runs FROM outlier.schedules WHERE name = 'retrain'") == 0
    assert life.one("SELECT count(*) FROM outlier.training_runs") == 4


def every_row_has_one_score_and_flag_and_verdict(life: Life) -> None:
    """Under a key of several columns, where what the cookbook joins by `key` is joined by these."""
    joined = "FROM outlier.scored_payments s JOIN outlier.model_versions v ON v.version = s.model_version"
    assert life.one("SELECT count(*) FROM outlier.scores_payments") == life.n_rows - 1_500
    assert life.one(f"SELECT count(*) {joined}") == life.n_rows - 1_500
    assert (
        life.one(f"SELECT count(*) {joined} WHERE s.flagged <> (s.reconstruction_error > v.threshold)") == 0
    )
    given = dict(life.sql("SELECT id, verdict FROM outlier.scored_payments WHERE verdict IS NOT NULL"))
    assert given == life.verdicts
    assert life.one("SELECT sum(labelled) FROM outlier.quality_payments") == len(life.verdicts)


# -- the cookbook


def the_cookbook_returns_what_it_says(life: Life) -> None:
    with life.as_analyst() as ana:
        found = {title: of_this_life(ana, query, life) for title, query in ANALYSTS.items()}
    with psycopg.connect(life.stack.kit.postgres.url) as owner:
        asked = {title: answer(owner, query) for title, query in OPERATORS.items()}
    check_flags(life, found)
    check_quality(life, found)
    check_challenger(life, found)
    check_books(life, asked)


def of_this_life(ana: psycopg.Connection[Any], query: str, life: Life) -> Rows:
    """Of a row that there is, where a query is about one row or customer."""
    key = max(life.flagged(range(1, life.n_rows + 1)))
    rows = answer(ana, query.replace("20002", str(key)))
    ana.rollback()
    return rows


def flagged_rows(life: Life) -> list[tuple[int, int, date, float]]:
    """(key, customer, day, error) of rows whose error is above the threshold of the version that scored them."""
    return life.sql(
        "SELECT p.id, p.customer, p.paid_at::date, s.reconstruction_error FROM shop.payments p"
        " JOIN outlier.scores_payments s ON s.key = p.id"
        " JOIN outlier.model_versions v ON v.version = s.model_version"
        " WHERE s.reconstruction_error > v.threshold"
    )


def check_flags(life: Life, found: dict[str, Rows]) -> None:
    flagged = flagged_rows(life)
    assert len(flagged) > 100
    last = found["The last flagged rows"]
    assert len(last) == 100
    assert {row["id"] for row in last} <= {key for key, *_ in flagged}
    assert sum(row["flagged"] for row in found["Flagged per day"]) == len(flagged)
    per_day = Counter((customer, day) for _, customer, day, _ in flagged)
    shown = {(r["customer"], r["day"]): r["flagged"] for r in found["Flagged by customer and day"]}
    assert len(shown) == 50
    assert shown.items() <= per_day.items()
    assert list(shown.values()) == [n for _, n in per_day.most_common(50)]
    highest = [row["reconstruction_error"] for row in found["Highest errors today"]]
    assert highest == sorted((error for *_, error in flagged), reverse=True)[:20]
    why = found["Why was this row flagged"]
    assert {row["feature"] for row in why} == {"amount", "items", "online", "hour(paid_at)"}
    assert sum(row["share"] for row in why) == pytest.approx(1, rel=1e-5)
    countries = Counter(["CH", "DE", "FR"][customer % 3] for _, customer, *_ in flagged)
    beside = found["Flagged rows beside a table of your own"]
    assert {row["country"]: row["flagged"] for row in beside} == countries
    by_version = {row["model_version"]: row["scored"] for row in found["Which version scored how much"]}
    assert by_version == life.scored_by


def check_quality(life: Life, found: dict[str, Rows]) -> None:
    """Precision and recall by week, from the verdicts that the test has given."""
    flags = {key for key, *_ in flagged_rows(life)}
    paid = dict(life.sql("SELECT id, paid_at::date FROM shop.payments"))
    weeks: dict[date, list[tuple[bool, bool]]] = {}
    for key, verdict in life.verdicts.items():
        monday = paid[key] - timedelta(days=paid[key].weekday())
        weeks.setdefault(monday, []).append((verdict == "fraud", key in flags))
    assert len(weeks) > 2
    shown = found["Precision and recall by week"]
    assert [row["week"] for row in shown] == sorted(weeks)
    for row in shown:
        rows = weeks[row["week"]]
        assert row["labelled"] == len(rows)
        assert_share(row["precision"], [fraud for fraud, flagged in rows if flagged])
        assert_share(row["recall"], [flagged for fraud, flagged in rows if fraud])
    analysts = {row["analyst"]: row["verdicts"] for row in found["Verdicts by analyst"]}
    assert sum(analysts.values()) == len(life.verdicts)
    assert analysts["ana"] > 100
    assert found["Where analysts did not agree"] == []
    assert found["Verdicts on rows without a score"] == []


def assert_share(shown: Any, of: list[bool]) -> None:
    """The page rounds to three digits; the share of nothing is NULL."""
    assert (shown is None) == (not of)
    assert not of or float(shown) == pytest.approx(sum(of) / len(of), abs=6e-4)


def check_challenger(life: Life, found: dict[str, Rows]) -> None:
    """Those rows count that the champion of now and the challenger have both scored."""
    by_both = life.sql(
        "SELECT key, w.reconstruction_error > v.threshold, s.flagged FROM outlier.shadow_scores_payments w"
        " JOIN outlier.scores_payments s USING (key) JOIN outlier.model_versions v ON v.version = 2"
        " WHERE key = ANY (%s)",
        life.by_challenger,
    )
    alone = {key for key, would_flag, flagged in by_both if would_flag and not flagged}
    assert {row["id"] for row in found["What the challenger would have flagged"]} == alone
    (figures,) = found["Champion against challenger"]
    assert (figures["champion_version"], figures["challenger_version"]) == (1, 2)
    assert figures["rows"] == len(by_both) == len(life.by_challenger) == 250
    assert figures["only_challenger"] == len(alone) > 0


def check_books(life: Life, asked: dict[str, Rows]) -> None:
    """What operators see: nothing waits, four trainings, every move of an alias, who edited which schedule."""
    (queue,) = asked["Queue lag"]
    assert (queue["rows_queued"], queue["lag"], queue["put_off"]) == (0, timedelta(0), 0)
    moved = [
        (r["alias"], r["action"], r["from_version"], r["to_version"])
        for r in asked["Who moved an alias, when and why"]
    ]
    assert moved[::-1] == life.moves
    runs = asked["Trainings"]
    assert [(r["version"], r["promoted"]) for r in runs[::-1]] == [
        *((1, True), (2, False), (3, True), (4, False)),
    ]
    assert {r["version"]: r["alias"] for r in asked["Model versions, and which one scores"]} == {
        1: "champion",
        2: "challenger",
        3: None,
        4: None,
    }
    (drift,) = asked["Drift, the last report of each source"]
    assert (drift["name"], drift["version"], drift["drifted"]) == ("payments", 3, False)
    edits = {(r["schedule"], r["action"]) for r in asked["Who changed a schedule"]}
    edits = {(schedule, action) for schedule, action in edits if schedule == "eager" or action != "created"}
    assert edits == {
        *(("drift", "changed"), ("drift", "paused"), ("retrain", "paused")),
        *(("eager", "created"), ("eager", "deleted")),
    }
    due = {r["name"]: (r["due"], r["enabled"]) for r in asked["What runs when"]}
    assert due["drift"] == ("1 s", False)
    assert len(asked["Does beat tick"]) >= 1
    for quiet in ("What keeps failing", "Does scoring stand still, and why", "Quarantine, with the rows"):
        assert asked[quiet] == []
