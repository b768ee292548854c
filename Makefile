# Newcomers: `make demo` and `make test`. Both create .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CSRC := $(wildcard $(foreach kind,cpp h inc cu cuh,$(foreach folder,csrc csrc/cpu csrc/cpu/simd csrc/cuda,$(folder)/*.$(kind))))
CXX_SOURCES := $(CSRC) $(wildcard tests/*/*.cpp tests/*/*.h)
NATIVE := $(CSRC) setup.py

.PHONY: demo test sanitize kill lint format bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     train a small model for about three minutes and fill holes in photographs"
	@echo "make test     the test suite"
	@echo "make sanitize the native kernels under GCC's address, undefined behaviour and thread sanitizers, in ten minutes"
	@echo "make kill     50 training runs killed at random moments and resumed, bit for bit, in a few minutes"
	@echo "make lint     ruff, mypy, clang-format, import-linter"
	@echo "make format   let ruff and clang-format rewrite the sources"
	@echo "make bench    the benchmarks, into benchmark-results/"
	@echo "make clean    remove the environment and everything built"

$(VENV)/.created: constraints.txt
	@echo "Making the environment in $(VENV); this downloads PyTorch and takes a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt torch numpy "setuptools>=77" wheel "ninja>=1.11"
	@touch $@

$(STAMP): $(VENV)/.created pyproject.toml $(NATIVE)
	$(BIN)/python -m pip install --no-build-isolation -c constraints.txt -e ".[demo,test,lint]"
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m fastinpaint demo

test: $(STAMP)
	$(BIN)/python -m pytest

sanitize: $(STAMP)
	$(BIN)/python -m tests.sanitize

kill: $(STAMP)
	$(BIN)/python -m tests.kill_runs

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config pyproject.toml
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks --out benchmark-results

clean:
	rm -rf $(VENV) build *.egg-info fastinpaint/*.so
