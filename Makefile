# nanolm: `make help` lists the targets. Every target installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One test file per worker, each with one thread: most tests are too small for several threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install train test test-all browser check configs format bench clean

help:  ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## create .venv with all dependencies (once, and again when pyproject.toml changes)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nanolm needs Python 3.11 or newer, and %s is %s: use make PYTHON=python3.12" % (sys.executable, sys.version.split()[0]))'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), once (torch is the large part)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

train: install  ## train a small GPT on the Python manual: a minute or two on two cores (ARGS="seed=2 model=gpt2")
	@$(BIN)/nanolm train $(ARGS)

test: install  ## run the quick tests
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: install  ## run all tests, including slow ones: full training budgets, installing the wheel, lm-eval, notebooks
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lm-eval,notebook]'
	@$(PYTEST) $(ARGS)

browser:  ## install chromium and its driver for the tests of the report (Debian, as root)
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0; \
	test "$$(id -u)" = 0 || { echo "as root: apt-get install chromium chromium-driver" >&2; exit 1; }; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium chromium-driver

check: install  ## check style, types, import layers, generated YAML and retired words
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m nanolm.config.yaml_options --check
	@$(BIN)/python scripts/check_words.py

configs: install  ## write the YAML of every option in configs/ from its schema
	@$(BIN)/python -m nanolm.config.yaml_options

format: install  ## format the code and apply automatic fixes
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

bench: install  ## benchmark the loop, steps, attention, tokenizers, data, compare, generation and import, as ratios of paired runs (minutes)
	@for part in loop step attention tokenizers data compare generation import; do $(BIN)/python scripts/bench_$$part.py || exit 1; done

clean:  ## remove .venv and all caches; runs in outputs/ are kept
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
