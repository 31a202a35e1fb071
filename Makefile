# `make demo` and `make test` set everything up on a fresh machine; nothing else is needed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo tutorial costs test lint types docs wheel check clean help

help:            ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)   ## train on the handwritten digits with 30 % wrong labels: uniform and RHO-LOSS side by side
	$(BIN)/python examples/quickstart.py

tutorial: $(READY)  ## run the tutorial notebook anew and write its outputs into it
	$(BIN)/python tests/execute_notebook.py examples/tutorial.ipynb

costs: $(READY)  ## print what selection costs and what comes of it, from the committed measurements
	$(BIN)/python examples/benchmarks/step_costs.py --report examples/results/step_costs.json
	$(BIN)/python examples/experiments/report.py fast fast-wide fast-clean fast-clean-mnist

test: $(READY)   ## run the tests
	$(BIN)/python -m pytest

lint: $(READY)   ## check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## check the types
	$(BIN)/mypy

docs: $(READY)   ## build the documentation, strictly, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

wheel: $(READY)  ## build the wheel, install it elsewhere and test it there
	sh .ci/wheel $(BIN)/python

check: lint types test demo docs wheel  ## everything that CI checks

clean:           ## remove what the commands made
	rm -rf $(VENV) build dist site results .pytest_cache .mypy_cache .ruff_cache .hypothesis
