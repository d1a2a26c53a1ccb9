# `make demo` and `make test` need Python 3.11+, git and make, and set up everything else in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test quick orders faults fuzz lint format clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %s; try: make PYTHON=python3.12 ..." % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/istd_point.py --overwrite

# One process a core; the tests of a file share what they train, so a file stays in one process.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

test: $(STAMP)
	$(PYTEST)

# At every save: without what trains for long, starts processes or needs real images.
quick: $(STAMP)
	$(PYTEST) -m 'not slow and not data'

# No test may depend on the order, on the number of threads or cores, or on the state of a random generator.
orders: $(STAMP)
	$(PYTEST) --reverse --threads 2
	$(PYTEST) --random-order --seed 1 --threads 8
	taskset --cpu-list 0 $(BIN)/python -m pytest --random-order --seed 2

# Kills at a hundred moments, full disks, read-only folders, two runs at once; prints the counts.
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
fuzz: $(STAMP)
	FUZZ_CASES=$${FUZZ_CASES:-10000} $(BIN)/python -m pytest tests/fuzz

clean:
	rm -rf $(VENV) runs build *.egg-info
