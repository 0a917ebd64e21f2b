# `make` alone explains itself.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup evolve test test-processors evidence picture lint check docs format dashboard notebook clean

help:  ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(READY): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing; name another, 3.11 to 3.13: make setup PYTHON=python3" >&2; exit 2; }
	@echo "1 of 4: an empty environment, $(VENV): some seconds"
	@# One that was interrupted has no pip.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@# torch on its own first, in the version that is pinned: another package may ask for another one.
	@echo "2 of 4: PyTorch, the largest package: a minute or more; PyPI's comes with some GB of CUDA libraries"
	@$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.txt)"
	@echo "3 of 4: the $$(grep -c == requirements.txt) packages of requirements.txt: about 2 minutes"
	@$(BIN)/python -m pip install --quiet -r requirements.txt
	@echo "4 of 4: this project, as it lies here: some seconds"
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

setup: $(READY)  ## make the environment .venv with everything but POPGym
	@echo "$(VENV) is ready. Next: source $(BIN)/activate, and then erl; or make evolve, a small evolution"

evolve: $(READY)  ## run the main job at a small budget: a few minutes on 2 cores
	$(BIN)/python evolve_res.py --env_id HalfCheetah-v4 --sampler Cmaes --h_test quick --training_steps 100000 --nb_trials 18 --nb_seeds 2

test: $(READY)  ## all tests: 13 to 40 minutes on 2 cores, by processor
	$(BIN)/python -m pytest -n 2 --dist loadgroup -q --durations=25

# Processors round differently. These have the arithmetic of others, as far as this one has it too.
NUMERIC := tests/networks tests/populations tests/worlds tests/learners tests/lifetimes tests/search
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=Haswell
PLAIN := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41
AVX512 := OPENBLAS_CORETYPE=SkylakeX

test-processors: $(READY)  ## numeric tests with the arithmetic of other processors: about 12 minutes
	$(AVX2) $(BIN)/python -m pytest -n 2 --dist loadgroup -q $(NUMERIC)
	$(PLAIN) $(BIN)/python -m pytest -n 2 --dist loadgroup -q $(NUMERIC)
	if ! grep -q avx512f /proc/cpuinfo; then echo "no AVX-512 here: not run with it"; \
	else $(AVX512) $(BIN)/python -m pytest -n 2 --dist loadgroup -q $(NUMERIC); fi

evidence: $(READY)  ## a small version of every experiment of docs/results.md: under an hour on 2 cores
	@$(BIN)/python -m pip install --quiet --constraint requirements.txt --editable ".[popgym]"
	$(BIN)/python benchmarks/evidence.py run --folder evidence-small --small --workers 2
	$(BIN)/python benchmarks/evidence.py table --small evidence-small
	$(BIN)/python benchmarks/evidence.py cost

picture: $(READY)  ## which room imports which, and the sizes of modules and functions
	$(BIN)/python benchmarks/sizes.py

lint: $(READY)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint  ## what every commit must pass: format, lint, types, fast tests
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadgroup -q

docs: $(READY)  ## the website of the documents and of all modules, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(READY)  ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

dashboard: $(READY)  ## see the studies of studies.db in a browser; STORAGE=... for another database
	@# Not shown, since an address may hold a password.
	@$(BIN)/erl dashboard $(if $(STORAGE),--storage "$$STORAGE")

notebook: $(READY)  ## open the notebooks of analysis/ in JupyterLab
	$(BIN)/jupyter lab analysis

clean:  ## remove the environment and caches (no study, log or model)
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache *.egg-info
