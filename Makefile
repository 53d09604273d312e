# Short names for everything. Each target sets up .venv automatically; it needs a Python >= 3.10 (choose one with
# PYTHON=...) and a C++ compiler. PIP_EXTRA is passed to pip, for example
#   make run PIP_EXTRA='--extra-index-url https://download.pytorch.org/whl/cpu'

SHELL := bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_EXTRA ?=
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONDONTWRITEBYTECODE  # each of the tests' many processes would compile all modules again

# Tests use one thread each, unless they say otherwise, so one runs per core.
PARALLEL ?= -n auto --maxprocesses 8 --dist worksteal

CXX_FILES = $(shell find csrc examples tests tools -name '.*' -prune -o -name '*.cpp' -print -o -name '*.h' -print \
	-o -name '*.cu' -print -o -name '*.cuh' -print)

.PHONY: run
run: $(VENV)/.app build  ## split the bundled photos and reconstruct them, with timings (`wae demo`)
	$(BIN)/wae demo

# For a recipe that calls make: a job for each core, unless a make above already shares out jobs.
JOBS = $(if $(findstring --jobserver,$(MAKEFLAGS)),,-j$$(getconf _NPROCESSORS_ONLN))

.PHONY: test
test: $(VENV)/.dev  ## everything that must pass: lint, types, C++ under sanitizers, all tests
	@$(MAKE) --no-print-directory $(JOBS) lint sanitize build  # together: lint, for example, uses one core only
	$(BIN)/python -m pytest $(PARALLEL)

.PHONY: quick
quick: $(VENV)/.dev build  ## the tests that are not slow, up to the first failure (about 3 minutes)
	$(BIN)/python -m pytest -m "not slow" -x $(PARALLEL)

.PHONY: bench
bench: $(VENV)/.dev build  ## measure what docs/benchmarks.md claims (about 15 minutes), and write the tables and plots
	$(BIN)/python -m pytest benches --seconds 2 --keep benches/results
	$(BIN)/python -m benches.report

# Arguments of pytest's -k; together they select everything. Each case is saved when it is done, so PARTS="ResNet50 sizes"
# resumes there.
PARTS ?= bench_ops VGG16 ResNet50 sizes
.PHONY: bench-full
bench-full: $(VENV)/.dev build  ## measure everything, in PARTS
	set -e; for part in $(PARTS); do \
		$(BIN)/python -m pytest benches --full -k $$part --keep benches/results; \
	done
	$(BIN)/python -m benches.report

.PHONY: cuda
cuda: $(VENV)/.dev  ## compile the CUDA library in place; for all architectures if there is no GPU (some 5 minutes of one core)
	FORCE_CUDA=1 $(BIN)/python setup.py build_ext --inplace

# "make gpu PYTHON=python3 VENV=" installs nothing and uses that interpreter as it is.
.PHONY: gpu
gpu: $(if $(VENV),$(VENV)/.dev)  ## on a machine with a GPU: build, test, measure (tools/gpu.sh); VENV= installs nothing
	PYTHON=$(if $(VENV),$(BIN)/python,$(PYTHON)) tools/gpu.sh $(STAGES)

# The oldest supported torch, with the torchvision and Triton of its time.
OLDEST := .venv-oldest
OLDEST_TORCH := torch==2.10.0 torchvision==0.25.0

.PHONY: oldest
oldest: build $(OLDEST)/.ready  ## test kernels, registration and deployment with the oldest torch and Triton (half an hour)
	PATH=$(CURDIR)/$(OLDEST)/bin:$$PATH $(OLDEST)/bin/python -m pytest tests/kernels tests/build/test_imports.py \
		tests/app/inference/engines tests/app/inference/test_{agreement,arguments,batches,deploy,deployed,folding,front}.py

.PHONY: nightly
nightly: oldest test fuzz docs dist  ## what takes too long for CI: the oldest torch, fuzzing, all tests with a seed of the day
	WAE_TEST_SEED=$$(date +%Y%m%d) $(BIN)/python -m pytest

# A minute for each target; findings are kept in build/fuzz. The kernels need a clang with libFuzzer
# (Debian's clang-19 and libclang-rt-19-dev: make fuzz CLANGXX=clang++-19).
FUZZ_SECONDS ?= 60
FUZZERS := $(patsubst tests/fuzz/fuzz_%.py,%,$(wildcard tests/fuzz/fuzz_*.py))
CLANGXX ?= $(shell command -v clang++)

