# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From donor weights to the first training steps
#
# The paper does not start from nothing: the visual encoder starts from **Sapiens-0.3B**, a ViT trained on 300 million
# pictures of people, and the speech encoder is a frozen **wav2vec 2.0 base**. Both were trained in PyTorch, and their
# files have PyTorch's names and layouts. This notebook takes such a file, converts it to an Orbax checkpoint of this
# package, looks at what is inside, starts a training run from it, and writes what was trained back in the donor's names.
#
# **Without files of yours the weights are random.** Then the notebook writes a small file with the names of Sapiens and
# random numbers, so that every step can be seen in a minute, without a download or an account. A run that starts from it
# starts from nothing.

# %% [markdown]
# ## Installing
#
# In a clone of the repository whose environment this kernel runs in, the next cell does nothing. On Colab it installs the
# package; tell it where the repository is. If Colab then asks to restart the session, do so and run the notebook from the
# top.

# %%
REPOSITORY = ""  # address for `git clone`, like https://github.com/NAME/synclipmae_jax; only for Colab
EXTRAS = ""

import importlib.util
import subprocess
import sys

if importlib.util.find_spec("synclipmae_jax") is None:
  if "google.colab" not in sys.modules:
    raise SystemExit("synclipmae_jax is not installed: run `make venv` in the clone and choose the kernel in .venv.")
  if not REPOSITORY:
    raise SystemExit("Set REPOSITORY, at the top of this cell, to the address of the repository to install from.")
  package = f"synclipmae_jax{EXTRAS} @ git+{REPOSITORY}"
  subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", package], check=True)

# %% [markdown]
# ## What you may change
#
# The files are on the pages of their authors: `sapiens_0.3b_epoch_1600_clean.pth` of *facebook/sapiens-pretrain-0.3b*
# (CC-BY-NC-4.0), and `model.safetensors` of *facebook/wav2vec2-base* (Apache-2.0). A `.pth` file needs torch to be read,
# which Colab has (elsewhere `pip install -e ".[convert]"`). The real encoder has 300 million parameters: take a runtime
# with an accelerator.

# %%
SAPIENS = None  # path of the donor's file; None: random weights of a small encoder in the same names
WAV2VEC2 = None  # path of model.safetensors, or of its folder; None: log-mel bands, which need no weights
STEPS = 6

# %%
import json
import shutil
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from safetensors.numpy import load_file, save_file

from synclipmae_jax import checkpoints
from synclipmae_jax.apps.footage import keep_compiled
from synclipmae_jax.convert import __main__ as convert
from synclipmae_jax.convert import conversion
from synclipmae_jax.run import jobs
from synclipmae_jax.run.config_files import load_config
from synclipmae_jax.sharding import tree_paths

workdir = Path("runs/04_convert")
workdir.mkdir(parents=True, exist_ok=True)
keep_compiled()  # in the user's cache folder: a second run is quicker

# %% [markdown]
# ## The donor's file
#
# A PyTorch checkpoint is a list of names with arrays. These are the names of Sapiens, an ordinary ViT: an embedding of
# patches, positions, and blocks of attention and MLP. The conversion reads all sizes from the shapes of the file, so that
# the same code converts the small random one here and the real one.

# %%
WIDTH, DEPTH, MLP, PATCH, GRID = 64, 2, 256, 8, 8


def random_sapiens(path):
  """Writes a state dict with Sapiens' names and random numbers."""
  shapes = {
    "patch_embed.projection.weight": (WIDTH, 3, PATCH, PATCH),
    "patch_embed.projection.bias": (WIDTH,),
    "cls_token": (1, 1, WIDTH),
    "pos_embed": (1, 1 + GRID * GRID, WIDTH),
    "ln1.weight": (WIDTH,),
    "ln1.bias": (WIDTH,),
  }
  linear = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "ffn.layers.0.0": (MLP, WIDTH)}
  linear["ffn.layers.1"] = (WIDTH, MLP)
  for block in range(DEPTH):
    for norm in ("ln1", "ln2"):
      shapes |= {f"layers.{block}.{norm}.{part}": (WIDTH,) for part in ("weight", "bias")}
    for name, (out, into) in linear.items():
      shapes |= {f"layers.{block}.{name}.weight": (out, into), f"layers.{block}.{name}.bias": (out,)}
  random = np.random.default_rng(0)
  weights = {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}
  save_file({name: value + ("ln" in name and name.endswith("weight")) for name, value in weights.items()}, path)


if SAPIENS is None:
  source = workdir / "random_sapiens.safetensors"
  random_sapiens(source)
  print("The weights are RANDOM: nothing was pretrained.")
else:
  source = Path(SAPIENS)

# %% [markdown]
# `python -m synclipmae_jax.convert inspect FILE` says what a file is before anything is written. It is never executed: a
# pickle that contains code is refused.

# %%
status = convert.main(["inspect", str(source)])

# %% [markdown]
# ## Conversion
#
# In a terminal: `python -m synclipmae_jax.convert sapiens --src FILE --dst DIR --verify`. Names are mapped by one table of
# rules, linear layers are transposed, and the blocks are stacked, with the depth first, so that a model of 24 blocks
# compiles as fast as one of two. `--verify` reads the result back and compares every tensor with the file. A file that is
# not whole is refused, with the difference from both sides, and nothing half-written stays.

