# `make demo` and `make test` need Python 3.11+, git and make, and set up everything else in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test faults lint format clean

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %s; try: make PYTHON=python3.12 ..." % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/istd_point.py --overwrite

test: $(STAMP)
	$(BIN)/python -m pytest

faults: $(STAMP)
	PYTHONPATH=. $(BIN)/python tests/faults.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# 10,000 hostile data sets, and 10,000 settings and files, or as many as FUZZ_CASES says.
.PHONY: fuzz
fuzz: $(STAMP)
	FUZZ_CASES=$${FUZZ_CASES:-10000} $(BIN)/python -m pytest tests/fuzz

clean:
	rm -rf $(VENV) runs build *.egg-info
