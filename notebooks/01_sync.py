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
# # Does the picture fit the sound?
#
# A talking face says everything twice: with the lips and with the voice. SyncLipMAE computes one vector of every video
# frame that stands for the motion of the mouth (the **vocal token**), and one of every 40 ms of sound (the **audio
# token**), such that the two are alike when they belong to the same instant. If a file's picture comes late, its vocal
# tokens resemble the audio tokens of some frames ago. To find the lag, one tries them all and takes the best.
#
# This notebook takes a video, draws that search as a curve, and writes a file in which the lag is mended. It takes
# about a minute on a laptop and needs neither a GPU nor a download.

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

# %%
VIDEO = None  # path of your own video, of any usual format; None: a synthetic clip whose lag is known
CHECKPOINT = None  # a folder of a training run or one of its steps; None: the small model that comes with the package

# %%
from pathlib import Path

import av
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, Video, display

from synclipmae_jax import SyncLipMAE
from synclipmae_jax.data.media.remux import fix_lag
from synclipmae_jax.data.synthtalk.corpus import write_corpus
from synclipmae_jax.sync import report

workdir = Path("runs/01_sync")
workdir.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## A clip
#
# Without a file of yours, SynthTalk makes one: a procedural face that speaks, with sound, whose true lag is known. It is a
# cartoon. The small model of the package was trained on such faces only: on them it is sure of itself, on films of real
# people it mostly says that it cannot tell. For those, train or load a checkpoint of your own.

# %%
true_lag = None
if VIDEO is None:
  write_corpus(workdir / "synthtalk", clips={"test": 2}, seconds=6, size=224, workers=1, progress=False)
  video = workdir / "synthtalk" / "test" / "test_00001.mp4"
  true_lag = int(np.load(video.with_suffix(".truth.npz"))["lag"])
  print(f"{video}: its picture is {true_lag} frames, {40 * true_lag} ms, late")
else:
  video = Path(VIDEO)
display(Video(str(video), embed=True, width=320))

# %% [markdown]
# ## The lag
#
# `sync` finds the face, computes both kinds of tokens, and compares them at every lag from -15 to 15 frames of 40 ms. A
# lag is **positive when the picture is late**. Next to the lag it gives its confidence, the probability that the lag is
# right within a frame, and a verdict. Silence, a still mouth or another person's voice give no lag, and a reason.

# %%
model = SyncLipMAE.load(CHECKPOINT)
result = model.sync(video)
print(report.table([result]))

# %% [markdown]
# The curve: how alike lips and sound are, on average over the file, if the picture is assumed to be late by so much. One
# clear peak is a lag; a flat curve, or several peaks, is none.

# %%
lags = np.arange(len(result.curve)) - len(result.curve) // 2


def draw_curve(axis, found, label):
  axis.plot(40 * lags, found.curve, marker="o", markersize=3, label=label)
  axis.set(xlabel="lag, ms (positive: the picture is late)", ylabel="mean cosine of lips and sound")


figure, axis = plt.subplots(figsize=(8, 3.5))
draw_curve(axis, result, "as it is")
if true_lag is not None:
  axis.axvline(40 * true_lag, color="tab:red", linestyle=":", label="true lag")
axis.legend()
plt.show()

# %% [markdown]
# The same before the average: each column is an instant, each row a lag, and the dots are the best lag of each instant. A
# straight row of dots is a constant lag. A slope would be a clock that runs too fast, and a step a cut. Below, the blue
# band shows where speech is heard.

# %%
report.plot(result, workdir / "lag.png")
display(Image(str(workdir / "lag.png"), width=900))

# %% [markdown]
# ## The mended file
#
# `synclipmae sync FILE --fix OUT` in a terminal does the same as this cell. It copies the streams and changes only their
# times, so that nothing is encoded anew and no quality is lost. A file that is in sync is copied. If no lag was found,
# nothing is written.

# %%
mended = workdir / f"mended{video.suffix}"
mended.unlink(missing_ok=True)
if result.verdict == "not_synchronizable":
  print(f"Nothing is mended: {result.reason}")
else:
  done = fix_lag(video, mended, lag_ms=result.lag_ms if result.verdict == "out_of_sync" else 0.0)
  print(f"{mended} is written; encoded anew: {', '.join(done.reencoded) or 'nothing'}")

# %% [markdown]
# Now the curve should have its peak at zero.

# %%
if mended.exists():
  after = model.sync(mended)
  figure, axis = plt.subplots(figsize=(8, 3.5))
  draw_curve(axis, result, f"before: {result.lag_ms:.0f} ms")
  draw_curve(axis, after, "after: " + (f"{after.lag_ms:.0f} ms" if after.lag_ms is not None else "cannot be told"))
  axis.axvline(0, color="tab:grey", linewidth=0.8)
  axis.legend()
  plt.show()
  display(Video(str(mended), embed=True, width=320))

# %% [markdown]
# ## When there is nothing to find
#
# A tool that always answers is of no use. Here the picture of one clip meets the sound of another: the curve has no peak
# that stands out, and the verdict says so.

# %%
if VIDEO is None:
  other, foreign = video.with_name("test_00000.mp4"), workdir / "foreign.mp4"
  with av.open(str(video)) as seen, av.open(str(other)) as heard, av.open(str(foreign), "w") as out:
    sources = [(seen, seen.streams.video[0]), (heard, heard.streams.audio[0])]
    copies = [out.add_stream_from_template(stream) for _, stream in sources]
    for (container, stream), copy in zip(sources, copies, strict=True):
      for packet in container.demux(stream):
        if packet.dts is not None:
          packet.stream = copy
          out.mux(packet)
  answer = model.sync(foreign)
  print(report.table([answer]))
  figure, axis = plt.subplots(figsize=(8, 3.5))
  draw_curve(axis, result, "its own voice")
  draw_curve(axis, answer, "another voice")
  axis.legend()
  plt.show()

# %% [markdown]
# ## Many files
#
# In a terminal, `synclipmae sync FOLDER --json --workers 2` judges a folder, `--csv FILE` and `--plot FOLDER` write tables
# and pictures. `python -m synclipmae_jax.main --config=configs/sync.py:real` says how far the answers on *your* footage can
# be trusted: it shifts every file by known lags and counts how many are found.