# %%
items = {}
donors = {"visual_encoder": ("sapiens", source), "speech_encoder": ("wav2vec2", WAV2VEC2)}
for item, (donor, file) in donors.items():
  if file is None:
    continue
  items[item] = workdir / donor
  shutil.rmtree(items[item], ignore_errors=True)
  done, cost = conversion.convert(donor, src=file, dst=items[item], verify=True)
  print(f"{donor}: {done.items} parameters, licence {done.licence}, {cost.seconds:.1f} s")
  print(f"  sizes: {done.sizes}")

# %% [markdown]
# The result is an Orbax checkpoint with one item for each part of the model; it can be read without the rest. Its metadata
# names the file by its hash, the licence, and what was dropped. These are its arrays:

# %%
encoder = checkpoints.load_item(items["visual_encoder"], "visual_encoder")
meta = checkpoints.load_meta(items["visual_encoder"])["conversion"]
print({name: meta[name] for name in ("donor", "naming", "licence", "source", "dropped")})
for path, leaf in tree_paths(encoder):
  print(f"{path:35} {leaf.shape}")

# %% [markdown]
# One tensor by hand: PyTorch's linear layers have their outputs first, ours their inputs, and ours has all blocks in one
# array.

# %%
if source.suffix == ".safetensors":
  theirs = load_file(source)["layers.1.attn.qkv.weight"]
  ours = encoder["blocks"]["attention"]["qkv"]["kernel"]
  print(f"layers.1.attn.qkv.weight {theirs.shape} -> blocks/attention/qkv/kernel {ours.shape}")
  assert np.array_equal(ours[1], theirs.T)

# %% [markdown]
# ## The first training steps
#
# The configuration's encoder gets the sizes of the donor's. Its pictures may be smaller than the donor's: the table of
# positions is then interpolated. The prompt tokens, from which the identity, ambient and vocal tokens are computed, exist
# in no donor and start at random. The run prints all of this: what it loaded, resized, left out and initialised, and why.

# %%
config = load_config("configs/pretrain.py:tiny")
sizes = checkpoints.load_meta(items["visual_encoder"])["conversion"]["sizes"]
config.model.visual_encoder.update({name: value for name, value in sizes.items() if name != "image_size"})
config.data.image_size = 6 * sizes["patch"]
config.init.visual_encoder = str(items["visual_encoder"])
config.init.require = ("visual_encoder",)
if WAV2VEC2 is not None:
  speech = checkpoints.load_meta(items["speech_encoder"])["conversion"]["sizes"]
  config.model.speech_encoder.kind = "wav2vec2"
  config.model.speech_encoder.wav2vec2.update(speech)
  config.init.speech_encoder = str(items["speech_encoder"])
if jax.default_backend() != "cpu":
  config.model.compute_dtype = "bfloat16"
config.optimizer.layer_decay = 0.8  # the donor's early layers move less than its late ones
config.train.steps = config.train.eval_every = config.train.pictures_every = config.train.checkpoint_every = STEPS
config.train.log_every = 1
config.evaluation.factor_ceiling_steps = 0  # a supervised network beside the scores, which takes long

run = workdir / "run"
shutil.rmtree(run / "checkpoints", ignore_errors=True)
jobs.run(config, run)

# %% [markdown]
# `initialisation.json` has the same as a record, and the loss has begun to move:

# %%
told = json.loads((run / "initialisation.json").read_text())
print({name: told["visual_encoder"][name] for name in ("parameters", "resized", "fresh", "left_out")})
steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
steps = [step for step in steps if "loss" in step]
figure, axis = plt.subplots(figsize=(6, 3))
axis.plot([step["step"] for step in steps], [step["loss"] for step in steps], marker="o")
axis.set(xlabel="step", ylabel="loss")
plt.show()

# %% [markdown]
# How far the encoder has moved from the donor, layer by layer: the norm of the change over the norm of the weights. Early
# layers have smaller learning rates.

# %%
trained = checkpoints.load_item(run, "visual_encoder")
for name in ("norm_attention/scale", "attention/qkv/kernel", "mlp/up/kernel"):
  before, after = (dict(tree_paths(tree))[f"blocks/{name}"] for tree in (encoder, trained))
  axes = tuple(range(1, before.ndim))
  moved = np.sqrt(np.square(after - before).sum(axes) / np.square(before).sum(axes))
  print(f"{name:22} {'  '.join(f'block {block}: {100 * share:.2f} %' for block, share in enumerate(moved[:6]))}")

# %% [markdown]
# ## Back to PyTorch
#
# `export` writes the trained encoder in the donor's names. The prompt tokens, which the donor does not have, are one more
# tensor.

# %%
back = workdir / "trained_sapiens.safetensors"
back.unlink(missing_ok=True)
counts, left_out, _ = conversion.export("sapiens", src=run, dst=back)
print(f"{back}: {counts} parameters; left out: {', '.join(left_out) or 'nothing'}")
print(sorted(load_file(back))[:4], "...")

# %% [markdown]
# `synclipmae_jax.convert --help` lists the other donors: ViTMAE, SyncNet, StableSyncNet, VocaLiST, Auto-AVSR, Wan2.1-VACE and
# its autoencoder. The paper's run is `configs/pretrain.py` with `--config.init.visual_encoder` and
# `--config.init.speech_encoder`, on a pod (`05_pretrain_tpu.ipynb`).
