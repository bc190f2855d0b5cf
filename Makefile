PYTHON ?= python3
BIN := .venv/bin

.PHONY: help serve test test-all test-avx2 check soak bench install clients ray lock

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# Only the machine's engine is installed: PyTorch with 5 GB of CUDA libraries with an NVIDIA GPU, else OpenVINO.
SERVE := $(if $(shell command -v nvidia-smi),serve-torch,serve)

serve: $(if $(wildcard .venv/installed),install,.venv/$(SERVE)-installed)  ## serve on http://127.0.0.1:8000
	@exec $(BIN)/python -m app

# Two processes: most tests use one core. The tests of a file share fixtures, so they run in one process.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile

test: install  ## run the tests, except the slow ones
	$(PYTEST) -m "not slow"

test-all: install  ## run all tests
	$(PYTEST)

# oneDNN, which OpenVINO and PyTorch contain, reads the first variable, and PyTorch's own kernels read the second one.
AVX2_TESTS ?= tests/model/engines tests/model/test_shipped.py tests/model/commands/test_quantize.py \
	tests/app/http/routes/test_admin.py tests/app/cli/classify/test_local.py tests/app/process/test_main_process.py

test-avx2: install  ## run tests of the engines as on a CPU with AVX2 only; AVX2_TESTS=tests runs all
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) $(AVX2_TESTS)

check: install  ## check style, types and imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: install  ## overload the service for ten minutes; SOAK_FLAGS="--minutes 1" shortens it
	$(BIN)/python -m benchmarks.soak $(SOAK_FLAGS)

bench: .venv/bench-installed  ## compare with other servers; BENCH_FLAGS="--rounds 2 --seconds 2" shortens it
	$(BIN)/python -m benchmarks.serving $(BENCH_FLAGS)

install: .venv/installed  ## create .venv and install the pinned requirements

# The project itself, for .venv/bin/tenfold. uv.txt pins the setuptools that builds it.
INSTALL_PROJECT := $(BIN)/uv pip install --quiet --offline --python $(BIN)/python --no-deps --no-build-isolation --editable .

.venv/installed: .venv/uv-installed requirements/dev.txt pyproject.toml
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/dev.txt
	$(INSTALL_PROJECT)
	@touch $@

.venv/serve-installed .venv/serve-torch-installed: .venv/%-installed: .venv/uv-installed requirements/%.txt pyproject.toml
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/$*.txt
	$(INSTALL_PROJECT)
	@touch $@

clients: .venv/clients-installed  ## install clients of the Open Inference Protocol and a generator of clients, for tests

# Their requirements contradict those of this project: kserve and openapi-python-client have environments of their own.
# Of MLServer only the types are used, which need pydantic alone.
.venv/clients-installed: .venv/installed requirements/kserve.txt requirements/mlserver.txt requirements/openapi.txt
	$(PYTHON) -m venv --without-pip .venv/kserve
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv/kserve/bin/python --require-hashes -r requirements/kserve.txt
	$(PYTHON) -m venv --without-pip .venv/openapi
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv/openapi/bin/python --require-hashes -r requirements/openapi.txt
	$(BIN)/uv pip install --quiet --target .venv/mlserver --python-version 3.12 --no-deps --require-hashes -r requirements/mlserver.txt
	@touch $@

ray: .venv/ray-installed  ## install Ray, for deploy/ray and its tests

.venv/ray-installed: .venv/installed requirements/ray.txt
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/ray.txt
	@touch $@

.venv/uv-installed: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/uv.txt
	@touch $@

.venv/bench-installed: .venv/installed requirements/bench.txt
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/bench.txt
	@touch $@

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

lock: install  ## pin the requirements of pyproject.toml; LOCK_FLAGS=--upgrade takes newer versions
	$(LOCK) $(LOCK_FLAGS) pyproject.toml --extra dev -o requirements/dev.txt
	$(LOCK) $(LOCK_FLAGS) pyproject.toml --extra openvino -c requirements/dev.txt -o requirements/serve.txt
	$(LOCK) $(LOCK_FLAGS) pyproject.toml --extra torch -c requirements/dev.txt -o requirements/serve-torch.txt
	$(LOCK) $(LOCK_FLAGS) pyproject.toml --extra bench -c requirements/dev.txt -o requirements/bench.txt
	$(LOCK) $(LOCK_FLAGS) pyproject.toml --extra ray -c requirements/dev.txt -o requirements/ray.txt
	echo kserve | $(LOCK) $(LOCK_FLAGS) - -o requirements/kserve.txt
	echo openapi-python-client | $(LOCK) $(LOCK_FLAGS) - -o requirements/openapi.txt
	echo mlserver | $(LOCK) $(LOCK_FLAGS) - --no-deps -o requirements/mlserver.txt
	printf 'uv\nsetuptools\n' | $(LOCK) $(LOCK_FLAGS) - -c requirements/dev.txt -o requirements/uv.txt
