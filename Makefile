# Newcomers: `make demo` and `make test`. Both create .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CSRC := $(wildcard $(foreach kind,cpp h inc cu cuh,$(foreach folder,csrc csrc/cpu csrc/cpu/simd csrc/cuda,$(folder)/*.$(kind))))
CXX_SOURCES := $(CSRC) $(wildcard tests/*/*.cpp tests/*/*.h)
NATIVE := $(CSRC) setup.py
OP_TESTS := $(patsubst fastinpaint/ops/%.py,tests/test_%.py,$(filter-out fastinpaint/ops/_%,$(wildcard fastinpaint/ops/*.py)))
# Without the compiled extension every `make` installs again: a compiler may have come.
UNBUILT := $(if $(wildcard fastinpaint/_C.*so),,unbuilt)
# Tests start a hundred processes, each of which would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-isa wheel-check lock docs pictures dist wheels aarch64 aot sanitize soak fuzz kill lint format bench clean unbuilt
.DEFAULT_GOAL := help

help:
	@echo "make demo     fill holes in photographs, then fine-tune on a few, in a few minutes"
	@echo "make test     the test suite"
	@echo "make test-isa the operators' tests on each lower instruction set that this processor has"
	@echo "make wheel-check   one wheel beside the oldest and the newest torch; downloads gigabytes"
	@echo "make sanitize the native kernels under GCC's address, undefined behaviour and thread sanitizers, in ten minutes"
	@echo "make fuzz     damaged files and odd arguments for ten minutes: no crash, no hang, no undocumented error"
	@echo "make soak     fifty clients at once against the painter's server for five minutes"
	@echo "make kill     75 kills of training runs, resumed each time: bit for bit as if never killed, in a few minutes"
	@echo "make dist     source distribution and wheel, into dist/, checked"
	@echo "make wheels   manylinux wheels, into dist/, in containers (needs Docker)"
	@echo "make aarch64  the CPU sources through a cross compiler"
	@echo "make lint     ruff, mypy, clang-format, import-linter"
	@echo "make format   let ruff and clang-format rewrite the sources"
	@echo "make docs     the documentation, into build/site; warnings are errors"
	@echo "make pictures draw the pictures of the documentation again"
	@echo "make bench    the benchmarks, into benchmark-results/"
	@echo "make clean    remove the environment and everything built"

$(VENV)/.created: constraints.txt
	@echo "Making the environment in $(VENV); this downloads PyTorch and takes a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt torch numpy "setuptools>=77" wheel "ninja>=1.11"
	@touch $@

$(STAMP): $(VENV)/.created pyproject.toml $(NATIVE) $(UNBUILT)
	$(BIN)/python -m pip install --no-build-isolation -c constraints.txt -e ".[demo,test,lint]"
	@$(BIN)/python -c "from fastinpaint.ops._backend import NATIVE_ERROR as error; error and print('Note:', error)"
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m fastinpaint demo

# A worker for each core. A file stays in one worker: its tests share what they compiled or trained.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=10

sanitize: $(STAMP)
	$(BIN)/python -m tests.sanitize

# All kernels for every GPU; `make test` compiles two cases of each operator for H100.
aot: $(STAMP)
	FASTINPAINT_AOT=all $(BIN)/python -m pytest -n auto --dist loadscope tests/kernels/test_aot.py tests/test_canny_cuda.py -k "spill or recorded"

soak: $(STAMP)
	$(BIN)/python -m tests.helpers.painter_soak

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz

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

# Each in a process of its own: the set is chosen once. `make test` runs tests that choose it themselves and those of
# torch.compile and of registration (opcheck), which know nothing of it.
test-isa: $(STAMP)
	@best=$$($(BIN)/python -c "from fastinpaint.ops._backend import cpu_isa; print(cpu_isa())"); \
	for isa in baseline avx2; do \
		[ "$$best" = "$$isa" ] || [ "$$best" = None ] && break; \
		echo "FASTINPAINT_ISA=$$isa"; \
		FASTINPAINT_ISA=$$isa $(BIN)/python -m pytest -q -n auto --dist loadfile $(OP_TESTS) -k "not (instruction_set or compile or opcheck)" || exit 1; \
	done

wheel-check: $(STAMP)
	$(BIN)/python scripts/wheel_check.py

lock: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[docs]"
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable \
		| sed -E 's/[+][a-z0-9.]+$$//; /^(torch|ruff|mypy|import-linter|clang-format)==/!s/$$/; python_version >= "3.11"/'; } > constraints.new
	@mv constraints.new constraints.txt

# The wheel is built from the source distribution, which proves that it is complete.
dist: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[dist]"
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python scripts/check_dist.py dist

wheels: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[dist,wheels]"
	$(BIN)/cibuildwheel --platform linux --output-dir dist
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python scripts/check_dist.py dist

aarch64: $(STAMP)
	$(BIN)/python scripts/cross_compile.py aarch64-linux-gnu-g++

pictures: $(STAMP)
	$(BIN)/python -m scripts.draw_pictures

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info fastinpaint/*.so
