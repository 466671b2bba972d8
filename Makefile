# Two commands do everything on a machine with python3, venv, git and make:
#   make quickstart   install, then train, evaluate and export the embedded example
#   make test         install, then pass all tests
# Each makes its own .venv when there is none. --no-compile: Python compiles what it imports; to compile all that is
# installed takes another two minutes.

PYTHON ?= python3
BIN := .venv/bin

# Images often set this; then every process would compile torch and transformers anew, which takes longer than to run them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-slow soak bench check format docs site clean

quickstart: .venv/installed
	$(BIN)/python -m trainer_loop.run config=quickstart.yaml

# Many tests wait for processes that they start, so there is one worker more than there are cores. A file's tests stay
# together, and files run in their order: those that start processes first, so that short ones are left for the end.
WORKERS := $(shell $(PYTHON) -c "import os; print(min(4, 1 + len(os.sched_getaffinity(0))))")
test: .venv/installed-dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# What takes minutes and is not part of `make test`: every adapter on every architecture, every optimizer with every
# schedule, every task in every way to shard a model, benchmarks on tiny sizes, kernels that are compiled on the spot,
# the stores of trackers and studies, the docs site, requests to the service of every task that nobody thought of.
test-slow: .venv/installed-dev .venv/installed-bench .venv/installed-stores .venv/installed-site
	$(BIN)/python -m pytest -m slow

# 300 random kills, half an hour; not part of `make test`. make soak SOAK="--kills 50 --seed 7"
SOAK ?= --kills 300
soak: .venv/installed-dev
	PYTHONPATH=tests $(BIN)/python tests/resume/soak.py $(SOAK)

# All benchmarks at their default sizes, hours on a CPU. DATA: a folder of train.parquet and test.parquet; else made up
DATA ?=
TEXTS := $(if $(DATA),--data $(DATA))
bench: .venv/installed-bench
	$(BIN)/python -m benchmarks.loop_overhead
	$(BIN)/python -m benchmarks.padding $(TEXTS)
	$(BIN)/python -m benchmarks.startup $(TEXTS)
	$(BIN)/python -m benchmarks.checkpoint
	$(BIN)/python -m benchmarks.memory $(TEXTS)
	$(BIN)/python -m benchmarks.scaling $(TEXTS)
	$(BIN)/python -m benchmarks.sharding $(TEXTS)
	$(BIN)/python -m benchmarks.at_scale
	$(BIN)/python -m benchmarks.loading
	$(BIN)/python -m benchmarks.fine_tune $(TEXTS)
	$(BIN)/python -m benchmarks.tasks
	$(BIN)/python -m benchmarks.fine_tune $(TEXTS) --attention-dropout
	$(if $(DATA),$(BIN)/python -m benchmarks.fine_tune $(TEXTS) --until-accuracy 0.85 --rows 4800 --held-out 2000)
	$(BIN)/python -m benchmarks.evaluation $(TEXTS)
	$(BIN)/python -m benchmarks.serving $(TEXTS)
	$(BIN)/python -m benchmarks.step_profile $(TEXTS)
	$(BIN)/python -m benchmarks.gpu || test $$? -eq 2  # 2: there is no GPU
	$(BIN)/python -m benchmarks.parity
	$(BIN)/python -m benchmarks.page

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
	$(BIN)/python -m trainer_loop.migrate.page
	$(BIN)/python -m trainer_loop.tasks.describe

# The docs as a site, with the API and a gallery of reports: open build/site/index.html.
site: .venv/installed-site
	$(BIN)/python -m docs.site.build

clean:
	rm -rf .venv

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --editable .
	touch $@

.venv/installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch .venv/installed $@

.venv/installed-stores: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[fuzz,trackers,postgresql]'
	touch .venv/installed $@

.venv/installed-site: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[site]'
	touch .venv/installed $@

.venv/installed-bench: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[bench]'
	touch .venv/installed $@
