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
# # Emotions and actions from frozen tokens
#
# Do the tokens know what a face feels and does, though nobody ever told them? The usual test is a **linear probe**: the
# encoder stays as it is, and one linear layer is fitted on its tokens to name an emotion, or any number of actions such
# as a smile or a blink. Of every frame the probe reads the mean of the vocal and the ambient token; the answer for a clip
# is the mean over 16 of its frames. Since one layer cannot do much by itself, what it finds must be in the tokens.
#
# The notebook fits both probes on labelled clips, judges them on people that they have not seen, and labels a video over
# time. It takes about two minutes, of which most goes into making and reading the clips: the fit itself takes seconds.

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
# For clips of your own, name a folder of videos and label them: for each file one emotion of `neutral`, `happy`, `sad`,
# `angry`, `fear`, `disgust`, `surprise`, `contempt` (or `""` for unknown), and the actions that are seen, in words of your
# choice. The name of a file up to its last `_` is the person: `anna_1.mp4`, `anna_2.mp4`. People are divided between
# fitting and testing, so take at least four, and of each label at least two clips.

# %%
FOLDER = None  # your videos; None: SynthTalk, cartoon faces that play expressions
LABELS = {}  # {"anna_1.mp4": ("happy", ["smile", "blink"]), "ben_1.mp4": ("neutral", [])}
CHECKPOINT = None  # the encoder: a training run or one of its steps; None: the small model that comes with the package

# %%
import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, Video, display

from synclipmae_jax import SyncLipMAE, prepare
from synclipmae_jax.data.records import open_records
from synclipmae_jax.data.synthtalk.corpus import write_corpus
from synclipmae_jax.probing.over_time import label_file
from synclipmae_jax.probing.saved import SavedProbe
from synclipmae_jax.run import jobs
from synclipmae_jax.run.config_files import load_config
from synclipmae_jax.types import FPS

workdir = Path("runs/03_probe")
workdir.mkdir(parents=True, exist_ok=True)
model = SyncLipMAE.load(CHECKPOINT)

# %% [markdown]
# ## Labelled clips
#
# Your clips are copied into the layout of a labelled corpus (that of CelebV-HQ, one JSON table), which `prepare` knows; so
# it knows MEAD, RAVDESS and CREMA-D, as their authors ship them. The synthetic faces have two kinds of labels: the
# expression that a clip plays, and which of some twenty actions its true motion shows.


# %%
def write_labelled(folder, labels, out):
  """Copies labelled videos into the layout of CelebV-HQ."""
  (out / "processed").mkdir(parents=True, exist_ok=True)
  actions = sorted({action for _, seen in labels.values() for action in seen})
  clips = {}
  for name, (emotion, seen) in labels.items():
    source = Path(folder, name)
    shutil.copy(source, out / "processed" / source.name)
    attributes = {"action": [int(action in seen) for action in actions]}
    if emotion:
      attributes["emotion"] = {"sep_flag": False, "labels": emotion}
    clips[source.stem] = {"ytb_id": source.stem.rpartition("_")[0] or source.stem, "attributes": attributes}
  table = {"meta_info": {"action_mapping": actions, "appearance_mapping": []}, "clips": clips}
  (out / "celebvhq_info.json").write_text(json.dumps(table))


raw = workdir / ("synthtalk" if FOLDER is None else "labelled")
if FOLDER is None:
  write_corpus(raw, clips={"train": 160, "test": 64}, seconds=2, size=96, seed=3, progress=False)
else:
  write_labelled(FOLDER, LABELS, raw)
records = workdir / f"prepared_{model.image_size}"
prepare(raw, records, size=model.image_size, progress=False)
for split in ("train", "test"):
  opened = open_records(records, split=split)
  print(f"{split}: {len(opened)} clips of {len({opened[row]['identity'] for row in range(len(opened))})} people")

# %% [markdown]
# ## An emotion
#
# `python -m synclipmae_jax.main --config=configs/probe.py:emotion --workdir=DIR --config.data.sources="(('RECORDS', 1.0),)"`
# does the same in a terminal. The tokens of all clips are computed once and kept in `cache`, then the layer is fitted for
# several strengths of L2, of which held-out people of the training clips choose one. The table states each score beside
# that of the **prior**, which knows only how frequent the classes are: what is not far above it is no knowledge.


# %%
def fit_probe(preset, labels):
  """Runs configs/probe.py on the records; returns the workdir of the probe."""
  config = load_config(f"configs/probe.py:{preset}")
  config.data.sources = ((str(records), 1.0),)
  config.data.cache = str(workdir / "features")
  config.data.labels = labels
  config.encoder.checkpoint = CHECKPOINT
  config.probe.frames = 16  # evenly spread over the clip; of longer clips 80 know more
  config.compare = (("vocal", "frames", 16), ("ambient", "frames", 16), ("identity", "frames", 16))
  jobs.run(config, workdir / preset)
  return workdir / preset


emotion = fit_probe("emotion", "emotion")

# %% [markdown]
# Which emotions are taken for which: rows are the truth, columns the answer.

# %%
display(Image(str(emotion / "confusion.png"), width=500))

# %% [markdown]
# ## Actions
#
# Several may hold at once, so each has its own probability. The area under its ROC curve (AUC) is 0.5 for a coin and 1 for
# a perfect order of the clips. The ambient token should know brows and head, the vocal token the mouth; the identity token
# should know nothing.

# %%
action = fit_probe("action", "shown" if FOLDER is None else "actions")
display(Image(str(action / "classes.png"), width=800))

# %% [markdown]
# ## Over time
#
# `synclipmae emotion VIDEO --probe DIR` labels a file as a whole and in a window around every frame. Here one of the
# clips that the probe was not fitted on:

# %%
if FOLDER is None:
  video = raw / "test" / "test_00000.mp4"
  known = json.loads(str(np.load(video.with_suffix(".truth.npz"))["labels"]))
  print(f"it plays: {known}")
else:
  video = raw / "processed" / Path(sorted(LABELS)[0]).name
display(Video(str(video), embed=True, width=240))

tokens = model.embed(video)
figure, axes = plt.subplots(1, 2, figsize=(13, 3.5))
for axis, probe in zip(axes, (emotion, action), strict=True):
  saved = SavedProbe.load(probe)
  found = label_file(saved, {name: getattr(tokens, name) for name in saved.tokens}, window=0.5)
  seconds = np.arange(len(found.over_time)) / FPS
  for number in np.argsort(-found.whole)[:4]:
    label = f"{found.classes[number]} ({found.whole[number]:.2f} as a whole)"
    axis.plot(seconds, found.over_time[:, number], label=label)
  axis.set(xlabel="time, s", ylim=(0, 1), title=f"{probe.name}: {', '.join(found.labels) or 'none'}")
  axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## What this says, and what not
#
# A probe knows the classes that it was shown and always names one of them, of whatever face. One that was fitted on cartoon
# brows says nothing about people, and labels that people give to played emotions say little about what somebody feels.
# Compare with the prior's score, look at the confidence intervals, and test on people whom nobody was fitted on.
