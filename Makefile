# Each target does its own set-up in .venv: it needs Python 3.11 or newer, make and a package registry, nothing else.
BIN := $(CURDIR)/.venv/bin
READY := .venv/.installed
PIP := "$(BIN)/python" -m pip install --quiet --disable-pip-version-check
export PATH := $(BIN):$(PATH)

# The first interpreter that runs, is new enough and can make environments. `make PYTHON=...` to choose.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
  $$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

.PHONY: help report test check verify docs lab bench export readme
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

report: .venv/.quarto ## every chapter executed on the embedded digits, as a book
	@"$(BIN)/genbook" report

test: $(READY) ## lint; every notebook executed once, and every test but those marked gpu or slow
	@ruff check . && ruff format --check .
	@OMP_NUM_THREADS=1 "$(BIN)/pytest" -n 2 --dist worksteal -m "not gpu and not slow"

check: $(READY) ## the fast half: lint, and the rules of the repository (clean, exported, paired, typed, ...)
	@ruff check . && ruff format --check .
	@"$(BIN)/pytest" tests/test_rules.py

verify: $(READY) ## do kept results still hold? all whose data are here: same, changed or cannot
	@OMP_NUM_THREADS=1 "$(BIN)/genbook" verify

docs: .venv/.quarto ## the site, in _docs (needs Quarto)
	@command -v quarto >/dev/null || { echo "make docs needs Quarto: install it from quarto.org, or pip install quarto-cli"; exit 1; }
	@touch README.md # newer than nbs/index.ipynb, so that nbdev does not write another one with Quarto
	@"$(BIN)/nbdev_docs"

lab: $(READY) ## Jupyter Lab on the notebooks
	@"$(BIN)/jupyter" lab nbs

bench: $(READY) ## throughput beside peers, import and start-up times, what a run costs beyond its notebook
	@"$(BIN)/python" -c "import pythae" 2>/dev/null || $(PIP) pythae==0.1.2 -c constraints.txt
	@OMP_NUM_THREADS=1 "$(BIN)/python" benchmarks/throughput.py

export: $(READY) ## before a commit: clean and format the notebooks, export the package, write README.md
	@nbdev_clean && python .ci/outputs.py && ruff format --quiet nbs tests && nbdev_export && python .ci/readme.py

readme: $(READY)
	@"$(BIN)/python" .ci/readme.py

$(READY): settings.ini setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "genbook needs Python 3.11 or newer, with its venv module"; exit 1; }
	@echo "Installing into .venv: once, some minutes"
	@"$(PYTHON)" -m venv .venv
	@$(PIP) -e ".[dev]" -c constraints.txt
	@touch $@

# Quarto is wanted, not needed, and tried once: remove .venv/.quarto to try again.
.venv/.quarto: $(READY)
	@command -v quarto >/dev/null || $(PIP) --retries 0 --timeout 15 quarto-cli >/dev/null 2>&1 || true
	@touch $@