.PHONY: fuzz
fuzz: $(VENV)/.fuzz build $(if $(CLANGXX),build/fuzz/kernels)  ## coverage-guided fuzzing, FUZZ_SECONDS for each target (tests/fuzz, tests/cpp)
	set -e; for name in $(FUZZERS); do mkdir -p build/fuzz/$$name; \
		$(BIN)/python tests/fuzz/fuzz_$$name.py build/fuzz/$$name tests/fuzz/corpus/$$name \
			-artifact_prefix=build/fuzz/$$name- -max_total_time=$(FUZZ_SECONDS); \
	done
	$(if $(CLANGXX),mkdir -p build/fuzz/kernels-corpus && build/fuzz/kernels build/fuzz/kernels-corpus tests/cpp/corpus \
		-artifact_prefix=build/fuzz/kernels- -max_len=11 -len_control=0 -max_total_time=$(FUZZ_SECONDS))

build/fuzz/kernels: tests/cpp/sanitize.cpp $(shell find csrc/cpu csrc/common -type f)
	@mkdir -p $(@D)
	$(CLANGXX) -std=c++20 -O1 -g -pthread -Icsrc -DWAE_FUZZ -fsanitize=fuzzer,address,undefined \
		-fno-sanitize-recover=all $(filter-out csrc/cpu/ops%.cpp,$(filter %.cpp,$^)) -o $@

.PHONY: lint
lint: $(VENV)/.dev  ## check formatting, lint and types; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

.PHONY: format
format: $(VENV)/.dev  ## format all files as `make lint` requires
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

.PHONY: docs
docs: $(VENV)/.docs build  ## the pages of docs/ and the reference of both packages as HTML, in build/docs; a broken link is an error
	rm -rf build/docs docs/api
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -b html . build/docs

# The libraries of torch and CUDA come with torch; the wheel leaves them out.
NOT_OURS := 'libtorch*' 'libc10*' 'libcudart*'

