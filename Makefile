# Everything runs in an environment of its own, made from requirements.lock on first use and renewed
# when that file or pyproject.toml changes. It needs Python 3.11 or newer, and the network once.
#
#   make demo ARGS="--seeds 10"          passes options to the experiment
#   make test PYTEST_ARGS="-k krum"      passes options to pytest
#   make test PYTHON=/path/to/python3.12 chooses the interpreter of a new environment
#   make test VENV=.venv-lowest LOCK=requirements-lowest.lock   tries the lowest promised versions

VENV ?= .venv
LOCK ?= requirements.lock
PYTHON ?= python3.13 python3.12 python3.11 python3 python
PYTEST_ARGS ?= -n 2 --dist loadfile --max-worker-restart 0
RUN := $(VENV)/bin/python
READY := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo report publish docs test lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(READY)  ## reproduce Table 2e of Fang et al. (2020) on its real data, offline
	$(RUN) experiments/fang2020/table2.py --table 2e --seeds 1 $(ARGS)

report: $(READY)  ## gather all results in results/REPORT.md, and fill the tables of the READMEs
	$(RUN) experiments/make_report.py $(ARGS)

publish: $(READY)  ## copy FROM=results/PAPER/TABLE, whose rows name a commit, to the paper's folder
	$(RUN) experiments/publish.py $(FROM)

docs: $(READY)  ## build pages of the API from the docstrings, in build/docs
	$(RUN) -m pdoc --docformat google --output-directory build/docs fedjax_robust

test: $(READY)  ## run the tests
	$(RUN) -m pytest -q $(PYTEST_ARGS)

lint: $(READY)  ## check lint, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(READY)  ## fix what ruff can fix, and format
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:  ## remove .venv, caches and build output; results stay
	rm -rf .venv .venv-lowest build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment that is there already, whatever made it, is kept if its Python is new enough.
$(READY): $(LOCK) pyproject.toml
	@new_enough='import sys; sys.exit(sys.version_info < (3, 11))'; \
	$(RUN) -c "$$new_enough" 2>/dev/null && exit; \
	for python in $(PYTHON); do \
	  if $$python -c "$$new_enough" 2>/dev/null; then \
	    echo "making $(VENV) with $$($$python --version)"; \
	    exec $$python -m venv --clear "$(VENV)"; \
	  fi; \
	done; \
	echo "fedjax_robust needs Python 3.11 or newer; none among: $(PYTHON)." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	exit 1
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(RUN) -m ensurepip
	$(RUN) -m pip install --quiet --disable-pip-version-check -r $(LOCK)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
