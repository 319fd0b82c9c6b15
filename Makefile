# `make demo` and `make test` do all set-up on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= logical
DATA_DIR ?= datasets

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.PHONY: help install demo test check browser soak milvus-server milvus-speed peers bench pictures clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv and install everything into it

# Updated only when what it was made from has changed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, but $(PYTHON) is %d.%d (name another one: make PYTHON=python3.12 ...)" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,calendar,plot,explore,milvus,serve]'
	@touch $@

demo: install  ## run the main job end to end on the embedded sample
	$(BIN)/cli demo

test: install  ## run the tests, about 8 minutes on 2 cores
	$(PYTEST) -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

check: install  ## linter, formatter, type checker, then the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory test

# Only apt is told; another system's chromium does as well, if it is on the PATH under one of these names.
browser:  ## install Debian's chromium for the browser tests (needs root)
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
		command -v apt-get >/dev/null || { echo "error: there is no apt-get: install chromium by hand" >&2; exit 1; }; \
		root="env DEBIAN_FRONTEND=noninteractive"; [ "$$(id -u)" = 0 ] || root="sudo $$root"; \
		$$root apt-get update && $$root apt-get install -y --no-install-recommends chromium; }

soak: install  ## run the long forms of the tests
	$(PYTEST) -m soak --hypothesis-profile=soak -o faulthandler_timeout=3600
	$(BIN)/python -m benchmarks.service_soak --minutes 10

# The server needs a setuptools that still has pkg_resources, so it gets an environment of its own. It listens on every
# interface, so it gets a network of its own too, which has none but loopback.
.venv-milvus/.installed: Makefile
	$(PYTHON) -m venv .venv-milvus
	.venv-milvus/bin/python -m pip install --quiet --disable-pip-version-check 'setuptools<80' 'milvus==2.3.5'
	@touch $@

milvus-server: install .venv-milvus/.installed  ## test against a real Milvus server, which it installs into .venv-milvus
	unshare --net $$([ "$$(id -u)" = 0 ] || echo --map-root-user) sh -c \
		'ip link set lo up && exec $(PYTEST) -m milvus_server -s -rs tests/test_milvus_server.py'

milvus-speed: install .venv-milvus/.installed  ## measure a million rows in a real Milvus server (15 minutes or more)
	unshare --net $$([ "$$(id -u)" = 0 ] || echo --map-root-user) sh -c \
		'ip link set lo up && exec $(BIN)/python -m benchmarks.milvus_speed --windows 1000000 --start'

# Peers need other versions of libraries than the project, so they get an environment of their own.
.venv-peers/.installed: Makefile
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0' 'neuralforecast==3.3.0' 'stumpy==1.14.1' \
		'statsforecast==2.1.1' 'mlforecast==1.1.0' 'lightgbm==4.7.0' 'flaircast==0.6.1'
	@touch $@

peers: .venv-peers/.installed  ## install what ours is compared with (forecasters, stumpy), into .venv-peers

bench: install peers  ## measure the figures of docs/benchmarks.md (DATA_DIR holds ETTh1.csv, ETTh2.csv)
	$(BIN)/python -m benchmarks.speed --data-dir $(DATA_DIR) --plot docs/images/growth.png
	$(BIN)/python -m benchmarks.capacity --plot docs/images/capacity.png
	$(BIN)/python -m benchmarks.milvus_speed
	$(BIN)/python -m benchmarks.leak_audit
	$(BIN)/python -m benchmarks.exact_search --data-dir $(DATA_DIR)
	$(BIN)/python -m benchmarks.explore_speed --data-dir $(DATA_DIR)
	$(BIN)/python -m benchmarks.llm_speed
	$(BIN)/python -m benchmarks.accuracy --data-dir $(DATA_DIR) --work-dir runs/accuracy --plot docs/images/accuracy.png

pictures: install  ## draw the pictures of docs/ anew, and run its notebook
	$(BIN)/python -m benchmarks.pictures

clean:  ## remove the virtual environment and every cache
	rm -rf $(VENV) .venv-milvus .venv-peers dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
