# Two commands on a fresh machine: `make demo` and `make test`. Both make the environment first.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
COMPARED := erm,irmv1,vrex,group-dro,coral,mmd,causirl-coral,causirl-mmd,drm

.PHONY: help install demo test test-slow docs check format clean

help:
	@echo "make demo       compare nine algorithms on a bundled toy, in a few minutes"
	@echo "make test       the test suite"
	@echo "make test-slow  signals, kills, servers and a browser"
	@echo "make docs       docs/algorithms.md and docs/datasets.md from the code"
	@echo "make check      linters and types"
	@echo "make format     put the code in order"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "dgharness needs Python 3.11 or 3.12: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	@mkdir -p $(DEMO)
	@cd $(DEMO) && ../$(BIN)/dgharness sweep --algorithms $(COMPARED) --dataset colored-digits --target=-90% \
		--trials 3 --preset toy-colored-digits
	@cd $(DEMO) && ../$(BIN)/dgharness report colored-digits/leave-one-domain-out \
		--rule last,training-domain-validation,test-domain-validation --extra wga
	@echo
	@echo "MLflow on this result:  cd $(DEMO) && ../$(BIN)/mlflow server --backend-store-uri sqlite:///mlflow.db  (then open http://127.0.0.1:5000)"

test: install
	$(BIN)/python -m pytest -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -m slow

docs: install
	$(BIN)/python docs/generate_algorithms.py
	PYTHONPATH=tests/data $(BIN)/python docs/generate_datasets.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info
