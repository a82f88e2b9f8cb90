# Every target works on a fresh machine: it first makes .venv and installs the package there.
# PYTHON=python3.12 picks another interpreter (3.10 or newer).
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
SEEDS ?= 0 1 2

.PHONY: demo test test-all check format tree tiny report clean

demo: $(STAMP)  ## the whole loop on the tiny models; stopped and called again, it goes on (remove quickstart/ to begin anew)
	$(BIN)/mmrlhf quickstart --out quickstart --resume

test: $(STAMP)  ## the tests that a change must pass
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-all: $(STAMP)  ## these, and the slow ones
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(STAMP)  ## style, undefined names, types, and which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

format: $(STAMP)  ## let ruff rewrite what `check` complains of
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tree: $(STAMP)  ## the README's file tree, from the files' docstrings
	$(BIN)/python -m tests.tree

tiny: $(STAMP)  ## train the shipped models again, into runs/tiny/models (hours without a GPU; resumable)
	$(BIN)/python -m pip install -e '.[tiny]'
	$(BIN)/mmrlhf tiny train --out runs/tiny/models
	$(BIN)/mmrlhf tiny train-llava --out runs/tiny/models/tiny-llava

report: $(STAMP)  ## the demo with several seeds, into runs/quickstart-SEED
	for seed in $(SEEDS); do $(BIN)/mmrlhf quickstart --out runs/quickstart-$$seed --seed $$seed --resume || exit 1; done

clean:  ## remove what the build and the tests leave (not .venv, runs or quickstart)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, " \
	    + sys.executable + " is " + sys.version.split()[0] + ": run make PYTHON=python3.12")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -e '.[all,dev]'
	touch $@
