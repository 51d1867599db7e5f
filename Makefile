# make demo   enhance a small simulated scan, from nothing to a page to look at
# make test   all tests, two files at a time (PYTEST_ARGS="-m 'not slow'" for the quick ones, one at a time)
# make lint   style, spelling, types, docstrings of public names
# make docs   the documentation, as docs/_build/index.html, warnings are errors
# Each makes its own virtual environment on first use.

PYTHON ?= python3
VENV   ?= .venv
# PyTorch is installed first, so that the build in pip's configuration (CPU only, another CUDA) is kept: the constraint
# below accepts any build of this version.
TORCH  ?= torch==2.13.0
PYTEST_ARGS ?= -n 2 --dist loadfile

PIP      = $(VENV)/bin/python -m pip
RECIPES  = setup.cfg pyproject.toml constraints.txt iqtflow/__init__.py

.PHONY: help demo test lint docs clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.installed
	$(VENV)/bin/python -m iqtflow.cli.commands.demo demo

test: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m codespell_lib
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/python docs/_ext/check_docstrings.py

docs: $(VENV)/.installed-docs
	$(VENV)/bin/python -m sphinx --jobs auto --fail-on-warning --keep-going --quiet -b html docs docs/_build

clean:
	rm -rf $(VENV) demo build dist docs/_build docs/api *.egg-info

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "iqtflow needs Python 3.10 or later; choose one: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(TORCH)
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(RECIPES)
	$(PIP) install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e '.[docs]'
	touch $@
