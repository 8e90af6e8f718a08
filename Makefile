PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt

# One process per core, with one thread each: otherwise they wait for each other.
TEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --dist loadgroup

.PHONY: demo test test-slow check docs bench mutate lock clean

demo: $(VENV)/.installed  ## install, then run the main job on three hours of real radar
	$(VENV)/bin/nowcast demo $(DEMO)

test: $(VENV)/.installed-test check  ## install the test extras, then run the checks and the tests
	$(TEST)

test-slow: $(VENV)/.installed-test  ## the tests that take minutes
	$(TEST) -m "slow and not gpu"

check: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

docs: $(VENV)/.installed-docs  ## build the site into build/docs; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

bench: $(VENV)/.installed-test  ## print the measured figures
	$(VENV)/bin/python -m pytest -o addopts= tests/benchmarks/bench_*.py --benchmark-columns=min,median,max,rounds -s

mutate: $(VENV)/.installed-test  ## how many planted bugs the tests notice, of a sample: make mutate MUTATE='--count 10 store'
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.mutate $(MUTATE)

lock:  ## write requirements.lock anew: what constraints.txt pins, with hashes; needs uv
	uv pip compile pyproject.toml --extra all --extra mlflow --constraint constraints.txt --python-version 3.11 \
		--generate-hashes --no-annotate --custom-compile-command "make lock" --output-file requirements.lock

clean:  ## remove what make made; stores and trained networks (var, runs) stay
	rm -rf $(VENV) demo build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[all]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[test]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	touch $@
