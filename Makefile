# Every target does its own set-up: a virtual environment with the pinned dependencies, then its job.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-slow fuzz lint docs wheel-test clean

quickstart: $(STAMP)
	rm -rf engines/kjv
	mkdir -p engines
	$(BIN)/l4export build examples/kjv/model -o engines/kjv
	$(BIN)/l4export parity engines/kjv --reference examples/kjv/model --prefill 200 --decode 64
	$(BIN)/l4export run engines/kjv --prompt "In the beginning" --max-new-tokens 120 --temperature 0.7 --seed 1 --stats

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadgroup -m "not slow" tests

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow tests

fuzz: $(STAMP)  # CLASS, CASES, SEED (the number of the first case) and JOBS may be given
	$(BIN)/python tests/fuzz $(if $(CLASS),--class $(CLASS)) $(if $(CASES),--cases $(CASES)) \
	    $(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS))

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --strict
	! grep -rE '(src|href)="?https?://' site --include='*.html'  # nothing is loaded from elsewhere

wheel-test: $(STAMP)
	VENV=$(VENV) bash tests/end_to_end/wheel_test.sh

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info engines site
