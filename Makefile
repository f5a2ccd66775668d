# Two commands set everything up on a machine that has Python 3.11 or newer: `make demo` and `make test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TPU_VENV := .venv-tpu
WORKDIR ?= runs/demo
PIP    := -m pip install --quiet --disable-pip-version-check
# The tested versions: of the package's own dependencies, and of what its extras bring.
PINNED := -r requirements.txt -c constraints.txt
# Tests run one process a core; JAX stays on the CPU and off any TPU.
TEST   := JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: demo checkpoint recogniser dubber test test-slow test-parity test-tpu test-tpu-all lint notebooks venv clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       install, then run the main job on the embedded default (at most 15 minutes on two cores)"
	@echo "make checkpoint GRID=DIR  how the embedded checkpoint is made, from SynthTalk, flat and in 3D, and the GRID corpus (about 2 hours)"
	@echo "make recogniser GRID=DIR  how the recogniser of lips is made that comes with the package, from the GRID corpus (about 1 hour)"
	@echo "make dubber GRID=DIR  how the dubbing model is made that comes with the package, from SynthTalk and the GRID corpus (about 2 hours)"
	@echo "make test       install, then the tests (at most 10 minutes); make test-slow: the slow ones too"
	@echo "make test-parity  install torch, transformers and diffusers too, then compare with them (full sizes: some minutes)"
	@echo "make test-tpu   install the TPU compiler, in an environment of its own, and compile the paper's step for a pod (minutes)"
	@echo "make test-tpu-all  the same for v5e and v6e too, and of the dubbing step; CI does not run it (minutes each)"
	@echo "make lint       ruff (rules and format) and mypy"
	@echo "make notebooks  the .ipynb of notebooks/ from the .py beside them"
	@echo "make venv       only the environment, in $(VENV)"

demo: venv
	$(BIN)/python -m synclipmae_jax.main --config=configs/pretrain.py:demo --workdir=$(WORKDIR)
	@if [ -f $(VENV)/seconds ]; then echo "Installing the environment had taken $$(cat $(VENV)/seconds) s."; fi

# GRID: the folder of the corpus, in any of its layouts (synclipmae_jax/data/corpora/grid.py).
checkpoint: venv
	@test -n "$(GRID)" || { echo "say where the GRID corpus lies: make checkpoint GRID=DIR" >&2; exit 2; }
	$(BIN)/synclipmae prepare --corpus grid --raw $(GRID) --out runs/grid --size 96 --sync-model none
	$(BIN)/python -m synclipmae_jax.data.synthtalk --out runs/heads_raw --heads 3d --train 500 --val 48 --test 40 --seconds 5 \
	  --size 160 --seed 11
	$(BIN)/synclipmae prepare --corpus synthtalk --raw runs/heads_raw --out runs/heads --size 96 --faces precomputed \
	  --sync-model none
	$(BIN)/python -m synclipmae_jax.main --config=configs/pretrain.py:embedded --workdir=runs/embedded \
	  --config.data.sources="(('runs/heads', 1.0), ('runs/grid', 1.0))"
	rm -rf runs/calibrated
	$(BIN)/synclipmae calibrate runs/embedded --out runs/calibrated --records runs/grid:val --records runs/heads:val --synthtalk
	@echo "To embed it: replace synclipmae_jax/demo_checkpoint by runs/calibrated; keep the README.md there and renew its numbers. Then: make recogniser and make dubber, GRID=$(GRID), which read its tokens."

# On the tokens of the embedded checkpoint: a new one needs a new recogniser and dubber.
recogniser: venv
	@test -n "$(GRID)" || { echo "say where the GRID corpus lies: make recogniser GRID=DIR" >&2; exit 2; }
	$(BIN)/synclipmae prepare --corpus grid --raw $(GRID) --out runs/grid --size 96 --sync-model none
	$(BIN)/python -m synclipmae_jax.main --config=configs/vsr.py:grid --workdir=runs/recogniser \
	  --config.data.sources="(('runs/grid', 1.0),)" --config.data.eval_split=val
	@echo "To embed it: replace synclipmae_jax/demo_recogniser by the newest folder of runs/recogniser/averaged; keep the README.md there and renew its numbers."

# Likewise on the tokens of the embedded checkpoint.
dubber: venv
	@test -n "$(GRID)" || { echo "say where the GRID corpus lies: make dubber GRID=DIR" >&2; exit 2; }
	$(BIN)/synclipmae prepare --corpus grid --raw $(GRID) --out runs/grid --size 96 --sync-model none
	$(BIN)/python -m synclipmae_jax.main --config=configs/dub.py:embedded --workdir=runs/dubber \
	  --config.data.sources="(('runs/grid', 1.0),)"
	@echo "To embed it: replace synclipmae_jax/demo_dubber by the newest folder of runs/dubber/released; keep the README.md there and renew its numbers."

test: $(VENV)/test.stamp
	$(TEST) -m "not slow"

# One after another: several of these tests start processes of their own, up to four at a time.
test-slow: $(VENV)/test.stamp
	$(TEST) -n 0 -m slow

test-parity: $(VENV)/parity.stamp
	$(TEST) tests/parity

# No TPU is needed: the compiler compiles for one that is not there.
test-tpu: $(TPU_VENV)/stamp
	JAX_PLATFORMS=cpu $(TPU_VENV)/bin/python -m pytest -m slow -k "compile_v5p or two_slices" tests/test_compile.py

# One after another: each compilation takes 6 GiB and all cores.
test-tpu-all: $(TPU_VENV)/stamp
	JAX_PLATFORMS=cpu $(TPU_VENV)/bin/python -m pytest -s -m slow -k "agrees_with_the_golden or dubbing_step or two_slices" tests/test_compile.py

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(VENV)/test.stamp
	$(BIN)/python notebooks/make_ipynb.py

venv: $(VENV)/stamp

$(VENV)/stamp: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@begun=$$(date +%s); $(PYTHON) -m venv $(VENV) && $(BIN)/python $(PIP) $(PINNED) -e . \
	  && echo $$(( $$(date +%s) - begun )) > $(VENV)/seconds && echo "Installed in $$(cat $(VENV)/seconds) s."
	@touch $@

$(VENV)/test.stamp: $(VENV)/stamp
	@$(BIN)/python $(PIP) $(PINNED) -e ".[test]"
	@touch $@

# Never torchvision or timm beside this torch: they replace it, or break the import of transformers.
$(VENV)/parity.stamp: $(VENV)/test.stamp
	@$(BIN)/python $(PIP) $(PINNED) -e ".[parity]"
	@touch $@

$(TPU_VENV)/stamp: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -m venv $(TPU_VENV) && $(TPU_VENV)/bin/python $(PIP) $(PINNED) -e ".[tpu,test]"
	@touch $@

clean:
	rm -rf $(VENV) $(TPU_VENV) runs
