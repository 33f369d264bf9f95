# Everything a fresh machine needs is `python3.10` (with venv and headers), a C++ compiler, as two packages come as source
# alone, and the package registry; see `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON := python3.10
VENV := .venv
PY := $(VENV)/bin/python
UV_VERSION := 0.13.9
UV := .cache/uv/$(UV_VERSION)/bin/uv
READY := $(VENV)/.ready
# Beam's portable runner, of the very version of Beam that is pinned.
PRISM_VERSION := $(shell sed -n 's/^apache-beam==//p' constraints.in)
PRISM := .cache/prism/$(PRISM_VERSION)/prism
# A server to try a pushed model with, in an environment of its own.
MLSERVER := .cache/mlserver
MLSERVER_PY := $(MLSERVER)/bin/python
GO := $(or $(shell command -v go),/usr/local/go/bin/go)

# What is imported most: where PYTHONDONTWRITEBYTECODE is set it is compiled at setup, or each process would do so anew.
COMPILED := tfx.v1, tensorflow, apache_beam, sklearn.metrics, matplotlib.pyplot, quantizer_core.cli.main

# Patience with slow registries.
export UV_HTTP_TIMEOUT ?= 300
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# uv reads no setting of pip's: the registry that pip is told by the environment is told to uv too.
ifeq ($(UV_DEFAULT_INDEX)$(UV_INDEX_URL)$(UV_INDEX),)
ifneq ($(PIP_INDEX_URL),)
export UV_DEFAULT_INDEX := $(PIP_INDEX_URL)
endif
endif
# Where the home directory cannot be written to, uv's cache is here.
ifeq ($(UV_CACHE_DIR)$(XDG_CACHE_HOME)$(shell test -w "$${HOME:-/nowhere}" && echo writable),)
export UV_CACHE_DIR := $(CURDIR)/.cache/uv/cache
endif

# How requirements are compiled: for one platform, with hashes, and nothing in the file of where it was done.
COMPILE = --python-version 3.10 --python-platform x86_64-manylinux_2_28 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" --quiet $(UPGRADE)

DEMO_OUTPUT ?= build/digits
FROZEN_GRAPH_OUTPUT ?= build/frozen_graph
TABULAR_OUTPUT ?= build/tabular
# Of the Kubeflow specs: the image, where runs put artifacts, and where the steps find the data and push models.
IMAGE ?= tfx-quantizer
PIPELINE_ROOT ?= gs://BUCKET/tfx-quantizer
DATA_ROOT ?= $(PIPELINE_ROOT)/data
SERVING_ROOT ?= $(PIPELINE_ROOT)/serving
GRAPH ?= $(DATA_ROOT)/frozen-graph/graph.pb
# Stands for that graph's contents in the cache keys: change it with the graph, or leave it empty where it can be read.
FINGERPRINT ?= 1
KUBEFLOW_OUTPUT ?= build/kubeflow
# More options of every runner, for example --cpu=Quantizer=8, and of the one for frozen graphs (add --config=@FILE).
KUBEFLOW_ARGS ?=
FROZEN_GRAPH_ARGS ?= --metric=agreement
KUBEFLOW_OPTIONS = --image $(IMAGE) --pipeline_root $(PIPELINE_ROOT) --serving_root $(SERVING_ROOT) \
	--output "$(KUBEFLOW_OUTPUT)" $(KUBEFLOW_ARGS)
PYTEST_ARGS ?=
# Processes that tests run in, a file in one of them; each has its own TensorFlow.
JOBS ?= $(shell cores=$$(nproc); echo $$((cores < 4 ? cores : 4)))
PYTEST = $(PY) -m pytest -q -n $(JOBS) --dist loadfile

.PHONY: help setup prism test test-slow test-long lint format demo frozen-graph-demo tabular-demo kubeflow-spec docker-check \
	mlserver benchmark lock clean

help:  ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## Create .venv from requirements.lock (again only when the lock, setup.py or pyproject.toml changes).

$(UV):
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) is not on the PATH: install Python 3.10 with its venv module" >&2; exit 1; }
	@echo "Fetching uv $(UV_VERSION) into .cache/uv"
	@rm -rf .cache/uv/$(UV_VERSION)
	@$(PYTHON) -m venv .cache/uv/$(UV_VERSION)
	@.cache/uv/$(UV_VERSION)/bin/python -m pip install --quiet uv==$(UV_VERSION)

