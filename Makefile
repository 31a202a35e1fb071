# `make demo` and `make test` set everything up on a fresh machine; nothing else is needed.
# `make demo` installs into .venv what the demo needs. The other commands add the rest, the first time that one of them runs.
PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint .ci/constraints.txt
DEMO    := $(VENV)/.ready-for-demo
DEV     := $(VENV)/.ready-for-development

.PHONY: demo tutorial costs gpu test trackers trl engines oldest newest lint types docs wheel check clean help

help:            ## list the commands
	@grep -E '^[a-z ]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(DEMO): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	$(INSTALL) --editable '.[examples]'
	touch $@

$(DEV): $(DEMO)
	$(INSTALL) --editable '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # some packages ship files that do not compile
	touch $@

demo: $(DEMO)    ## train on the handwritten digits with 30 % wrong labels: uniform and RHO-LOSS side by side
	$(BIN)/python examples/quickstart.py

tutorial: $(DEV)  ## run the tutorial notebook again, and write its outputs into it and into its page
	$(BIN)/python tests/execute_notebook.py examples/tutorial.ipynb
	$(BIN)/python docs/tutorial.py

costs: $(DEMO)  ## print what selection costs and what comes of it, from the committed measurements
	$(BIN)/python examples/benchmarks/step_costs.py --report examples/results/step_costs.json
	$(BIN)/python examples/experiments/report.py fast fast-wide fast-clean fast-clean-mnist

gpu: $(DEV)  ## on a GPU: run the tests that need one, and print what a step with selection costs
	$(BIN)/python examples/benchmarks/gpu.py

test: $(DEV)   ## run the tests, in two processes
	$(BIN)/python -m pytest -n 2

trackers: .venv-trackers/.ready  ## run the tests of the trackers, with W&B, MLflow and Trackio
	.venv-trackers/bin/python -m pytest -p no:cacheprovider tests/integrations/test_trackers.py

trl: .venv-trl/.ready  ## run the tests of token selection in trainers, with TRL and PEFT
	.venv-trl/bin/python -m pytest -p no:cacheprovider tests/integrations/test_selected_token_loss.py

engines: .venv-engines/.ready  ## score on Ray Data, Spark, datasets and torchrun, and compare the stores (needs Java 17 for Spark)
	OMP_NUM_THREADS=1 .venv-engines/bin/python -m pytest tests/engine_runs.py -p no:cacheprovider
	OMP_NUM_THREADS=1 .venv-engines/bin/python examples/engines/compare_engines.py

.venv-engines/.ready .venv-trl/.ready: .venv-%/.ready: .ci/constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --no-compile --constraint $< --editable '.[test,$*]'
	touch $@

oldest newest: %: .venv-%/.ready  ## run the tests with the oldest releases that pyproject.toml admits, or the newest
	.venv-$@/bin/python -m pytest -p no:cacheprovider $(OTHERS_WARN)

# Releases that were not made for each other warn of each other; those warnings are no errors here.
OTHERS_WARN := -W default::FutureWarning -W default::DeprecationWarning
.venv-oldest/.ready: PYTHON = python3.10
.venv-trackers/.ready: EXTRAS = test,trackers
.venv-%/.ready: EXTRAS = test
.venv-%/.ready: .ci/constraints-%.txt pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --no-compile --constraint $< --editable '.[$(EXTRAS)]'
	touch $@

lint: $(DEV)   ## check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)  ## check the types
	$(BIN)/mypy

docs: $(DEV)   ## build the documentation, strictly, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

wheel: $(DEV)  ## build the wheel, install it elsewhere and test it there
	sh .ci/wheel $(BIN)/python

check: demo lint types docs wheel test  ## everything that CI checks

clean:           ## remove what the commands made
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-trackers .venv-engines .venv-trl build dist site results .pytest_cache .mypy_cache .ruff_cache .hypothesis