.PHONY: dist
dist: $(VENV)/.dist  ## a source archive and, built from it, a wheel that needs no compiler, both checked, in dist/
	rm -rf dist build/wheel
	$(BIN)/python -m build --sdist --no-isolation -o dist
	$(BIN)/pip wheel --no-deps --no-build-isolation -w build/wheel dist/*.tar.gz
	$(BIN)/auditwheel repair --strip $(addprefix --exclude ,$(NOT_OURS)) -w dist build/wheel/*.whl
	$(BIN)/abi3audit --strict dist/*.whl
	$(BIN)/twine check --strict dist/*

.PHONY: clean
clean:  ## remove what was built (but not .venv: rm -r .venv)
	rm -rf build dist *.egg-info wae_kernels/*.so .benchmarks .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help
help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

# -------------------------------------------------------------------- .venv, kept up to date by stamp files
#
# The package is linked into .venv without its library, which the rule below builds. So a change of C++ recompiles
# only what depends on it, and a change of pyproject.toml reinstalls and neither compiles nor removes anything.

WITHOUT_NATIVE := $(filter-out 0,$(WAE_NO_NATIVE))
PACKAGING := pyproject.toml setup.py $(wildcard tools/*.py)
comma := ,

define install
	@$(PYTHON) tools/toolchain.py $(VENV)
	@echo "installing $(1) into $(VENV) (minutes, the first time)"
	@set -o pipefail; WAE_NO_NATIVE=$(or $(WITHOUT_NATIVE),later) $(BIN)/pip install $(PIP_EXTRA) -e '.[$(1)]' \
		| { grep -Ev '^(Requirement already|Looking in) ' || true; }
	@touch $@
endef

$(BIN)/pip:
	@$(PYTHON) tools/toolchain.py  # says what is missing before anything is downloaded
	$(PYTHON) -m venv $(VENV)

$(VENV)/.app: $(PACKAGING) | $(BIN)/pip
	$(call install,app$(comma)build)

$(VENV)/.dev: $(VENV)/.app
	$(call install,dev$(if $(shell command -v nvcc),,$(comma)nvcc))

$(VENV)/.dist: $(VENV)/.app
	$(call install,app$(comma)build$(comma)dist)

$(VENV)/.docs: $(VENV)/.app
	$(call install,app$(comma)build$(comma)docs$(comma)hub$(comma)timm)

$(VENV)/.fuzz: $(VENV)/.dev
	$(call install,dev$(comma)fuzz)

$(OLDEST)/.ready: $(PACKAGING)
	$(PYTHON) -m venv $(OLDEST)
	WAE_NO_NATIVE=later $(OLDEST)/bin/pip install -q $(PIP_EXTRA) $(OLDEST_TORCH) -e '.[app,peers,test]'
	@touch $@

# ------------------------------------------------------------------------------------- the compiled library

.PHONY: build
ifeq ($(WITHOUT_NATIVE),)
build: wae_kernels/_C.abi3.so  ## compile the C++ that changed, in place
else
build: $(VENV)/.app
	$(BIN)/python setup.py -q build_ext --inplace  # removes what was built before
endif

wae_kernels/_C.abi3.so: $(shell find csrc -type f) $(wildcard wae_kernels/*.inc) setup.py | $(VENV)/.app
	$(BIN)/python setup.py build_ext --inplace

# ---------------------------------------------------------------- the kernels under sanitizers, without torch

SANITIZE := build/sanitize
SANITIZE_OBJECTS := $(patsubst %.cpp,$(SANITIZE)/%.o,$(wildcard tests/cpp/*.cpp) \
	$(filter-out csrc/cpu/ops%.cpp,$(wildcard csrc/cpu/*.cpp)))
SANITIZE_FLAGS := -std=c++20 -O1 -g -Wall -Wextra -fno-omit-frame-pointer -pthread -Icsrc \
	-fsanitize=address,undefined -fno-sanitize-recover=all

.PHONY: sanitize
sanitize:  ## the C++ kernels under the address, undefined-behaviour and thread sanitizers
	@$(MAKE) --no-print-directory $(JOBS) $(SANITIZE)/kernels $(SANITIZE)/helpers $(SANITIZE)/races
	$(SANITIZE)/helpers
	$(SANITIZE)/races
	$(SANITIZE)/kernels tests/cpp/corpus/*

$(SANITIZE)/kernels: $(SANITIZE_OBJECTS)
	$(CXX) $(SANITIZE_FLAGS) $^ -o $@

HELPERS := tests/cpp/races/helpers.cpp csrc/cpu/helpers.cpp

$(SANITIZE)/helpers: $(HELPERS) csrc/cpu/helpers.h
	@mkdir -p $(@D)
	$(CXX) $(SANITIZE_FLAGS) $(HELPERS) -o $@

$(SANITIZE)/races: $(HELPERS) csrc/cpu/helpers.h
	@mkdir -p $(@D)
	$(CXX) -std=c++20 -O1 -g -Wall -Wextra -pthread -Icsrc -fsanitize=thread $(HELPERS) -o $@

$(SANITIZE)/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(SANITIZE_FLAGS) -MMD -MP -c $< -o $@

-include $(SANITIZE_OBJECTS:.o=.d)

# ------------------------------------------------- the kernels for aarch64, on another CPU by an emulator

AARCH64 := build/aarch64
AARCH64_CXX ?= aarch64-linux-gnu-g++
AARCH64_OBJECTS := $(patsubst $(SANITIZE)/%,$(AARCH64)/%,$(SANITIZE_OBJECTS))
AARCH64_FLAGS := -std=c++20 -O2 -Wall -Wextra -pthread -Icsrc -fsanitize=undefined -fno-sanitize-recover=all
QEMU ?= $(firstword $(foreach name,qemu-aarch64-static qemu-aarch64,$(shell command -v $(name))))

.PHONY: aarch64
aarch64:  ## the C++ kernels for aarch64, under qemu-user and the undefined-behaviour sanitizer
	@if ! command -v $(AARCH64_CXX) > /dev/null || [ -z "$(QEMU)" ]; then \
		echo "skipped: make aarch64 needs g++-aarch64-linux-gnu and qemu-user"; \
	else \
		$(MAKE) --no-print-directory $(JOBS) $(AARCH64)/kernels && \
		aarch64-linux-gnu-objdump -d $(AARCH64)/csrc/cpu/kernels_portable.o | grep -q 'fmla.*v[0-9]*\.4s' && \
		$(QEMU) $(AARCH64)/kernels; \
	fi

$(AARCH64)/kernels: $(AARCH64_OBJECTS)
	$(AARCH64_CXX) $(AARCH64_FLAGS) -static $^ -o $@

$(AARCH64)/%.o: %.cpp
	@mkdir -p $(@D)
	$(AARCH64_CXX) $(AARCH64_FLAGS) -MMD -MP -c $< -o $@

-include $(AARCH64_OBJECTS:.o=.d)
