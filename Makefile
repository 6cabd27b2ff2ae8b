# Every target does its own set-up: a virtual environment with the pinned dependencies, then its job.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-sanitized test-slow test-gpu fuzz fuzz-native lint docs wheel-test clean

quickstart: $(STAMP)
	rm -rf engines/kjv engines/shapes
	mkdir -p engines
	$(BIN)/l4export build examples/kjv/model -o engines/kjv
	$(BIN)/l4export parity engines/kjv --reference examples/kjv/model --prefill 200 --decode 64
	$(BIN)/l4export run engines/kjv --prompt "In the beginning" --max-new-tokens 120 --temperature 0.7 --seed 1 --stats
	$(BIN)/l4export build examples/shapes/model -o engines/shapes
	$(BIN)/l4export run engines/shapes --image examples/shapes/pictures/15.png --prompt "How many circles are there?"

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadgroup -m "not slow and not gpu and not sanitized" tests

test-sanitized: $(STAMP)  # the native library over conformance cases and corpora of the fuzzers
	$(BIN)/python -m pytest -n auto -m sanitized tests

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow tests

# On a GPU. GPU_PYTHON is a Python that has onnxruntime-gpu; without it an environment is made, with the extra `cuda`.
GPU_VENV ?= .venv-gpu
GPU_PYTHON ?= $(GPU_VENV)/bin/python
GPU_STAMP = $(if $(filter $(GPU_VENV)/bin/python,$(GPU_PYTHON)),$(GPU_VENV)/.installed)
GPU_LACKS = $$($(GPU_PYTHON) tests/gpu/lacking.py)

test-gpu: $(GPU_STAMP)
	test -z "$(GPU_LACKS)" || $(GPU_PYTHON) -m pip install --quiet --constraint constraints.txt $(GPU_LACKS)
	rm -f gpu-results.json  # two runs add to it: numbers side by side (few threads each); memory and speed alone
	OMP_NUM_THREADS=2 PYTHONPATH=. $(GPU_PYTHON) -m pytest --confcutdir tests/gpu -m gpu -k "parity" -n 4 tests/gpu
	PYTHONPATH=. $(GPU_PYTHON) -m pytest --confcutdir tests/gpu -m gpu -k "not parity" -n 0 tests/gpu

$(GPU_VENV)/.installed: pyproject.toml constraints.txt
	test -x $(GPU_VENV)/bin/python || $(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[cuda,reference]"
	touch $@

fuzz: $(STAMP)  # CLASS, CASES, SEED (the number of the first case) and JOBS may be given
	$(BIN)/python tests/fuzz $(if $(CLASS),--class $(CLASS)) $(if $(CASES),--cases $(CASES)) \
	    $(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS))

# The readers of the native library, by libFuzzer; clang is unpacked into build/ if it is not installed. TARGET may be given.
DURATION ?= 60
fuzz-native: $(STAMP)
	PATH=$(abspath $(BIN)):$$PATH runtimes/cpp/tests/fuzz/fuzz.sh $(DURATION) $(TARGET)

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
