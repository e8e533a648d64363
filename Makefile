# The front door. `make` alone prints what there is.
#
# Everything works from a fresh clone: what is missing is installed where that is allowed, and named where not.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup dev machine test test-fast lint format demo demo-down chaos bench bench-hub clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH ?=
NODES ?= 2
ITEMS ?= 1000000
SEED ?= 7
MINUTES ?= 10
FAULTS ?=
ANSIBLE := ansible-core>=2.17
export PATH := $(CURDIR)/$(BIN):$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

help:  ## this list
	@echo "GridCore: many machines compute one thing together, then the next."; echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo; echo "make demo NODES=3 ITEMS=10000    a larger fleet, a smaller job"
	@echo "make chaos SEED=8 MINUTES=20 FAULTS=engine-hung,hub-slow    other faults in another order"
	@echo "make bench-hub BENCH=\"--nodes 1000 --setups sqlite\"    one size, one kind of hub; --quick to see that it runs"

setup: $(VENV)/.controller  ## what a controller needs to roll out and operate a fleet: Ansible, in .venv (half a minute)

dev: machine $(VENV)/.ready  ## what tests, demo and benchmarks need (they do it by themselves)

machine:
	@tests/fleet/machine.sh

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"GridCore needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Name another: make PYTHON=python3.12 …")'
	@$(PYTHON) -m venv $(VENV)

# Ansible alone: it brings the rest to the hosts.
$(VENV)/.controller: $(VENV)/bin/python
	@echo "python: installing Ansible into $(VENV)"
	@$(BIN)/pip install --quiet --disable-pip-version-check '$(ANSIBLE)'
	@mkdir -p .cache/collections/ansible_collections/idm
	@ln -sfn $(CURDIR)/ansible .cache/collections/ansible_collections/idm/gridcore
	@touch $@

$(VENV)/.ready: pyproject.toml | $(VENV)/.controller
	@echo "python: installing GridCore with its development tools into $(VENV) (about a minute)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[hub,agent,dev]'
	@touch $@

test: dev  ## everything that proves it: unit, contract, integration, a real fleet, Molecule
	@tests/run-all.sh

test-fast: dev  ## what needs no fleet: unit and contract tests
	@$(BIN)/python -m pytest tests/unit tests/contract

lint: dev  ## ruff, mypy --strict, ansible-lint (production profile)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/ansible-lint --offline -q
	@echo "lint: clean"

format: $(VENV)/.ready  ## let ruff write the code's format
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

demo: dev  ## a fleet of real hosts, rolled out by Ansible, computes a million squares
	@$(BIN)/python -m tests.fleet.demo --nodes $(NODES) --items $(ITEMS)

demo-down: $(VENV)/.ready  ## remove everything that the demo started
	@$(BIN)/python -m tests.fleet.demo --down

chaos: dev  ## break a fleet of its own in every way, repeatably, and see it recover
	@$(BIN)/python -m tests.fleet.chaos --seed $(SEED) --minutes $(MINUTES) --nodes $(NODES) --faults "$(FAULTS)"

bench: dev  ## what the agent costs and how fast it replaces a container, beside bare Docker (6 min)
	@$(BIN)/python -m tests.load.bench_agent $(BENCH)

bench-hub: dev  ## what a hub costs and how fast it tells 10,000 nodes of a switch, beside bare ASGI (10 min)
	@$(BIN)/python -m tests.load.bench_hub $(BENCH)

clean:  ## remove what was built here (not the images that the demo caches)
	@rm -rf $(VENV) .venv-newest .cache .demo .mypy_cache .ruff_cache .hypothesis dist build
