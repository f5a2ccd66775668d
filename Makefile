# Two commands set everything up on a machine that has Python 3.11 or newer: `make demo` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
WORKDIR ?= runs/demo
# Tests run one process a core; JAX stays on the CPU and off any TPU.
TEST   := JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: demo long test test-slow test-parity lint venv clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       install, then run the main job on the embedded default (at most 15 minutes on two cores)"
	@echo "make long       the same with a longer budget (at most 90 minutes)"
	@echo "make test       install, then the tests (at most 10 minutes); make test-slow: the slow ones too"
	@echo "make test-parity  install torch, transformers and diffusers too, then compare with them (full sizes: some minutes)"
	@echo "make lint       ruff"
	@echo "make venv       only the environment, in $(VENV)"

demo: venv
	$(BIN)/python -m synclipmae_jax.main --config=configs/pretrain.py:demo --workdir=$(WORKDIR)
	@if [ -f $(VENV)/seconds ]; then echo "Installing the environment had taken $$(cat $(VENV)/seconds) s."; fi

long: venv
	$(BIN)/python -m synclipmae_jax.main --config=configs/pretrain.py:long --workdir=runs/long

test: $(VENV)/test.stamp
	$(TEST) -m "not slow"

test-slow: $(VENV)/test.stamp
	$(TEST) -m slow

test-parity: $(VENV)/parity.stamp
	$(TEST) tests/parity

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .

venv: $(VENV)/stamp

$(VENV)/stamp: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@begun=$$(date +%s); $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check -e . \
	  && echo $$(( $$(date +%s) - begun )) > $(VENV)/seconds && echo "Installed in $$(cat $(VENV)/seconds) s."
	@touch $@

$(VENV)/test.stamp: $(VENV)/stamp
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@

# Never torchvision or timm beside this torch: they replace it, or break the import of transformers.
$(VENV)/parity.stamp: $(VENV)/test.stamp
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[parity]"
	@touch $@

clean:
	rm -rf $(VENV) runs
