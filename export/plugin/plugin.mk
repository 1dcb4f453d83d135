# `make plugin`: the kernels compiled ahead of time, then the library that carries them.
# More kernels: make plugin PLUGIN_SET=full. Fewer GPUs or types build faster: make plugin
# PLUGIN_SM="90" PLUGIN_DTYPES="fp16"
PLUGIN_DIR := export/plugin
PLUGIN_BUILD ?= $(PLUGIN_DIR)/build
PLUGIN_SET ?= standard
PLUGIN_SM ?= 80 86 89 90 100 120
PLUGIN_DTYPES ?= fp16 bf16 fp32
# A Python that has triton; the project's own environment is made if it is not there.
ifndef PLUGIN_PYTHON
PLUGIN_PYTHON := $(abspath $(BIN)/python)
PLUGIN_INSTALLED := $(VENV)/.installed-dev
endif
PLUGIN_BIN := $(dir $(PLUGIN_PYTHON))
# For example -DTENSORRT_INCLUDE_DIR=/opt/tensorrt/include, and the same for clang-tidy:
# -isystem /opt/tensorrt/include
PLUGIN_CMAKE_FLAGS ?=
PLUGIN_INCLUDES ?=
PLUGIN_KERNELS := $(PLUGIN_DIR)/compile_kernels.py $(wildcard export/bilateral_export/op/kernel/*.py export/bilateral_export/op/kernel/*.csv)

.PHONY: plugin plugin-lint wheel

plugin: $(PLUGIN_BUILD)/cubins/manifest.json  ## the TensorRT plugin
	cmake -S $(PLUGIN_DIR) -B $(PLUGIN_BUILD) -DPython3_EXECUTABLE=$(PLUGIN_PYTHON) \
	  -DCUBINS_DIR=$(abspath $(PLUGIN_BUILD)/cubins) $(PLUGIN_CMAKE_FLAGS)
	cmake --build $(PLUGIN_BUILD) --parallel

$(PLUGIN_BUILD)/cubins/manifest.json: $(PLUGIN_KERNELS) | $(PLUGIN_INSTALLED)
	rm -rf $(PLUGIN_BUILD)/cubins
	mkdir -p $(PLUGIN_BUILD)
	PYTHONPATH=export $(PLUGIN_PYTHON) $(PLUGIN_DIR)/compile_kernels.py $(PLUGIN_BUILD)/cubins \
	  --set $(PLUGIN_SET) --sm $(PLUGIN_SM) --dtype $(PLUGIN_DTYPES)

wheel: plugin  ## a wheel for this platform that carries the plugin, in dist/
	$(PLUGIN_PYTHON) $(PLUGIN_DIR)/build_wheel.py $(PLUGIN_BUILD)/libbilateral_attention.so dist

# Needs the headers and no build. Without a C++ compiler there is no standard library to read.
plugin-lint: | $(PLUGIN_INSTALLED)  ## clang-format and clang-tidy
	$(PLUGIN_BIN)clang-format --dry-run --Werror \
	  $(wildcard $(PLUGIN_DIR)/src/* $(PLUGIN_DIR)/harness/* $(PLUGIN_DIR)/tests/*)
	if command -v c++ >/dev/null; then \
	  includes=$$($(PLUGIN_PYTHON) $(PLUGIN_DIR)/cmake/wheel_headers.py | sed 's/^/-isystem /'); \
	  printf '%s\n' $(wildcard $(addprefix $(PLUGIN_DIR)/,src/*.cpp harness/*.cpp tests/*.cpp)) \
	    | xargs -P 2 -I FILE $(PLUGIN_BIN)clang-tidy --quiet FILE -- -std=c++17 \
	      -I$(PLUGIN_DIR)/src -I$(PLUGIN_DIR)/tests $(PLUGIN_INCLUDES) $$includes; \
	else echo "clang-tidy left out: no C++ compiler"; fi
