"""The tokens of whole held-out clips, embedded once for every evaluator that looks at the same parameters."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from synclipmae_jax import sharding
from synclipmae_jax.metrics.sync import MIN_FRAMES
from synclipmae_jax.models.synclipmae import SyncLipMAEModel
from synclipmae_jax.types import SAMPLES_PER_FRAME, EvalClip, Params, Tokens

PAD_FRAMES = 64  # clips are padded to a multiple of this: at most four shapes to compile for clips of up to 10 s


class HeldOutTokens:
  """Called with parameters and this process's clips: key -> tokens, numpy [T, D], of all with MIN_FRAMES frames.

  The last tokens are kept: evaluators that are called with the same parameters and clips share them.
  """

  def __init__(self, model: SyncLipMAEModel, *, mesh: Mesh):
    self.model, self.mesh = model, mesh
    self._embed = on_all_devices(model.embed, mesh)
    self._last: tuple[Any, ...] = ()
    self._tokens: Mapping[str, Tokens] = {}

  def __call__(self, trainable: Params, frozen: Params, clips: Sequence[EvalClip]) -> Mapping[str, Tokens]:
    asked = trainable, frozen, clips
    if not self._last or any(one is not other for one, other in zip(asked, self._last, strict=True)):
      self._tokens = self._embed_clips(*asked)
      self._last = asked
    return self._tokens

  def _embed_clips(self, trainable: Params, frozen: Params, clips: Sequence[EvalClip]) -> dict[str, Tokens]:
    """On each device one clip at a time.

    All processes take as many turns as the one with the most clips of a length; a place without a clip is computed in
    vain. Clips of other padded lengths never share a turn: a clip's tokens are the same in any company.
    """
    places = self.mesh.size // jax.process_count()
    waiting = collections.defaultdict(list)
    for clip in clips:
      if len(clip.frames) >= MIN_FRAMES:  # shorter ones are not scored
        waiting[_padded_frames(clip)].append(clip)
    turns = sharding.gather({frames: -(-len(clips) // places) for frames, clips in waiting.items()})
    tokens = {}
    for frames in sorted(set().union(*turns)):
      for turn in range(max(of_one.get(frames, 0) for of_one in turns)):
        chosen = waiting[frames][turn * places :][:places]
        batch = {
          **empty_pictures(places, frames, size=self.model.image_size),
          "waveform": np.zeros((places, frames * SAMPLES_PER_FRAME), np.float32),
        }
        for row, clip in enumerate(chosen):
          for name, value in _padded(clip).items():
            batch[name][row] = value
        found = local_tokens(self._embed(trainable, frozen, **sharding.to_global(batch, self.mesh)))
        for row, clip in enumerate(chosen):
          tokens[clip.key] = Tokens(**{name: value[row, : len(clip.frames)] for name, value in found.items()})
    return tokens


def on_all_devices(embed: Callable, mesh: Mesh) -> Callable:
  """`SyncLipMAEModel.embed` or its visual half, jitted, of as many clips at once as the mesh has devices."""

  def constrained(*args, **kwargs):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for the activations' constraints
      return embed(*args, **kwargs)

  return jax.jit(constrained, out_shardings=sharding.batch_sharding(mesh))


def empty_pictures(clips: int, frames: int, *, size: int) -> dict[str, np.ndarray]:
  """Room for the visual half of what `embed` takes."""
  return {
    "frames": np.zeros((clips, frames, size, size, 3), np.uint8),
    "face_box": np.zeros((clips, frames, 4), np.float32),
    "mouth_box": np.zeros((clips, frames, 4), np.float32),
  }


def local_tokens(tokens: Tokens) -> dict[str, np.ndarray]:
  """Name -> this process's rows [b, T, D] of the tokens that there are."""
  found = {name: getattr(tokens, name) for name in ("identity", "vocal", "ambient", "audio")}
  return {name: sharding.to_local(value) for name, value in found.items() if value is not None}


def embed_clip(embed: Callable, trainable: Params, frozen: Params, clip: EvalClip) -> tuple[np.ndarray, np.ndarray]:
  """(audio, vocal) tokens [T, D] of one clip."""
  tokens = embed(trainable, frozen, **{name: value[None] for name, value in _padded(clip).items()})
  audio, vocal = jax.device_get((tokens.audio, tokens.vocal))
  return audio[0, : len(clip.frames)], vocal[0, : len(clip.frames)]


def _padded_frames(clip: EvalClip) -> int:
  return -(-len(clip.frames) // PAD_FRAMES) * PAD_FRAMES


def _padded(clip: EvalClip) -> dict[str, np.ndarray]:
  """What `embed` takes. Padding at the end is silence and changes no token before it."""
  missing = _padded_frames(clip) - len(clip.frames)
  pad = lambda x: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), mode="edge")
  return {
    "frames": pad(clip.frames),
    "waveform": np.pad(clip.waveform, (0, missing * SAMPLES_PER_FRAME)),
    "face_box": pad(clip.face_box),
    "mouth_box": pad(clip.mouth_box),
  }
