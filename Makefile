# Everything runs inside .venv, which the first target that needs it creates. `make help` lists the targets.
#
#   make demo                       train and certify a small classifier
#   make test                       the tests
#   make test PYTEST_ARGS="-k prox" some of them
#   make demo PYTHON=python3.12     with another interpreter, when .venv does not exist yet

PYTHON ?= python3
PYTEST_ARGS ?=
MYPY_ARGS ?=
MKDOCS_ARGS ?=

# The demo: a new folder for every call, so that nothing is ever overwritten.
ifndef DEMO_RUN
DEMO_RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
endif
DEMO_TRAIN ?= --data digits --model lipschitz --radius 0.5 --seed 0

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --no-input --disable-pip-version-check -c constraints.txt

.NOTPARALLEL:
.PHONY: help demo test lint format types docs clean

help:
	@echo "make demo    train a certified classifier on handwritten digits, print its accuracies, draw its curve"
	@echo "make test    run the tests (PYTEST_ARGS=\"-m slow\": those that are left out)"
	@echo "make lint    check style and formatting (ruff)"
	@echo "make format  put style and formatting right where ruff can"
	@echo "make types   check types (mypy)"
	@echo "make docs    build the site of documentation and reference in site/, strictly (mkdocs)"
	@echo "make clean   remove .venv, caches and build outputs; runs/ stays"

demo: $(VENV)/.installed
	$(BIN)/mondeq train $(DEMO_TRAIN) --out $(DEMO_RUN)
	$(BIN)/mondeq certify $(DEMO_RUN)
	@echo "The certified-accuracy curve is $(DEMO_RUN)/certified_accuracy.png"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

types: $(VENV)/.installed-dev
	$(BIN)/python -m mypy $(MYPY_ARGS) mondeq splitting

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(MKDOCS_ARGS)

# A .venv that make did not create is neither changed nor removed.
python_says = $(shell $(PYTHON) -c '$(1)' 2>/dev/null)
$(VENV)/.created:
	$(if $(filter True,$(call python_says,import sys; print(sys.version_info >= (3, 11)))),,$(error '$(PYTHON)' is not Python 3.11 or newer; name one that is: make $(MAKECMDGOALS) PYTHON=/path/to/python3))
	$(if $(call python_says,import ensurepip; print(True)),,$(error '$(PYTHON)' comes without venv and pip; on Debian and Ubuntu install the package python3-venv))
	$(if $(wildcard $(VENV)),$(if $(wildcard $(VENV)/.made-by-make),,$(error $(VENV) exists and was not made by make; move it out of the way)))
	@mkdir -p $(VENV) && touch $(VENV)/.made-by-make
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Always with the constraints: without them pip may choose a different and much larger torch.
$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) -e '.[docs]'
	@touch $(VENV)/.installed $@

clean:
	@if [ -e $(VENV)/.made-by-make ]; then rm -rf $(VENV); fi
	rm -rf build dist site mondeq.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	find mondeq splitting tests experiments docs -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
