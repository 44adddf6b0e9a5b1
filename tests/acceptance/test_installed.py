"""The wheel, installed where nothing of ours is, and used from a folder whose modules have the names of our folders."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.acceptance.stack import Stack, Table
from tests.support import until

ROOT = Path(__file__).parents[2]
PARTS = ("db", "detector", "migrations", "models_store", "worker")
THEIRS = 'raise RuntimeError("a module of the user was imported")\n'


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for part in (*PARTS, "pgoutlier"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    built = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q")
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", built, source], check=True)
    return next(built.glob("pgoutlier-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel; what it depends on is taken from here, ourselves excepted."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    scheme = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", vars=scheme))
    options = ("--no-deps", "--no-index", "--disable-pip-version-check", "-q", "--target", site)
    subprocess.run([sys.executable, "-m", "pip", "install", *options, wheel], check=True)
    # A path in a .pth file is searched, but the .pth files there, such as that of this checkout, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture
def beside_theirs(stack: Stack, installed: Path) -> Stack:
    """Processes of the installed program, in a folder that holds modules of the user's own."""
    for name in PARTS:
        (stack.logs / f"{name}.py").write_text(THEIRS)
    for name in ("db", "worker"):
        (stack.logs / name).mkdir()
        (stack.logs / name / "__init__.py").write_text(THEIRS)
    stack.python = str(installed)
    return stack


def test_the_wheel_puts_nothing_but_pgoutlier_into_site_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"pgoutlier"}
    tracked = {
        f"pgoutlier/{path.relative_to(ROOT)}"
        for part in PARTS
        for path in (ROOT / part).rglob("*")
        if path.is_file() and path.suffix in {".py", ".html", ".mako"}
    }
    assert tracked - set(names) == set()


def test_up_and_a_task_work_installed_beside_modules_of_the_same_names(
    beside_theirs: Stack, table: Table
) -> None:
    where = subprocess.check_output(
        [beside_theirs.python, "-c", "import pgoutlier.worker as found; print(found.__file__)"],
        cwd=beside_theirs.logs,
        text=True,
    )
    assert not Path(where).is_relative_to(ROOT)
    up = beside_theirs.start("up", "pgoutlier.worker.cli", "up")
    table.insert(100)
    until(lambda: table.n_scored == 100, "rows are scored")
    arguments = json.dumps([table.name, 1, "kept"])
    done = beside_theirs.module(
        "celery", "-A", "pgoutlier.worker", "call", "models.tag", f"--args={arguments}"
    )
    assert done.returncode == 0, done.stderr
    until(
        lambda: beside_theirs.one("SELECT count(*) FROM outlier.model_tags WHERE tag = 'kept'") == 1,
        "the task ran",
    )
    up.child.send_signal(signal.SIGINT)
    assert up.child.wait(60) == 0, up.output()


def test_the_stock_celery_lines_work_installed_beside_modules_of_the_same_names(
    beside_theirs: Stack, table: Table
) -> None:
    worker, listener, beat = beside_theirs.score_worker(), beside_theirs.listener(), beside_theirs.beat()
    beside_theirs.until_ready(worker, listener)
    table.insert(100)
    until(lambda: table.n_scored == 100, "rows are scored")
    until(lambda: "beat_ready" in beat.output(), "beat is ready")
    done = beside_theirs.module("celery", "-A", "pgoutlier.worker", "inspect", "ping", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
