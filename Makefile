# kvern from a clone. Everything is installed into .venv; nothing outside this folder is touched but the model cache.
PYTHON ?= python3
PIP_FLAGS ?= --quiet --disable-pip-version-check
MODEL ?= smollm2
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(shell find native src -type f ! -name '*.so' ! -name '*.pyc' 2>/dev/null)

.PHONY: serve test check native sanitize bench model tools clean
.DELETE_ON_ERROR:

serve: $(VENV)/installed  ## install, fetch the demo model, serve it on 127.0.0.1:8000
	$(BIN)/kvern pull $(MODEL)
	$(BIN)/kvern serve $(MODEL)

test: $(VENV)/tested  ## install with the test extra and run every test; the model tests skip when it cannot be fetched
	-$(BIN)/kvern pull $(MODEL)
	$(BIN)/python -m pytest

check: $(VENV)/checked  ## style, types, import contracts, C++ format, house gates
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(wildcard native/*/*.h native/*/*.cpp native/*/*/*.h native/*/*/*.cpp)
	$(BIN)/python tools/gates.py
	PYTHONPATH=src $(BIN)/python tools/cli_reference.py --check

native: $(VENV)/checked  ## developer build of the extension into src/kvern, for PYTHONPATH=src
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/dev -G Ninja -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" >/dev/null
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/dev
	# Moved into place in one step: a process that has the old file mapped must not see it change.
	for file in build/dev/native/_native*.so; do \
	  cp "$$file" src/kvern/.new.so && mv src/kvern/.new.so "src/kvern/$$(basename "$$file")"; done

sanitize: $(VENV)/tested $(VENV)/checked  ## the native tests on a build with address and undefined-behaviour checks
	tools/sanitized_tests.sh $(BIN)/python

bench: $(VENV)/installed  ## the demo model's numbers; LLAMA_BENCH=... LLAMA_BATCHED_BENCH=... to compare
	$(BIN)/kvern pull $(MODEL)
	$(BIN)/python benchmarks/engine.py --model $(MODEL) \
	  $(if $(LLAMA_BENCH),--llama-bench $(LLAMA_BENCH)) \
	  $(if $(LLAMA_BATCHED_BENCH),--llama-batched-bench $(LLAMA_BATCHED_BENCH))

$(BIN)/python:
	@$(PYTHON) tools/prerequisites.py
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install $(PIP_FLAGS) .
	@touch $@

$(VENV)/tested: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install $(PIP_FLAGS) '.[test]'
	@touch $@ $(VENV)/installed

$(VENV)/checked: $(BIN)/python pyproject.toml
	$(BIN)/python tools/extra.py check build-system | xargs -d '\n' $(BIN)/python -m pip install $(PIP_FLAGS)
	@touch $@

clean:
	rm -rf $(VENV) build
