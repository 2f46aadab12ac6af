# `make demo` and `make test` work from a clean clone: each installs what it needs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test test-ci test-release test-scale fuzz lint format docs clean

help:
	@echo "make demo    install, run the whole path on synthetic parts, name the report to open"
	@echo "make test    install what tests need and run them all"
	@echo "make test-release  the tests that take longest as well, before a release"
	@echo "make test-scale  the tests on a Ray cluster and an object store"
	@echo "make fuzz    damage every kind of file in 10,000 ways"
	@echo "make lint    ruff and mypy"
	@echo "make docs    build the documentation into site/"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# One stamp per extra; a change of the requirements installs anew.
$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing offnominal[$*] (where torch is among it, that takes a minute or two)"
	$(PIP) install --no-compile --constraint constraints.txt --editable ".[$*]"
	@touch $@

demo: $(VENV)/.fit
	$(BIN)/offnominal demo -o demo-report

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --dist loadscope --max-worker-restart 3 $(TESTS)

test-ci: $(VENV)/.test
	$(MAKE) test TESTS='-m "not release and not scale"'

test-release: $(VENV)/.test
	$(MAKE) test TESTS='-m "not scale"'

test-scale: $(VENV)/.test-scale
	$(BIN)/python -m pytest -m scale tests/scale

fuzz: $(VENV)/.test
	OFFNOMINAL_FUZZ=10000 $(BIN)/python -m pytest -n auto tests/fuzz

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site demo-report
