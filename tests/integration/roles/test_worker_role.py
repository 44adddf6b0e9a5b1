"""The role that docker-compose.yml makes for workers: the very SQL of its service, run by psql."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import yaml
from pydantic import SecretStr

from pgoutlier.worker.roles import granting
from pgoutlier.worker.runtime import make_runtime
from tests.servers import Postgres
from tests.support import Table

COMPOSE = yaml.safe_load((Path(__file__).parents[3] / "docker-compose.yml").read_text())
SCRIPT = COMPOSE["services"]["roles"]["command"][2]


def test_the_role_of_the_containers_scores_and_is_no_superuser(
    transactions: Table, postgres: Postgres
) -> None:
    user, url = transactions.user, transactions.runtime.engine.url
    statements = SCRIPT.split("<<'END'\n")[1].removesuffix("\n").removesuffix("END")
    for password in ("first", "it's second"):
        done = subprocess.run(
            [
                str(postgres.bin_dir / "psql"),
                "--no-psqlrc",
                "--set=ON_ERROR_STOP=1",
                url.set(drivername="postgresql").render_as_string(hide_password=False),
            ],
            input=statements,
            env={**os.environ, "WORKER_PASSWORD": password},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    try:
        assert user.execute(
            "SELECT rolcanlogin, rolsuper, rolcreatedb, rolcreaterole, rolbypassrls, rolpassword IS NOT NULL"
            " FROM pg_authid WHERE rolname = 'pgoutlier_worker'"
        ).fetchall() == [(True, False, False, False, False, True)]
        assert granting.grant(transactions.runtime, "pgoutlier_worker", "worker") == []
        own = url.set(username="pgoutlier_worker").render_as_string(hide_password=False)
        runtime = make_runtime(
            transactions.runtime.settings.model_copy(update={"database_url": SecretStr(own)})
        )
        worker = Table(user, runtime, "transactions")
        worker.promote()
        worker.insert(1, 20)
        assert worker.drain().n_scored == 20
        runtime.engine.dispose()
    finally:
        user.execute("DROP OWNED BY pgoutlier_worker CASCADE; DROP ROLE pgoutlier_worker")
