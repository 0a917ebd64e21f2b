# `make` alone explains itself.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup evolve test lint check format notebook clean

help:  ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing; name another 3.11 or newer: make PYTHON=python3" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch on its own first: asked for by another package it may come with gigabytes of CUDA libraries.
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

setup: $(READY)  ## make the environment .venv with everything in it

evolve: $(READY)  ## run the main job at a small budget: a few minutes on 2 cores
	$(BIN)/python evolve_res.py --env_id HalfCheetah-v4 --sampler Cmaes --h_test quick --training_steps 100000 --nb_trials 18 --nb_seeds 2

test: $(READY)  ## all tests: about 8 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: $(READY)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint  ## what every commit must pass: format, lint, types, fast tests
	$(BIN)/python -m pytest -m "not scripts" -n 2 --dist worksteal -q

format: $(READY)  ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

notebook: $(READY)  ## open the notebooks of analysis/ in JupyterLab
	$(BIN)/jupyter lab analysis

clean:  ## remove the environment and caches (no study, log or model)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
