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
# # Who, what is said, and all the rest
#
# SyncLipMAE describes every frame of a face by three vectors. The **identity token** should say who it is, the **vocal
# token** what the mouth says, and the **ambient token** the rest: where the head turns, blinks, the brows. Nobody labels
# any of this. The three are kept apart by what they must do: the decoder paints the face from all three; the vocal token
# alone must match the sound; the identity token is taken from *another frame of the same person*, so that it can carry
# nothing that changes.
#
# This notebook looks at whether it worked: how the tokens move over time, how they differ between people, and what the
# decoder paints when tokens of several people are put together. How cleanly the factors come apart depends on the
# checkpoint; the README says what has been measured of the one in the package. Judge the pictures, not the intention.

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
FOLDER = None  # your own videos, a sub-folder for each person; None: SynthTalk, cartoon faces whose motion is known
CHECKPOINT = None  # a folder of a training run or one of its steps; None: the small model that comes with the package
PEOPLE = 5  # to look at

# %%
import functools
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Video, display

from synclipmae_jax import SyncLipMAE, prepare
from synclipmae_jax.data.pipeline import eval_clips
from synclipmae_jax.data.synthtalk.corpus import encode, write_corpus
from synclipmae_jax.evaluation.pretrain import Portrait, swap_factors
from synclipmae_jax.types import FPS, InputError

workdir = Path("runs/02_factors")
workdir.mkdir(parents=True, exist_ok=True)
model = SyncLipMAE.load(CHECKPOINT, decoder=True)

# %% [markdown]
# ## Clips
#
# `prepare` makes clips of any footage: 25 frames a second, 16 kHz, cropped to the face. It divides people into splits for
# training and testing; here all are looked at. The synthetic clips are two of each person, in other scenes and with
# other words.

# %%
if FOLDER is None:
  raw = workdir / "synthtalk"
  write_corpus(raw, clips={"train": 2 * PEOPLE}, seconds=4, size=112, seed=7, workers=1, progress=False)
else:
  raw = Path(FOLDER)
records = workdir / f"prepared_{model.image_size}_{'synthtalk' if FOLDER is None else raw.name}"
prepare(raw, records, size=model.image_size, workers=1, progress=False)

clips = []
for split in ("train", "val", "test"):
  try:
    clips += list(eval_clips(records, split=split, image_size=model.image_size))
  except InputError:  # few people do not fill all splits
    pass
people = sorted({clip.identity for clip in clips})[:PEOPLE]
clips = sorted((clip for clip in clips if clip.identity in people), key=lambda clip: (clip.identity, clip.key))

