# lanmirror. `make help` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
# The releases under test, and that of the lab: bookworm and trixie of Debian, noble of Ubuntu.
DISTROS ?= bookworm trixie
export LANMIRROR_DISTRO ?= bookworm
# The same files are loaded hundreds of times, so Python keeps them compiled even where the environment says otherwise.
unexport PYTHONDONTWRITEBYTECODE
# Molecule in plain lines, which a log shows as they are.
export MOLECULE_COMMAND_BORDERS := false

.PHONY: help
help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.made: requirements-dev.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "lanmirror needs Python 3.11 or newer with venv: apt-get install python3-venv" >&2; exit 1; }
	[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.PHONY: docker
docker: ## Make a Docker engine and the base images ready (installs what is missing)
	@molecule/bootstrap $(DISTROS)

.PHONY: nginx
nginx: ## Make Nginx and other programs ready for the fast tests (installs what is missing)
	@molecule/bootstrap --nginx

# A lab that is not whole, for example since the machine was switched off, is made anew.
.PHONY: up
up: $(VENV)/.made ## Bring up a lab in containers: server and workstation, with packages installed through it
	@molecule/bootstrap $(LANMIRROR_DISTRO)
	[ "$$(docker ps --quiet --filter label=lanmirror.scenario=lab | wc -l)" = 3 ] || molecule destroy -s lab
	molecule converge -s lab
	molecule side-effect -s lab

.PHONY: show
show: ## Print what the roles have written on the machines of the lab
	@molecule/show

.PHONY: down
down: $(VENV)/.made ## Remove the lab
	@if docker info > /dev/null 2>&1; then molecule destroy -s lab; else echo "no Docker engine runs, and so no lab"; fi

.PHONY: lint
lint: lint-ansible lint-python ## Check the style of everything

.PHONY: lint-ansible
lint-ansible: $(VENV)/.made
	@yamllint --strict .
	ansible-lint --offline

.PHONY: lint-python
lint-python: $(VENV)/.made
	@ruff check .
	ruff format --check .
	mypy

.PHONY: unit
unit: $(VENV)/.made nginx ## Run the fast tests: engine, templates, specs
	@logs=$$(mktemp -d) code=0
	pytest -m slow > "$$logs/slow" 2>&1 &
	slow=$$!
	pytest -m 'not slow' tests/roles > "$$logs/roles" 2>&1 &
	roles=$$!
	pytest -m 'not slow' --ignore=tests/roles || code=$$?
	for one in "$$slow" "$$roles"; do wait "$$one" || code=$$?; done
	cat "$$logs/slow" "$$logs/roles"
	rm -r "$$logs"
	exit "$$code"

.PHONY: quick
quick: $(VENV)/.made nginx ## Run those that take a developer no minute
	@pytest -q -n auto -m 'not slow' tests/engine

.PHONY: molecule
molecule: default pair ssh ## Run the tests in containers, for each of DISTROS

.PHONY: default
default: $(VENV)/.made docker
	@for distro in $(DISTROS); do LANMIRROR_DISTRO=$$distro molecule test -s default; done

.PHONY: pair
pair: $(VENV)/.made docker
	@LANMIRROR_DISTRO=bookworm molecule test -s pair

.PHONY: ssh
ssh: $(VENV)/.made docker
	@LANMIRROR_DISTRO=bookworm molecule test -s ssh

# Two at a time, since none fills two cores by itself; the long ones first.
SIDE_BY_SIDE := $(MAKE) --jobs=2 --keep-going --output-sync=target --no-print-directory
.PHONY: test
test: ## Run everything: lint, pytest, Molecule
	@echo "lint runs while a Docker engine is made ready; pytest and the scenarios of Molecule run two at a time"
	echo "Each is printed when it has ended."
	$(SIDE_BY_SIDE) docker lint
	$(SIDE_BY_SIDE) default unit pair ssh

.PHONY: docs
docs: $(VENV)/.made ## Write the generated parts of the documentation again
	@python docs/generate.py
	python docs/whole.py

.PHONY: pictures
pictures: $(VENV)/.made ## Make what the README shows of the running lab: the portal's picture, the files (needs chromium)
	@molecule/picture
	python docs/generate.py --lab

.PHONY: clean
clean: ## Remove what the commands above made in this folder
	rm -rf $(VENV) .cache .ansible .mypy_cache .pytest_cache .ruff_cache .hypothesis
