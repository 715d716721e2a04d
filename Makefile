# Everything a developer types. `make` alone lists it.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv-peers/bin
PEERS_READY := .venv-peers/.ready
CLAIMS := $(filter-out %/trials.py %/guidance.py,$(wildcard benchmarks/claims/*.py))

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow peers lint format bench claims

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## .venv with ringworld in it, at the versions of constraints.txt (once)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'ringworld needs Python 3.11 or newer; name one with make PYTHON=python3.12 ...' >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	@touch $@

demo: $(READY)  ## what the shipped model draws, sees and remembers, and how another learns: runs-out/demo/report.html
	@# Huge pages, on Linux: steps of 256 to 2K tokens a row took 8 to 15% less time with them, at 64 tokens no less.
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/ringworld demo

test: $(READY)  ## the fast tests
	@$(BIN)/python -m pytest -n auto -m 'not slow' $(ARGS)

slow: $(READY)  ## the tests that take longer
	@$(BIN)/python -m pytest -m slow $(ARGS) || [ $$? -eq 5 ]  # 5: there is no slow test

peers: $(PEERS_READY)  ## the tests against transformers, in .venv-peers with torch (2.3 GB with its CPU build)
	@$(PEERS)/python -m pytest tests/peers $(ARGS)

# Where pip knows an index with torch's CPU build, it takes that one: 2.13.0+cpu is newer to it than 2.13.0.
$(PEERS_READY): pyproject.toml constraints.txt constraints-peers.txt
	test -x $(PEERS)/python || $(PYTHON) -m venv .venv-peers
	$(PEERS)/python -m pip install --quiet -e '.[dev]' torch transformers -c constraints.txt -c constraints-peers.txt
	@touch $@

lint: $(READY)  ## ruff, pyright, and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

format: $(READY)  ## ruff's layout and its safe fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY)  ## the measurements behind the numbers in docs
	@for benchmark in benchmarks/*.py; do echo "== $$benchmark"; $(BIN)/python "$$benchmark" || exit 1; done

claims: $(READY)  ## the paper's claims at nano size, in about three hours (docs/claims.md); with MODEL=DIR also what it draws
	@for claim in $(CLAIMS); do echo "== $$claim"; $(BIN)/python "$$claim" || exit 1; done
	@test -z "$(MODEL)" || $(BIN)/python benchmarks/claims/guidance.py --model "$(MODEL)"
