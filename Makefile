# `make` lists the targets. OUT=FOLDER is where runs go, WORDS="key=value ..." is added to every command.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs
WORDS ?=
EXTRAS ?= dev,bench,sweep,torchcodec,tensorboard,constrained,dashboards

.PHONY: help install demo test test-long test-all faults lint types studies study docs golden bench spice clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

install: .venv/installed ## make .venv with everything pinned in constraints.txt

demo: .venv/installed ## the main job on a laptop: two controls, then a sweep over num_frames
	@echo "== control 1 of 2: one frame cannot tell"
	$(BIN)/python -m dashvlm.train experiment=crash_demo data.num_frames=1 paths.output_dir=$(OUT)/demo $(WORDS)
	@echo "== control 2 of 2: all pixels grey, in training too"
	$(BIN)/python -m dashvlm.train experiment=crash_demo data.num_frames=4 data.pixels=off paths.output_dir=$(OUT)/demo $(WORDS)
	@echo "== the sweep"
	$(BIN)/python -m dashvlm.train experiment=crash_demo -m data.num_frames=2,4,8 paths.output_dir=$(OUT)/demo $(WORDS)

test: lint types ## lint, types and the default tests (ten minutes)
	$(BIN)/python -m pytest -m "not exhaustive and not long" -n 2 --dist loadgroup

test-long: .venv/installed ## the tests that take long: demos, notebooks, kills, two processes
	$(BIN)/python -m pytest -m "long and not exhaustive" -n 2 --dist loadgroup

faults: .venv/installed ## every attack and fault, counted: class, tried, held
	rm -f $(OUT)/faults.jsonl; mkdir -p $(OUT)
	FAULTS_FILE=$(abspath $(OUT))/faults.jsonl $(BIN)/python -m pytest tests/attacks tests/faults -q -n 2 --dist loadgroup; \
	$(BIN)/python -m tests.faults_table $(OUT)/faults.jsonl

test-all: lint types ## the same with the long repetitions (20 kills, ...)
	$(BIN)/python -m pytest -n 2

lint: .venv/installed ## ruff check and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed ## mypy, strict
	$(BIN)/mypy

studies: .venv/installed ## make the tables of all studies again, from their data and from runs in OUT
	$(BIN)/python -m dashvlm.report study=all freeze=true paths.output_dir=$(OUT) $(WORDS)

study: .venv/installed ## print how to run a study (NAME=..., SMOKE=1), or run it (RUN=1)
	@test -n "$(NAME)" || { echo "say which: make study NAME=..., one of $$(ls experiments | grep -v README | tr '\n' ' ')"; exit 2; }
	@command="$$($(BIN)/python -m dashvlm.report study=$(NAME) command=$(if $(SMOKE),smoke,full))" && test -n "$$command" || exit 2; \
	if [ -n "$(RUN)" ]; then $(BIN)/$$command paths.output_dir=$(OUT) $(WORDS); else echo "$(BIN)/$$command paths.output_dir=$(OUT) $(WORDS)"; fi

docs: .venv/installed ## make the pages of the config groups again
	$(BIN)/python -m tests.config_pages

golden: .venv/installed ## make the record of small runs again (tests/golden.json)
	$(BIN)/python -m tests.golden tests/golden.json

bench: .venv/installed ## speed and memory as ratios against named alternatives (BEFORE=another checkout)
	$(BIN)/python -m tests.bench $(BEFORE)

spice: .venv/installed ## fetch the jars that SPICE needs, from Maven Central or JARS=FOLDER
	$(BIN)/python -m dashvlm.metrics.fetch_spice $(if $(JARS),--source $(JARS))

clean: ## remove caches, not runs
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
