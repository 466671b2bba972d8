# Two commands do everything on a machine with python3, venv, git and make:
#   make quickstart   install, then train, evaluate and export the embedded example
#   make test         install, then pass all tests
# Each makes its own .venv when there is none.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test soak check format docs clean

quickstart: .venv/installed
	$(BIN)/python -m trainer_loop.run config=quickstart.yaml

test: .venv/installed-dev
	$(BIN)/python -m pytest

# 300 random kills, half an hour; not part of `make test`. make soak SOAK="--kills 50 --seed 7"
SOAK ?= --kills 300
soak: .venv/installed-dev
	PYTHONPATH=tests $(BIN)/python tests/resume/soak.py $(SOAK)

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed
	$(BIN)/python -m trainer_loop.config.reference

clean:
	rm -rf .venv

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch .venv/installed $@
