# Two commands are all one needs: `make demo` and `make test`. Each makes .venv when it is
# missing and installs what it lacks; the second call starts at once.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
ARGS   ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# One empty file for each thing done to .venv. The Python's version stands in the first name,
# so that another PYTHON, like a changed pyproject.toml, makes .venv anew.
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
READY          := $(VENV)/.python-$(PYTHON_VERSION)
WITH           := $(VENV)/.with

# The workers of `make test` are the parallelism. OpenBLAS's own threads, which JAX's QR and
# Cholesky call, wait for one another in a spin: on busy cores that is a hundred times slower.
ONE_THREAD := OPENBLAS_NUM_THREADS=1 XLA_FLAGS="$(strip --xla_cpu_multi_thread_eigen=false $(XLA_FLAGS))"

SOLVE := import optx_lite as ox; assert ox.least_squares(lambda x: x - 2.0, [1.0]).success

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest lint format hooks bench notebook docs docs-serve build clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(WITH)-nothing-more ## fit certified problems, a robust one, and differentiate through a fit
	$(BIN)/python -m benchmarks.demo $(ARGS)

test: $(WITH)-test ## run the tests and the docstrings' examples (ARGS='-k trf' for some of them)
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-oldest: ## run the tests on the oldest supported jax, equinox and optax
	PIP_CONSTRAINT=$(CURDIR)/.ci/oldest.txt $(MAKE) test VENV=$(VENV)-oldest

lint: $(WITH)-lint ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(WITH)-lint ## mend what the linters can mend themselves
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(WITH)-lint ## run the linters before every commit
	$(BIN)/pre-commit install

bench: $(WITH)-bench ## print the table of speed beside the other packages
	$(BIN)/python -m benchmarks $(ARGS)

notebook: $(WITH)-notebook ## execute the notebooks in place
	$(BIN)/python notebooks/execute.py $(ARGS)

docs: $(WITH)-docs ## build the site, in docs/_build/html
	$(ONE_THREAD) $(BIN)/python -m sphinx -q -W --keep-going docs docs/_build/html
	$(BIN)/python docs/links.py docs/_build/html

docs-serve: docs ## build the site and show it at http://localhost:8000
	$(BIN)/python -m http.server --directory docs/_build/html --bind localhost

build: $(WITH)-release ## make wheel and sdist, in dist, and solve with the wheel alone
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip --disable-pip-version-check install dist/*.whl
	cd / && $(abspath $(VENV)-wheel)/bin/python -c '$(SOLVE)'

clean: ## remove .venv and everything else that was made
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-wheel build dist docs/_build docs/reference/generated docs/tutorials/*.ipynb .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "optx_lite needs Python 3.11 or later: try make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(WITH)-nothing-more: $(READY)
	$(PIP) install --editable .
	@touch $@

$(WITH)-%: $(READY)
	$(PIP) install --editable '.[$*]'
	@touch $@
