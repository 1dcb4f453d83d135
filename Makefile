# Two commands on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One torch version, so that no other package brings a newer one with gigabytes of CUDA libraries.
# On a machine with a GPU: make quickstart TORCH="torch>=2.8"
TORCH ?= torch==2.13.0
# Where torch comes from, if not from the index pip is set to: PyTorch's CPU index, for one.
TORCH_INDEX ?=

.PHONY: quickstart test lint format bench clean

quickstart: $(VENV)/.installed  ## checkpoint -> ONNX -> parity -> Triton -> gRPC, on the CPU
	$(BIN)/bilateral quickstart

# Two at a time, one thread each; what measures time runs alone afterwards.
test: $(VENV)/.installed-dev  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not timing"
	$(BIN)/python -m pytest -m timing

lint: $(VENV)/.installed-dev plugin-lint  ## ruff and mypy; clang-format and clang-tidy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev  ## everything that benchmarks/results holds; about 20 minutes
	$(BIN)/bilateral bench suite --output benchmarks/results/cpu.json

clean:
	rm -rf $(VENV) out build *.egg-info

include export/plugin/plugin.mk

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml Makefile | $(VENV)/bin/python
	@echo "Installing into $(VENV): torch first, then the rest"
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[export,server,bench]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@
