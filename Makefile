# `make demo` and `make test` are all that a fresh clone needs. `make help` lists the rest.

PYTHON ?= python3
VENV   ?= .venv
# The release that the tests run against. Users choose their own: the project asks for torch>=2.4.
TORCH  ?= torch==2.13.0
# Interpreters for `make test-pythons`.
PYTHONS ?= python3.10 python3.11 python3.12 python3.13

BIN     := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(wildcard src/_core/*.pyx)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint test-compiled test-pure test-pythons bench bench-full build clean

help:
	@echo 'make demo          form a world of 64 nodes on an etcd of its own'
	@echo 'make test          lint and the whole test suite: compiled, pure, real etcd, real torchrun'
	@echo 'make test-pythons  the wheel, built from the sdist, tested on each of PYTHONS (without torch)'
	@echo 'make bench         the benchmarks, a short set; results go to benchmarks/results and into the README'
	@echo 'make bench-full    the same at all sizes, several times each: takes about an hour'
	@echo 'make build         sdist and wheel, into dist'
	@echo 'make clean         remove what the others made'

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed"'
	$(PYTHON) -m venv $(VENV)

# Editable: changes of Python code need no new build, changes of Cython code make one.
$(VENV)/.built: $(SOURCES) | $(VENV)/bin/python
	RENDEZVOUS_REQUIRE_EXTENSIONS=1 $(BIN)/python -m pip install -q -e '.[server]'
	touch $@

$(VENV)/.built-dev: $(VENV)/.built
	$(BIN)/python -m pip install -q '$(TORCH)'
	RENDEZVOUS_REQUIRE_EXTENSIONS=1 $(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

demo: $(VENV)/.built
	$(BIN)/rendezvous demo --nodes 64

test: lint test-compiled test-pure

lint: $(VENV)/.built-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest $(addprefix rendezvous._core.,_roster_c _state_c _swap_c)
	PATH="$(abspath $(BIN)):$$PATH" cython-lint src/_core

test-compiled: $(VENV)/.built-dev
	$(BIN)/python -m pytest --require-all

# What the core makes no difference to is tested once, above; its own tests go through both twins there.
test-pure: $(VENV)/.built-dev
	RENDEZVOUS_NO_EXTENSIONS=1 $(BIN)/python -m pytest --require-all -m both_twins

test-pythons: build
	for python in $(PYTHONS); do \
	  echo "== $$python" && rm -rf .venv-wheel && $$python -m venv .venv-wheel && \
	  .venv-wheel/bin/python -m pip install -q build && \
	  RENDEZVOUS_REQUIRE_EXTENSIONS=1 .venv-wheel/bin/python -m pip wheel -q --no-deps -w dist/wheels dist/*.tar.gz && \
	  .venv-wheel/bin/python -m pip install -q "etcd-rendezvous[test]" --find-links dist/wheels --no-cache-dir && \
	  .venv-wheel/bin/python -m pytest -q --ignore=tests/torchrun || exit 1; \
	done
	rm -rf .venv-wheel

bench: $(VENV)/.built-dev
	$(BIN)/python -m rendezvous.benchmarks.run

bench-full: $(VENV)/.built-dev
	$(BIN)/python -m rendezvous.benchmarks.run --full

build: $(VENV)/.built-dev
	rm -rf dist
	RENDEZVOUS_REQUIRE_EXTENSIONS=1 $(BIN)/python -m build -q

clean:
	rm -rf $(VENV) .venv-wheel build dist src/*.egg-info src/_core/*.c src/rendezvous/_core/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
