# nanolm: `make help` lists what can be typed. Every target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A file of tests to a core, each with one thread: most are small, and threads wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install train test test-all browser check configs format bench clean

help:  ## list these targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv with everything in it (done once; again when pyproject.toml changes)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nanolm needs Python 3.11 or newer, and %s is %s: say make PYTHON=python3.12" % (sys.executable, sys.version.split()[0]))'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), once (torch is the large part)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

train: install  ## train a small GPT on the Python manual: a minute or two on two cores (ARGS="seed=2 model=gpt2")
	@$(BIN)/nanolm train $(ARGS)

test: install  ## the tests, without the slow proofs
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: install  ## every test: real training budgets, a clean installation from the wheel
	@$(PYTEST) $(ARGS)

browser:  ## install chromium and its driver, where they are missing: the report is tested in them (Debian, as root)
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0; \
	test "$$(id -u)" = 0 || { echo "as root: apt-get install chromium chromium-driver" >&2; exit 1; }; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium chromium-driver

check: install  ## lint, formatting, types, import layers, stale files in configs/, retired words
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m nanolm.config.yaml_options --check
	@$(BIN)/python scripts/check_words.py

configs: install  ## write the settings and comments of the options in configs/ from their schemas
	@$(BIN)/python -m nanolm.config.yaml_options

format: install  ## rewrite the code as `make check` wants it
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

bench: install  ## what the loop, attention, the tokenizers, the data and comparing cost, most as ratios of runs made in turn (some minutes)
	@for part in loop attention tokenizers data compare; do $(BIN)/python scripts/bench_$$part.py || exit 1; done

clean:  ## remove .venv and every cache (runs in outputs/ stay)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
