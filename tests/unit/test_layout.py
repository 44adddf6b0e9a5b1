"""What is said of the layout holds: names of modules in comments and docstrings are those that there are."""

from __future__ import annotations

import ast
import importlib.util
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("db", "detector", "models_store", "worker")
NAMED = re.compile(r"(?<![\w./])((?:db|worker|models_store|detector)(?:\.[a-z_]\w*)+)")


def words(path: Path) -> Iterator[str]:
    """Comments and strings of several lines: what is written for readers."""
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT or token.string.startswith('"""'):
                yield token.string


def opens_a_transaction(path: Path) -> bool:
    """Whether something in it is asked for a connection, as engines are."""
    return any(
        isinstance(node, ast.Attribute) and node.attr in {"begin", "connect"}
        for node in ast.walk(ast.parse(path.read_text()))
    )


def exists(name: str) -> bool:
    """Whether it is a module of ours, or something in one."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.util.find_spec(".".join(("pgoutlier", *parts[:n])))
        except ModuleNotFoundError:
            found = None
        if found is not None:
            rest = parts[n:]
            return not rest or rest[0] in Path(str(found.origin)).read_text()
    return False


def test_modules_that_comments_and_docstrings_name_are_there() -> None:
    named = {
        (str(path.relative_to(ROOT)), name)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for text in words(path)
        for name in NAMED.findall(text)
    }
    assert len(named) > 50
    assert sorted((path, name) for path, name in named if not exists(name)) == []


def test_commands_open_no_transaction() -> None:
    opening = {path.name for path in (ROOT / "worker/cli").glob("*.py") if opens_a_transaction(path)}
    assert opening <= {"drift.py", "verdicts.py"}, "they call use cases, which do"


def test_tests_import_neither_each_other_nor_private_names() -> None:
    """What several of them need stands in a module of its own."""
    imported = [
        (str(path.relative_to(ROOT)), node.module or "", alias.name)
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert len(imported) > 500
    test_modules = [found for found in imported if found[1].rpartition(".")[2].startswith("test_")]
    private = [found for found in imported if found[2].startswith("_")]
    assert (test_modules, private) == ([], [])
