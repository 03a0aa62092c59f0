# `make` alone lists the targets. Every target first sets up the environment it needs, see .ci/setup.
#
# PYTHON=/path/to/python uses that interpreter's environment instead of .venv. It must have torch
# and torchvision; an existing Detectron2 is left alone, and only what is missing is installed.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test docs bench gpu-check gpu-prepare lint format clean distclean

PYTHON ?=
export PYTHON
python := $(if $(PYTHON),$(PYTHON),.venv/bin/python)
clang_format := $(python) -c 'import clang_format; clang_format.clang_format()'
cpp_sources = $(shell find csrc tests docs/examples -name "*.cpp" -o -name "*.h" -o -name "*.cu" -o -name "*.cuh")

help:
	@echo "make demo       train, evaluate and draw Residual Objectness on generated scenes"
	@echo "make test       run every test, including the slow ones"
	@echo "make docs       build the site in build/site; broken links and undocumented names fail"
	@echo "make bench      measure the operators against their peers (half an hour or more)"
	@echo "make gpu-check  build, test and measure on an NVIDIA GPU, in nine minutes"
	@echo "make setup      create .venv: pinned dependencies, Detectron2, native operators"
	@echo "make lint       check style and formatting of Python, C++ and CUDA sources"
	@echo "make format     apply the formatting that lint checks"
	@echo "make clean      remove build products and caches; distclean removes .venv too"
	@echo
	@echo "Each sets up what it needs and reuses what exists. To use your own environment:"
	@echo "make test PYTHON=/path/to/python"

setup:
	@.ci/setup

demo: setup
	@echo "now: the demo"
	@$(python) -m resobj_d2.demo

# A process per core up to four (each takes a gigabyte or two), and one thread in each.
test: setup
	@echo "now: all tests"
	@OMP_NUM_THREADS=1 $(python) -m pytest -m "slow or not slow" -n auto --maxprocesses 4 --dist loadfile

# Material for MkDocs greets every build with news of other projects unless told not to. Not --quiet:
# it silences warnings, and those that are silenced fail nothing.
docs:
	@.ci/setup docs
	@echo "now: the site"
	@NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build
	@echo "open build/site/index.html, or with search: $(python) -m http.server -d build/site"

# BENCH_OPTIONS="--quick" takes a minute or two. The figures only mean something on an otherwise
# idle machine.
bench: setup
	@echo "now: the benchmarks"
	@$(python) -m benchmarks --budget 3 --json benchmarks/results $(BENCH_OPTIONS)
	@$(python) -m benchmarks.table --write docs/benchmarks.md
	@$(python) -m benchmarks.table --excerpt --write README.md
	@echo "wrote the tables of docs/benchmarks.md and README.md"

# PREPARED=FOLDER, made by gpu-prepare elsewhere, replaces the set-up on a machine without network.
# GPU_OPTIONS="--limit 1800 --budget 2" takes more time for the benchmarks.
gpu-check:
	@nvidia-smi -L 2>/dev/null || { \
	  echo "error: make gpu-check needs an NVIDIA GPU, and nvidia-smi finds none here" >&2; exit 2; }
	@$(if $(PREPARED),,$(MAKE) --no-print-directory setup)
	@$(if $(PREPARED),$(or $(PYTHON),python3),$(python)) -m benchmarks.gpu_check \
	  $(if $(PREPARED),--prepared $(PREPARED)) $(GPU_OPTIONS)

# GPU_OPTIONS="--python 3.12 --arch 9.0" are those of the machine with the GPU.
gpu-prepare: setup
	@$(python) -m benchmarks.gpu_check --prepare build/gpu-check $(GPU_OPTIONS)

lint: setup
	@echo "now: ruff check"
	@$(python) -m ruff check .
	@echo "now: ruff format --check"
	@$(python) -m ruff format --check .
	@echo "now: mypy"
	@$(python) -m mypy
	@echo "now: clang-format --dry-run on C++ and CUDA sources"
	@$(clang_format) --dry-run --Werror $(cpp_sources)

format: setup
	@echo "now: ruff check --fix"
	@$(python) -m ruff check --fix .
	@echo "now: ruff format"
	@$(python) -m ruff format .
	@echo "now: clang-format on C++ and CUDA sources"
	@$(clang_format) -i $(cpp_sources)

clean:
	@echo "now: removing build products and caches"
	@rm -rf build dist .pytest_cache .ruff_cache .mypy_cache *.egg-info
	@rm -f .venv/setup-state/package
	@find resobj_d2 -name "*.so" -delete
	@rm -f resobj_d2/_build.json
	@find csrc resobj_d2 tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	@echo "now: removing .venv"
	@rm -rf .venv
