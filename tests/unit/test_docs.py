"""The documentation says what the code does: settings, tasks, commands, recipes, links."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pgoutlier import detector
from pgoutlier.worker.cli.on_demand import load
from pgoutlier.worker.processes import plans

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]

# In a process of its own, because Celery reads its configuration once, and would start the embedded servers for it.
TASKS = """
import inspect, json
from pgoutlier.worker import tasks
from pgoutlier.worker.app import app
found = {}
for name, task in app.tasks.items():
    if task.run.__module__ == tasks.__name__:
        parameters = inspect.signature(task.run).parameters.values()
        arguments = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
        found[name] = [arguments, app.conf.task_routes.get(name, {}).get("queue", app.conf.task_default_queue)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def tasks() -> dict[str, list[Any]]:
    """(arguments with their defaults, queue) of each of our tasks, by name."""
    servers = {
        "PGOUTLIER_DATABASE_URL": "postgresql://no.server.invalid/db",
        "PGOUTLIER_BROKER_URL": "redis://no.broker.invalid:1/0",
    }
    done = subprocess.run(
        [sys.executable, "-c", TASKS],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **servers},
    )
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


def read(name: str) -> str:
    return (DOCS / name).read_text()


def settings_writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_settings", DOCS / "write_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands() -> dict[str, Any]:
    """Every command of the command line by its words, such as "models promote"."""
    found: dict[str, Any] = {}

    def collect(command: Any, words: tuple[str, ...]) -> None:
        found[" ".join(words)] = command
        for name, child in getattr(command, "commands", {}).items():
            collect(child, (*words, name))

    collect(load(), ())
    return found


def test_the_help_of_every_command_is_broken_by_the_terminal_alone() -> None:
    for words, command in commands().items():
        paragraphs = (command.help or "").split("\n\n")
        assert not [paragraph for paragraph in paragraphs if "\n" in paragraph.strip()], words


def shown_commands() -> list[tuple[str, list[str]]]:
    """(page, words) of each `pgoutlier ...` that a page shows in a block or between backticks."""
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        for line in lines:
            match = re.search(r"(?:^|docker compose run --rm |\.venv/bin/)pgoutlier (?P<rest>[a-z-].*)", line)
            if match and ("pgoutlier  " not in line):
                words = shlex.split(match["rest"].split(" | ")[0], comments=True)
                found.append((page.name, words))
    return found


def test_settings_are_in_step() -> None:
    assert read("settings.md") == settings_writer().page(), "run: make docs"


def test_every_task_is_documented_with_its_arguments_and_queue(tasks: dict[str, list[Any]]) -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \|(.*?)\| `(\w+)` \|", read("tasks.md"), re.MULTILINE)
    documented = {name: [re.findall(r"`([^`]+)`", arguments), queue] for name, arguments, queue in rows}
    assert documented == tasks


def test_every_task_is_called_once_on_the_page(tasks: dict[str, list[Any]]) -> None:
    called = re.findall(r"celery -A pgoutlier.worker call ([a-z_.]+)", read("tasks.md"))
    assert sorted(called) == sorted(tasks)


def test_the_process_command_lines_are_those_of_up() -> None:
    block = re.search(r"^```sh\n(celery .*?)^```", read("operations.md"), re.MULTILINE | re.DOTALL)
    assert block is not None
    programs = {"celery": ["-m", "celery"], "pgoutlier": ["-m", "pgoutlier.worker.cli"]}
    shown = [shlex.split(line) for line in block[1].splitlines()]
    assert [[*programs[first], *rest] for first, *rest in shown] == [
        plan.command[1:] for plan in plans(score_threads=2)
    ]


@pytest.mark.parametrize(
    ("page", "words"),
    shown_commands(),
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_command_that_is_shown_exists_with_its_options(page: str, words: list[str]) -> None:
    known = commands()
    path = next((p for n in (2, 1) if (p := " ".join(words[:n])) in known and len(words) >= n), None)
    if path is None:
        assert words[0].startswith("--"), f"{page}: no command {' '.join(words)}"
        path = ""
    if path == "psql":
        return
    options = {
        name for parameter in known[path].params for name in (*parameter.opts, *parameter.secondary_opts)
    }
    used = {word.split("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
    assert used <= options | {"--help", "-h"}, page


def walked_commands() -> list[str]:
    """Each `$ pgoutlier ...` of the guide, and each of its shell blocks."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```", read("guide.md"), re.MULTILINE | re.DOTALL)
    lines = [(shell, line.strip()) for shell, block in blocks for line in block.splitlines()]
    return [
        line.removeprefix("$ ")
        for shell, line in lines
        if line.startswith("pgoutlier " if shell == "sh" else "$ pgoutlier ")
    ]


@pytest.mark.parametrize("line", walked_commands())
def test_a_command_of_the_guide_is_taken_with_all_its_arguments(line: str) -> None:
    _, *words = shlex.split(line)
    known = commands()
    path = next(p for n in (2, 1) if (p := " ".join(words[:n])) in known)
    # Reads the arguments as the command line does, and runs nothing.
    assert known[path].make_context(path, words[len(path.split()) :]).info_name == path


def test_the_guide_is_walked() -> None:
    assert len(walked_commands()) > 40


@pytest.mark.parametrize(("command", "page"), [("attach", "guide.md"), ("evaluate", "evaluate.md")])
def test_every_option_is_explained(command: str, page: str) -> None:
    explained = read(page)
    for parameter in commands()[command].params:
        for option in parameter.opts:
            if option.startswith("--") and option not in {"--help"}:
                assert option in explained, option


def test_every_recipe_is_described() -> None:
    described = re.findall(
        r"^\| `([a-z0-9-]+)` \| [^|]+ \| (?:dense|windows|none)", read("models.md"), re.MULTILINE
    )
    assert described == list(detector.RECIPES)


def test_every_transform_and_label_is_explained() -> None:
    from pgoutlier.db.source.definition import TRANSFORMS
    from pgoutlier.db.source.labels import FRAUD_LABELS

    guide = read("guide.md")
    assert all(f"`{name}(" in guide for name in TRANSFORMS)
    assert all(f"`{label}`" in guide for label in FRAUD_LABELS if label != "1.0")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


def test_every_page_is_in_the_index() -> None:
    index = read("README.md")
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name