figure, axes = plt.subplots(1, len(clips), figsize=(1.6 * len(clips), 1.9), squeeze=False)
for axis, clip in zip(axes[0], clips, strict=True):
  axis.imshow(clip.frames[len(clip.frames) // 2])
  axis.set_title(f"person {people.index(clip.identity)}", fontsize=9)
  axis.axis("off")
plt.show()

# %% [markdown]
# ## Tokens
#
# `embed` takes frames and sound and gives four arrays of one row a frame.

# %%
embedded = [model.embed(clip.frames, clip.waveform, face_box=clip.face_box, mouth_box=clip.mouth_box) for clip in clips]
KINDS = ("identity", "vocal", "ambient")
print({kind: getattr(embedded[0], kind).shape for kind in (*KINDS, "audio")})

# %% [markdown]
# How much of a token changes *within* a clip, as a share of its variance over all clips? The identity token should stand
# still (near 0), the vocal token should change with every syllable (near 1).

# %%
shares = {}
for kind in KINDS:
  tokens = [getattr(one, kind) for one in embedded]
  within = np.mean([each.var(axis=0).sum() for each in tokens])
  shares[kind] = float(within / np.concatenate(tokens).var(axis=0).sum())
figure, axis = plt.subplots(figsize=(5, 2))
axis.barh(list(shares), list(shares.values()))
axis.set(xlim=(0, 1), xlabel="share of the variance that is within a clip")
axis.invert_yaxis()
plt.show()
print({kind: round(share, 2) for kind, share in shares.items()})

# %% [markdown]
# ## Trajectories
#
# A token has many numbers; its two directions of largest variance (principal components, of all clips together) show
# its path over time. For synthetic clips the true motion is known and drawn in grey: `opening` of the mouth, `yaw` of the
# head. A correlation near ±1 says that this direction of the token is that motion.


# %%
def components(kind, number=2):
  """The first principal components of a token, over all clips: the mean and the directions."""
  every = np.concatenate([getattr(one, kind) for one in embedded])
  mean = every.mean(axis=0)
  return mean, np.linalg.svd(every - mean, full_matrices=False)[2][:number].T


paths = {}
for kind in ("vocal", "ambient"):
  mean, directions = components(kind)
  paths[kind] = [(getattr(one, kind) - mean) @ directions for one in embedded]

clip, seconds = clips[0], np.arange(len(clips[0].frames)) / FPS
truth = dict(zip(clip.truth_names, clip.truth.T, strict=True)) if clip.truth is not None else {}
figure, axes = plt.subplots(2, 1, figsize=(10, 4.5), sharex=True)
for axis, kind, motion in zip(axes, paths, ("mouth/opening", "ambient/yaw"), strict=True):
  for number in range(2):
    axis.plot(seconds, paths[kind][0][:, number], label=f"{kind}, component {number + 1}")
  if motion in truth:
    other = axis.twinx()
    other.fill_between(seconds, truth[motion], truth[motion].min(), color="tab:grey", alpha=0.25)
    other.set_ylabel(f"true {motion}")
    found = [np.corrcoef(path, truth[motion])[0, 1] for path in paths[kind][0].T]
    axis.set_title(f"correlation with {motion}: {', '.join(f'{value:+.2f}' for value in found)}", fontsize=9)
  axis.legend(loc="upper right", fontsize=8)
axes[-1].set_xlabel("time, s")
plt.show()

# %% [markdown]
# The same path in the plane, one colour a person. Vocal tokens of all people should share one cloud, since the same sounds
# are made by everyone; identity tokens should fall into one small cloud for each person.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.8))
for axis, kind in zip(axes, KINDS, strict=True):
  mean, directions = components(kind)
  for clip, one in zip(clips, embedded, strict=True):
    x, y = ((getattr(one, kind) - mean) @ directions).T
    axis.plot(x, y, linewidth=0.6, marker=".", markersize=3, color=f"C{people.index(clip.identity)}")
  axis.set(title=f"{kind} tokens", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## The same person?
#
# The cosine of the mean tokens of two clips. Clips of one person are neighbours here, so that a token that knows people
# has red squares of two clips along the diagonal; one that knows only words has none.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.8))
for axis, kind in zip(axes, KINDS, strict=True):
  means = np.stack([getattr(one, kind).mean(axis=0) for one in embedded])
  means -= means.mean(axis=0)  # what all faces share
  unit = means / np.linalg.norm(means, axis=1, keepdims=True)
  axis.imshow(unit @ unit.T, cmap="RdBu_r", vmin=-1, vmax=1)
  best = (unit @ unit.T - 2 * np.eye(len(unit))).argmax(axis=1)
  hits = np.mean([clips[i].identity == clips[j].identity for i, j in enumerate(best)])
  axis.set(title=f"{kind}: nearest clip is the same person's in {100 * hits:.0f} %", xlabel="clip", ylabel="clip")
  axis.title.set_fontsize(9)
plt.show()

# %% [markdown]
# ## Swaps
#
# Now the decoder paints. It gets the surroundings of a face (the patches that cover least of it) and three tokens, which
# may be of different people. Each row is one person's identity and surroundings, each column another one's mouth. The left
# column shows the person, the top row whose mouth it is, and the first decoded column keeps the own mouth. What ought to
# change along a row is the mouth, and nothing else. What a small model paints is coarse, and that of the package paints
# hardly more than a head with a mouth: look where the mouth opens and where it stays shut.


# %%
def portraits(*chosen):
  """The given (clip, frame) as one batch, with the boxes of face and mouth."""
  names = ("frames", "face_box", "mouth_box")
  return Portrait(*(np.stack([getattr(clip, name)[frame] for clip, frame in chosen]) for name in names))


swap = jax.jit(functools.partial(swap_factors, model.embedder.model))


def decode(identity_of, mouth_of, pose_of):
  """Pictures [n, S, S, 3] in 0..1 from the tokens of three lists of n (clip, frame)."""
  pictures = swap(model.embedder.params, *(portraits(*chosen) for chosen in (identity_of, mouth_of, pose_of)))
  return np.clip(np.asarray(pictures), 0, 1)


def widest(clip):
  """The frame in which the mouth box is highest, relative to the face; without one, the middle frame."""
  height = (clip.mouth_box[:, 3] - clip.mouth_box[:, 1]) / (clip.face_box[:, 3] - clip.face_box[:, 1])
  return int(height.argmax()) if clip.mouth_box.min() >= 0 else len(clip.frames) // 2


first = [next(clip for clip in clips if clip.identity == person) for person in people]
own = [(clip, len(clip.frames) // 2) for clip in first]
donors = [(first[0], widest(first[0])), *((clip, len(clip.frames) // 3) for clip in first[1:])]
mouths = [[shot, *donors] for shot in own]  # by row
same = [[shot] * len(row) for shot, row in zip(own, mouths, strict=True)]
flat = lambda rows: [shot for row in rows for shot in row]
painted = iter(decode(flat(same), flat(mouths), flat(same)))

figure, axes = plt.subplots(len(first) + 1, len(donors) + 2, figsize=(1.5 * len(donors) + 3, 1.5 * len(first) + 1.5))
for axis in axes.flat:
  axis.axis("off")
axes[0, 1].set_title("own mouth", fontsize=9, y=0)
for axis, (clip, frame) in zip(axes[0, 2:], donors, strict=True):
  axis.imshow(clip.frames[frame])
for row, (clip, frame) in zip(axes[1:], own, strict=True):
  row[0].imshow(clip.frames[frame])
  for axis in row[1:]:
    axis.imshow(next(painted))
plt.show()

# %% [markdown]
# One token at a time: for person A, the mouth or the pose of person B.

# %%
if len(first) > 1:
  one, other = ((clip, widest(clip)) for clip in first[:2])
  swaps = {  # whose identity and surroundings, whose mouth, whose pose
    "A, decoded": (one, one, one),
    "mouth of B": (one, other, one),
    "pose of B": (one, one, other),
    "mouth and pose of B": (one, other, other),
    "B, decoded": (other, other, other),
  }
  shown = {"A": one[0].frames[one[1]], **dict(zip(swaps, decode(*zip(*swaps.values(), strict=True)), strict=True))}
  shown["B"] = other[0].frames[other[1]]
  figure, axes = plt.subplots(1, len(shown), figsize=(1.8 * len(shown), 2.1))
  for axis, (title, picture) in zip(axes, shown.items(), strict=True):
    axis.imshow(picture)
    axis.set_title(title, fontsize=9)
    axis.axis("off")
  plt.show()

# %% [markdown]
# And over time: one picture of person A, with the mouth and the sound of person B. It is painted frame by frame at the
# model's size, without any memory. It is a look into the tokens and no dubbing.

# %%
if len(first) > 1:
  still, speaker = own[0], first[1]
  moments = [(speaker, frame) for frame in range(len(speaker.frames))]
  spoken = decode([still] * len(moments), moments, [still] * len(moments))
  side = np.concatenate([speaker.frames, (255 * spoken).round().astype(np.uint8)], axis=2)
  encode(workdir / "swap.mp4", side, speaker.waveform, crf=18)
  display(Video(str(workdir / "swap.mp4"), embed=True, width=480))

# %% [markdown]
# ## Numbers instead of pictures
#
# `python -m synclipmae_jax.main --config=configs/evaluate.py --workdir=DIR --config.checkpoint=RUN` fits a linear map from
# every token to the true mouth, the ambient motion and the identity, and judges it on other people: a matrix of R² whose
# diagonal should be high and the rest low.