$(READY): requirements.lock setup.py pyproject.toml | $(UV)
	@test -x $(PY) || $(PYTHON) -m venv --without-pip $(VENV)
	@rm -f $@
	@echo "Installing requirements.lock into $(VENV)"
	@$(UV) pip sync --quiet --python $(PY) --require-hashes requirements.lock || { \
		echo "If a package could not be built: install a C++ compiler and Python's headers (g++ python3.10-dev)." >&2; \
		echo "If the registry could not be reached: name yours in UV_DEFAULT_INDEX (uv reads no pip.conf)." >&2; exit 1; }
	@$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	@test -z "$${PYTHONDONTWRITEBYTECODE:-}" || \
		PYTHONDONTWRITEBYTECODE= TF_CPP_MIN_LOG_LEVEL=3 $(PY) -W ignore -c "import $(COMPILED)"
	@touch $@

prism: $(PRISM)  ## Build Prism, Beam's portable runner (needs Go), for the tests and benchmarks that run on it.

$(PRISM): | constraints.in
	@command -v $(GO) >/dev/null || { echo "Go is not on this machine: Prism cannot be built" >&2; exit 1; }
	@echo "Building Prism $(PRISM_VERSION) into $(@D)"
	@GOBIN="$(CURDIR)/$(@D)" "$(GO)" install github.com/apache/beam/sdks/v2/go/cmd/prism@v$(PRISM_VERSION)

mlserver: $(MLSERVER)/.ready  ## Install MLServer into .cache/mlserver, to serve a pushed model (examples/mlserver).

$(MLSERVER)/.ready: examples/mlserver/requirements.txt | $(UV)
	@test -x $(MLSERVER_PY) || $(PYTHON) -m venv --without-pip $(MLSERVER)
	@rm -f $@
	@echo "Installing examples/mlserver/requirements.txt into $(MLSERVER)"
	@$(UV) pip sync --quiet --python $(MLSERVER_PY) --require-hashes examples/mlserver/requirements.txt
	@touch $@

test: setup  ## Run the fast tests (PYTEST_ARGS="-k name" to choose, JOBS=1 for one process).
	$(PYTEST) $(PYTEST_ARGS)

test-slow: setup  ## Run the slow tests: whole pipelines, large graphs.
	$(PYTEST) -m "slow and not long" --timeout 1800 $(PYTEST_ARGS)

test-long: setup  ## Run what CI has no time for: all graphs to their bars, a thousand random graphs.
	$(PYTEST) -m long --timeout 1800 $(PYTEST_ARGS)
	QUANTIZER_RANDOM_GRAPHS=500 $(PYTEST) -m slow -k many_random_graphs --timeout 3600

demo: setup  ## Train, quantise, judge and push a small model with TFX, here, in minutes.
	$(PY) -m pipelines.digits.local_runner --output "$(DEMO_OUTPUT)"

frozen-graph-demo: setup  ## Take MobileNet's .pb and images of the shared data through the same pipeline.
	$(PY) -m pipelines.frozen_graph.local_runner --output "$(FROZEN_GRAPH_OUTPUT)"

tabular-demo: setup  ## Take CSV rows through Transform, a Trainer, the Quantizer and TFX's Evaluator.
	$(PY) -m pipelines.tabular.local_runner --output "$(TABULAR_OUTPUT)"

kubeflow-spec: setup  ## Compile every pipeline for Kubeflow (IMAGE=…, PIPELINE_ROOT=gs://…; more in docs/kubeflow.md).
	$(PY) -m pipelines.digits.kubeflow_runner $(KUBEFLOW_OPTIONS) --data_root $(DATA_ROOT)/digits
	$(PY) -m pipelines.tabular.kubeflow_runner $(KUBEFLOW_OPTIONS) --data_root $(DATA_ROOT)/tabular
	$(PY) -m pipelines.frozen_graph.kubeflow_runner $(KUBEFLOW_OPTIONS) --graph $(GRAPH) --examples $(dir $(GRAPH)) \
		$(if $(FINGERPRINT),--fingerprint $(FINGERPRINT)) $(FROZEN_GRAPH_ARGS)

docker-check: setup  ## Do docker/Dockerfile's steps in a clean folder, without Docker, and run what comes of them.
	$(PY) -m pytest -q -m "slow or not slow" --timeout 1800 tests/docker $(PYTEST_ARGS)

benchmark: setup  ## Time the conversion of ResNet-50 and MobileNet (random weights).
	$(PY) -m benchmarks.conversion

lint: setup  ## Check format, style and types.
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy quantizer_core components

format: setup  ## Put every file into the common format and mend what ruff can.
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lock: $(UV)  ## Compile requirements.lock and MLServer's anew from what they name (UPGRADE=--upgrade for new versions).
	$(UV) pip compile setup.py --all-extras --constraints constraints.in --output-file requirements.lock $(COMPILE)
	$(UV) pip compile examples/mlserver/requirements.in --output-file examples/mlserver/requirements.txt $(COMPILE)

clean:  ## Remove what was built and run (keeps .venv).
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
