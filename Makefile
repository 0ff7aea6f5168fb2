# Two commands:   make run    trains an agent        make test   runs the tests
# Needed: Python 3.11, 3.12 or 3.13 with pip, and make. Without make, see "plain pip" in the README.

PYTHON ?= python3
SCRIPT ?= chapter09_dqn/dqn.py
ARGS ?=

VENV := .venv
BENCH := .venv-bench
PY := $(VENV)/bin/python
BENCH_PY := $(BENCH)/bin/python
PIP_INSTALL := -m pip --disable-pip-version-check install --quiet
comma := ,

# A stamp says "everything in these files is installed" and holds the folder it was installed for: a
# project that was moved or copied installs again, since the old folder is where Python would look.
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
BENCH_STAMP := $(BENCH)/.installed-bench
stale_if_moved = $(shell test ! -e $(1) || test "$$(cat $(1))" = "$$(pwd -P)" || echo FORCE)

# $(call install,environment,its python,requirements file,what the user reads)
# The stamp is dated when the install began, so that a file edited meanwhile counts as changed, and it
# gets its name only when the install is complete.
define install
$(call ensure_venv,$(1),$(2))
@rm -f $@
@pwd -P > $@.part
@echo 'Installing $(3) into $(1) ($(4)) ...'
@$(2) $(PIP_INSTALL) -r $(3)
@mv $@.part $@
endef

# Errors are one sentence; the check itself runs on any Python, however old.
define ensure_venv
@test -x $(2) || command -v $(PYTHON) >/dev/null || { \
	echo "error: there is no '$(PYTHON)'; name a Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 ..." >&2; exit 1; }
@test -x $(2) || { $(call check_python,$(PYTHON),name another: make PYTHON=python3.12 ...) && $(PYTHON) -m venv $(1); }
@$(call check_python,$(2),remove it with: make clean)
@$(2) -m pip --version >/dev/null 2>&1 || $(2) -m ensurepip --upgrade >/dev/null
endef

# $(call check_python,python,remedy)
check_python = $(1) -c "import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or \
	sys.exit('error: Python 3.11, 3.12 or 3.13 is needed, but $(1) is Python %d.%d; $(2)' % v)"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: run test test-learning bench lint format list clean help FORCE

run: $(RUN_STAMP)  ## train an agent; SCRIPT=chapter09_dqn/dqn.py ARGS="--seed 1" PYTHON=python3.12
	@$(PY) $(SCRIPT) $(ARGS)

test: $(DEV_STAMP)  ## run the tests; ARGS="-k replay"
	@$(PY) -m pytest -m "not learning" -n 2 --dist loadfile $(ARGS)

test-learning: $(DEV_STAMP)  ## train every script to its full target: minutes each, not part of CI
	@$(PY) -m pytest -m learning $(ARGS)

bench: $(RUN_STAMP) $(BENCH_STAMP)  ## measure our speed against our peers; ARGS="--only ppo-cartpole"
	@PEER_PYTHON=$(BENCH_PY) $(PY) -m benchmarks $(ARGS)

lint: $(DEV_STAMP)  ## check format, style and types
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy common

format: $(DEV_STAMP)  ## format the code and repair what can be repaired
	@$(PY) -m ruff check --fix --exit-zero .
	@$(PY) -m ruff format .

list: $(RUN_STAMP)  ## list all scripts in book order
	@$(PY) -m common.catalog $(ARGS)

clean:  ## remove environments and caches; keeps runs/
	rm -rf $(VENV) $(BENCH) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(RUN_STAMP): requirements.txt pyproject.toml $(call stale_if_moved,$(RUN_STAMP))
	$(call install,$(VENV),$(PY),requirements.txt,about 2.7 GB$(comma) a few minutes)

$(DEV_STAMP): requirements-dev.txt $(RUN_STAMP)
	$(call install,$(VENV),$(PY),requirements-dev.txt,about 0.1 GB)

$(BENCH_STAMP): requirements-bench.txt
	$(call install,$(BENCH),$(BENCH_PY),requirements-bench.txt,PyTorch and JAX: 1 GB$(comma) several on Linux)
