# Every target makes its own environment: nothing but make and Python >= 3.11 is needed.
# Paths stay relative, so that a checkout path with spaces works.

PYTHON ?= python3
VENV ?= .venv
PY = "$(VENV)/bin/python"
PYTEST_ARGS ?=
ARGS ?=

RUN_STAMP = $(VENV)/.installed-run
DEV_STAMP = $(VENV)/.installed-dev
VERSION_CHECK = import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	"kcompile needs Python 3.11 or newer, but %s is Python %s. Try: make PYTHON=python3.12 ..." \
	% (sys.executable, sys.version.split()[0]))

.DEFAULT_GOAL := help
.PHONY: help demo test slow lint lint-style lint-format lint-types lint-layers format bench fuzz zoo clean distclean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: $(RUN_STAMP)  ## show an occlusion map, full against incremental (ARGS=... is passed on)
	$(PY) -m examples.demo $(ARGS)

# One process per core with one thread each: small maps gain nothing from more threads.
test: $(DEV_STAMP)  ## run the default test suite (PYTEST_ARGS=... is passed on)
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

slow: $(DEV_STAMP)  ## run the tests marked slow or zoo
	$(PY) -m pytest -m "slow or zoo" $(PYTEST_ARGS)

lint: lint-style lint-format lint-types lint-layers  ## check style, formatting, types and import layers

lint-style: $(DEV_STAMP)
	$(PY) -m ruff check .

lint-format: $(DEV_STAMP)
	$(PY) -m ruff format --check .

lint-types: $(DEV_STAMP)
	$(PY) -m mypy

lint-layers: $(DEV_STAMP)
	"$(VENV)/bin/lint-imports" --no-cache

format: $(DEV_STAMP)  ## fix what ruff can fix, and format
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

bench: $(DEV_STAMP)  ## run the benchmarks (ARGS=... is passed on)
	$(PY) -m benchmarks $(ARGS)

fuzz: $(DEV_STAMP)  ## check 10,000 random networks; goes on where it stopped (ARGS=...)
	OMP_NUM_THREADS=1 $(PY) -m tests.fuzz --graphs 10000 --jobs 2 --state .fuzz/ $(ARGS)

zoo: $(DEV_STAMP)  ## try all of torchvision's and many of timm's models; goes on where it stopped (ARGS=...)
	$(PY) -m benchmarks.zoo $(ARGS)
	$(PY) -m benchmarks.zoo.onnx $(ARGS)

clean:  ## remove caches and build outputs
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find kcompile passes runtime cuda_ops tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + \
	    2>/dev/null || true

distclean: clean  ## remove the environment too
	rm -rf "$(VENV)"

$(VENV)/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) found. Try: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c '$(VERSION_CHECK)'
	@$(PYTHON) -m venv --clear "$(VENV)" || { rm -rf "$(VENV)"; \
	    echo "$(PYTHON) can't make virtual environments (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }

$(RUN_STAMP): pyproject.toml | $(VENV)/pyvenv.cfg
	@echo "Installing kcompile into $(VENV): a few minutes and several GB the first time (PyTorch)."
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable .
	@touch "$@"

$(DEV_STAMP): pyproject.toml | $(VENV)/pyvenv.cfg
	@echo "Installing kcompile with its development tools into $(VENV): a few minutes and several GB the first time."
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch "$@" "$(RUN_STAMP)"
