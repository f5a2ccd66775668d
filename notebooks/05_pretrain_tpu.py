# ---
# jupyter:
#   accelerator: TPU
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pretraining on a TPU
#
# SyncLipMAE is trained by two tasks at once: to paint faces of which three quarters of the patches are hidden, from an
# identity, an ambient and a vocal token, and to recognise which sound belongs to which vocal token. The code is written
# for TPU pods. This notebook runs the same code on whatever is there: the cores of a TPU runtime, a GPU, or a few CPU
# devices. It lays out a mesh of devices, looks at how parameters and batches are spread over it, trains some real steps,
# and loses a machine and resumes.
#
# On Colab choose *Runtime → Change runtime type → TPU* first. On a CPU it takes about a minute and shows everything but
# the speed.

# %% [markdown]
# ## Installing
#
# In a clone of the repository whose environment this kernel runs in, the next cell does nothing. On Colab it installs the
# package; tell it where the repository is. If Colab then asks to restart the session, do so and run the notebook from the
# top.

# %%
REPOSITORY = ""  # address for `git clone`, like https://github.com/NAME/synclipmae_jax; only for Colab
EXTRAS = "[tpu]"  # the TPU compiler and its runtime; harmless without a TPU

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

# %%
PRESET = "tiny"  # of configs/pretrain.py: tiny runs in seconds; demo is a model that learns (on CPUs 8 minutes)
RECORDS = None  # a folder made by `synclipmae prepare` of your own footage; None: SynthTalk, which is made here
STEPS = 8

# %%
import json
import shutil
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display

from synclipmae_jax import checkpoints, sharding
from synclipmae_jax.apps.footage import keep_compiled
from synclipmae_jax.run import jobs
from synclipmae_jax.run.config_files import load_config
from synclipmae_jax.run.training import build_training

jax.config.update("jax_num_cpu_devices", 4)  # before JAX is used: without an accelerator, four devices to share
keep_compiled()  # in the user's cache folder: a run that resumes need not compile again
workdir = Path("runs/05_pretrain_tpu")
print(f"{jax.device_count()} devices: {', '.join(sorted({device.device_kind for device in jax.devices()}))}")

# %% [markdown]
# ## The configuration
#
# A run is one file of values: `configs/pretrain.py`, whose presets go from `tiny` to `paper`, a run of 128 chips. Any
# value may be changed; a field that does not exist is refused.

# %%
config = load_config(f"configs/pretrain.py:{PRESET}")
config.train.steps = STEPS
config.train.checkpoint_every = STEPS // 2
config.train.eval_every = STEPS
config.train.pictures_every = STEPS
config.train.log_every = 1
config.evaluation.factor_ceiling_steps = 0  # a supervised network beside the scores, which takes long
if RECORDS is not None:
  config.data.sources = ((RECORDS, 1.0),)
if jax.default_backend() != "cpu":
  config.model.compute_dtype = "bfloat16"
  config.model.unroll = False
print(config.model)

# %% [markdown]
# ## The mesh
#
# Devices form a grid with named axes. Along `data` every device has all parameters and its own clips; along `fsdp` the
# parameters, their gradients and the optimizer's state are divided, too. With `-1` an axis takes the devices that are
# left. The paper's run is (`data` 16, `fsdp` 8); a small model needs no `fsdp`, but it shows here what happens.

# %%
config.train.mesh = (("data", -1), ("fsdp", 2 if jax.device_count() % 2 == 0 else 1))
training = build_training(jobs.training_job_of(config), config)
mesh = training.mesh
print(mesh)
trainable, frozen = jax.eval_shape(training.task.init, jax.random.key(0))
placed = sharding.shardings(trainable, mesh, sharding.RULES)
names = ("visual_encoder/blocks/mlp/up/kernel", "visual_encoder/prompt_tokens", "decoder/to_pixels/kernel")
shapes, places = dict(sharding.tree_paths(trainable)), dict(sharding.tree_paths(placed))
for name in names:
  print(f"{name}: {shapes[name].shape}, a device has {places[name].shard_shape(shapes[name].shape)}")
print(f"A batch of {training.batch_size} clips: {training.batch_size // mesh.size} a device")

# %% [markdown]
# The rules that decide this are one table of path patterns, `sharding.RULES`. This is one matrix, and the devices that have
# its parts:

# %%
name = names[0]
depth, *matrix = shapes[name].shape
jax.debug.visualize_array_sharding(
  jax.device_put(np.zeros(matrix, np.float32), jax.NamedSharding(mesh, jax.P(*places[name].spec[1:])))
)

# %% [markdown]
# ## Steps
#
# `jobs.run` is what `python -m synclipmae_jax.main --config=configs/pretrain.py --workdir=DIR` calls: it makes or opens the
# data, compiles the step for the mesh, trains, saves, and measures held-out clips at the end. A model of a few steps
# knows nothing; its table stands beside chance.

# %%
shutil.rmtree(workdir / "checkpoints", ignore_errors=True)  # this notebook starts anew each time; the data is kept
jobs.run(config, workdir)

# %%
steps = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
steps = [step for step in steps if "loss" in step]
figure, axes = plt.subplots(1, 3, figsize=(12, 3))
for axis, term in zip(axes, ("reconstruction_video", "contrast", "grad_norm"), strict=True):
  axis.plot([step["step"] for step in steps], [step[term] for step in steps], marker="o")
  axis.set(xlabel="step", title=term)
plt.show()
print(sorted(path.name for path in workdir.iterdir()))

# %% [markdown]
# What the model sees and paints, from `pictures/` of the workdir: the hidden patches of both views, and the pictures decoded
# from the tokens of the video and of the sound. After so few steps there is little more than the mean colour.

# %%
picture = max((workdir / "pictures").glob("reconstruction_*.png"))
display(Image(str(picture), width=700))

# %% [markdown]
# ## A machine is lost
#
# Machines of a pod are taken away, and runs go on elsewhere. Every random number of an example depends on the seed, the
# step and the number of the example alone, and the data is a function of the step. So a run that resumes from a
# checkpoint computes what it would have computed. Here everything after the middle is thrown away, as if the machine had
# been lost, and the same call is made again. The parameters at the end must be the same, bit for bit.

# %%
wanted = checkpoints.load_item(workdir, "visual_encoder")
shutil.rmtree(workdir / "checkpoints" / str(STEPS))
jobs.run(config, workdir)

# %%
found = checkpoints.load_item(workdir, "visual_encoder")
different = [
  path
  for (path, before), (_, after) in zip(sharding.tree_paths(wanted), sharding.tree_paths(found), strict=True)
  if not np.array_equal(before, after)
]
assert not different, f"these parameters are not the same: {different}"
print(f"resumed at step {STEPS // 2}: {len(sharding.tree_paths(found))} arrays are the same, bit for bit")

# %% [markdown]
# A checkpoint does not depend on the mesh: it can be continued on another number of devices. Sums are then taken in another
# order, and the last digits differ.
#
# ## On a pod
#
# The same command runs on every host of a slice, with `--distributed`; `launch/README.md` goes from an account to a running
# pod. What a step needs on a pod is known without one: `python -m synclipmae_jax.compile --config=configs/pretrain.py
# --topology=v5p:4x4x8` compiles it and prints the memory of a chip. A run ends with SIGTERM by saving first.
