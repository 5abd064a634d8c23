# `make demo` and `make test` do everything from a fresh clone; `make help` lists the rest.
PYTHON ?= python3.11
VENV ?= .venv
# More words for pip, e.g. PIP_ARGS="--index-url URL" or "--no-cache-dir".
PIP_ARGS ?=
# More words for `vitrify kernels build`, e.g. CUBINS_ARGS="--arch sm_90".
CUBINS_ARGS ?=
# More words for pytest, e.g. PYTEST_ARGS="tests/kernels -x".
PYTEST_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.vitrify-setup
NATIVE_BUILD := build/native
LIBRARY := engine/native/libvitrify_ops.so
ROOMS := engine kernels export runtime bench
CXX_SOURCES := $(sort $(wildcard kernels/*.cpp kernels/*.h kernels/*/*.cpp kernels/*/*.h))
FORMATTED := $(CXX_SOURCES) bench/register_peaks.cpp
TYPING := .typing/vitrify/py.typed
# torch's CUDA build wants a Triton of its own; the kernels want this one, and torch runs without.
TRITON := $(shell sed -n 's/^kernels = \["\(triton==[^"]*\)"\]$$/\1/p' pyproject.toml)

INTERPRETED := tests/kernels/interpreted

SAMPLE := examples/emoji_flux
DEMO := build/demo
ARTIFACT := $(DEMO)/emoji_flux.vitrify
EXPORTED := $(DEMO)/.exported
EXPORT_SOURCES := $(sort $(shell find engine kernels export -name '*.py' -o -name '*.cpp' -o -name '*.h'))
SAMPLE_FILES := $(sort $(shell find $(SAMPLE) -name '*.json' -o -name '*.safetensors' 2>/dev/null))

.PHONY: help setup native cubins wheel demo test test-slow check check-style check-types check-imports check-native format bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       set up, compile the sample pipeline, draw a picture: $(DEMO)/red_apple.png"
	@echo "make test       set up, run the tests (minutes); make test-slow runs the long ones"
	@echo "make check      style, types, import direction, C++ format"
	@echo "make bench      measure, with peers in the same run"
	@echo "make setup      create $(VENV) and install everything in it"
	@echo "make native     rebuild the C++ operator library"
	@echo "make cubins     compile the GPU kernels, no GPU needed (ten minutes of one core)"
	@echo "make wheel      a package with the GPU kernels in it, in dist/"
	@echo "make format     rewrite the sources in the house style"
	@echo "make clean      remove what was built; the environment stays"

# ---- set-up: once, then a matter of seconds; again when pyproject.toml or constraints.txt change

setup: $(STAMP) native $(TYPING)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found; name another Python >= 3.11: make PYTHON=python3.12 setup"; exit 1; }
	@command -v c++ >/dev/null || { echo "No C++ compiler (c++) was found; install g++ or clang, then run make again"; exit 1; }
	@echo "Setting up $(VENV): the first time this downloads about 700 MB (torch 190, triton 285) and takes 2.6 GB on disk."
	@echo "Where the package index serves torch with CUDA it is 3 GB and more; README.md says how to choose the CPU build."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt scikit-build-core cmake ninja
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --no-build-isolation \
	  --config-settings=build-dir=$(NATIVE_BUILD) --editable '.[cpu,export,dev]'
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps $(TRITON)
	@# It puts this folder's parent on sys.path too, where any neighbour (a clone of triton) would pass for a package.
	@sed -i '\#^$(abspath ..)$$#d' $(VENV)/lib/python3*/site-packages/_editable_skbc_vitrify.pth
	@touch $@

native: $(LIBRARY)

$(LIBRARY): $(STAMP) CMakeLists.txt $(CXX_SOURCES)
	$(BIN)/cmake -S . -B $(NATIVE_BUILD) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DCMAKE_BUILD_TYPE=Release -DSKBUILD_STATE=editable >/dev/null
	$(BIN)/cmake --build $(NATIVE_BUILD)
	@touch $@

cubins: setup
	$(BIN)/vitrify kernels build $(CUBINS_ARGS)

# CMakeLists.txt installs the GPU kernels that lie beside the library.
wheel: cubins
	$(BIN)/python -m pip wheel --quiet $(PIP_ARGS) --no-deps --no-build-isolation --wheel-dir dist .

# Type checkers cannot follow the editable install's redirect: a tree of links with the installed names.
$(TYPING): Makefile
	@mkdir -p .typing/vitrify
	@for room in $(ROOMS); do ln -sfn ../../$$room .typing/vitrify/$$room; done
	@echo '"""vitrify: ahead-of-time compiled diffusion pipelines, run without torch."""' > .typing/vitrify/__init__.py
	@touch $@

# ---- the two commands of the README

demo: setup $(EXPORTED)
	$(BIN)/vitrify generate $(ARTIFACT) "red apple" --seed 2 -o $(DEMO)/red_apple.png
	@echo "$(DEMO)/red_apple.png"

$(EXPORTED): $(LIBRARY) $(SAMPLE_FILES) $(EXPORT_SOURCES)
	@mkdir -p $(DEMO)
	$(BIN)/vitrify export $(SAMPLE) $(ARTIFACT) --force \
	  --height 64 --width 64 --batch 1:2:8 --max-sequence-length 16 \
	  --default-num-inference-steps 20 --default-true-cfg-scale 2.0 --default-negative-prompt ""
	@touch $@

# Triton interprets or compiles, for the life of a process: its interpreter's tests are a run of their own.
test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest $(INTERPRETED)

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not device" --timeout 3600 $(PYTEST_ARGS)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -m "slow and not device" --timeout 3600 $(INTERPRETED)

# ---- what a change must pass

check: check-style check-types check-imports check-native

check-style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check-types: setup
	$(BIN)/mypy

# -S leaves the editable install's import hook out: the tree of links is read instead.
check-imports: setup
	PYTHONPATH=.typing:$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	  $(BIN)/python -S $(BIN)/lint-imports --no-cache --no-logo

check-native: setup
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

bench: setup
	$(BIN)/vitrify bench run

clean:
	rm -rf build .typing $(LIBRARY) engine/native/cubins .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(ROOMS) tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
