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
# # A face that says something else
#
# Dubbing puts new speech into an old picture: the mouth has to move as the new sound wants, and everything else has
# to stay as it was. The model of the package (Wan2.1-VACE in small) generates the mouth region, 17 pictures at a
# time. It sees the rest of the picture, one picture of the person, the picture before, and for every frame one
# **control token**: the audio token of the new speech, or the vocal token of another person's mouth. Both live in the
# same space, so the same weights serve both.
#
# This notebook dubs a clip in both ways and compares the results with the truth. It takes about two minutes on a
# laptop and needs neither a GPU nor a download.
#
# The model is small and knows few faces: the drawn ones of SynthTalk, and one speaker of the GRID corpus. Of any
# other face it says so. Do not pass a dubbed video off as what somebody said, and dub nobody who does not agree.

# %% [markdown]
# ## Installing
#
# In a clone of the repository whose environment this kernel runs in, the next cell does nothing. On Colab it installs
# the package; tell it where the repository is. If Colab then asks to restart the session, do so and run the notebook
# from the top.

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

# %%
VIDEO = None  # path of your own video of one talking face; None: a synthetic person
SPEECH = None  # what it is to say: a sound, or a video whose mouth is taken over too; None: of another synthetic person
CHECKPOINT = None  # a run of configs/dub.py, or a step of it; None: the model that comes with the package
SECONDS = 3.0  # length of the synthetic clips

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Video, display

from synclipmae_jax import Dubber, SyncLipMAE
from synclipmae_jax.data.media.video import read_frames
from synclipmae_jax.data.synthtalk.dubbing import write_dubbing

workdir = Path("runs/06_dub")
workdir.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Source, drive, truth
#
# SynthTalk makes three clips: a person, another person who says what is to be said, and the first person saying that.
# The third is what the model should produce, which nobody has of real footage.

# %%
if VIDEO is None or SPEECH is None:
  write_dubbing(workdir / "clips", 1, seconds=SECONDS)
source = Path(VIDEO or workdir / "clips/source/pair_000.mp4")
drive = Path(SPEECH or workdir / "clips/drive/pair_000.mp4")
truth = None if VIDEO or SPEECH else workdir / "clips/truth/pair_000.mp4"
display(Video(str(source), embed=True, width=240), Video(str(drive), embed=True, width=240))

# %% [markdown]
# ## What will change
#
# The mask in red: the lower half of the face, some way below the chin. It stands still within 17 pictures, because a
# mask that followed the chin would tell how far the mouth is open. Outside of it every pixel stays as it is.

# %%
model = Dubber.load(CHECKPOINT)
plt.figure(figsize=(3, 3))
plt.imshow(model.preview(source))
plt.axis("off")
plt.show()

# %% [markdown]
# ## Driven by sound, driven by a mouth
#
# The same model, the same weights; only the tokens differ. `known` says whether the model gives back what it was
# shown of the face as well as of the faces that it was trained on.

# %%
results = {}
for name in ("audio", "drive_video") if drive.suffix == ".mp4" else ("audio",):
  results[name] = workdir / f"{name}.mp4"
  done = model.dub(source, results[name], **{name: drive})
  print(f"{name}: {done.dubbed} of {done.frames} pictures dubbed in {done.segments} segments, known: {done.known}")
  for note in done.notes:
    print(f"  {note}")
  display(Video(str(results[name]), embed=True, width=240))

# %% [markdown]
# ## Frame by frame

# %%
shown = {"source": source, **results, **({"truth": truth} if truth else {})}
pictures = {name: [frame.image for frame in read_frames(path)] for name, path in shown.items()}
count = min(len(frames) for frames in pictures.values())
moments = np.linspace(0, count - 1, 8).round().astype(int)
figure, axes = plt.subplots(len(pictures), len(moments), figsize=(2 * len(moments), 2 * len(pictures)), squeeze=False)
for row, (name, frames) in zip(axes, pictures.items(), strict=True):
  for axis, moment in zip(row, moments, strict=True):
    axis.imshow(frames[moment])
    axis.set(xticks=[], yticks=[])
  row[0].set_ylabel(name)
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Does the mouth fit the sound?
#
# `sync`, which judges any file, judges these. The score at lag 0 is the mean cosine of lips and sound.

# %%
judge = SyncLipMAE.load()
for name, path in {**results, **({"truth": truth} if truth else {})}.items():
  found = judge.sync(path)
  print(f"{name:12} {found.verdict.replace('_', ' '):20} score at lag 0: {found.curve[len(found.curve) // 2]:.2f}")

# %% [markdown]
# In a terminal, `synclipmae dub VIDEO --audio SPEECH.wav --out OUT.mp4` does the same, goes on where it was stopped,
# and keeps all other streams of the file; `--compare BESIDE.mp4` writes source and result side by side. Folders of
# dubbed videos, made by any system, are scored by `python -m synclipmae_jax.main --config=configs/dub.py:evaluate`.
