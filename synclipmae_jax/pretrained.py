"""Use of a trained model: `SyncLipMAE.load()`, then `embed`, `sync`, or `sync_loss` to train generators."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from synclipmae_jax.inference.blocks import DEMO, Embedding
from synclipmae_jax.inference.embedder import Embedder
from synclipmae_jax.inference.stream import embed_file
from synclipmae_jax.inference.trained import load_trained, refusing
from synclipmae_jax.sync.analysis import sync_file
from synclipmae_jax.sync.calibration import Calibration
from synclipmae_jax.sync.result import SyncResult
from synclipmae_jax.types import SAMPLES_PER_FRAME, InputError

SYNTHETIC = "this checkpoint was trained on synthetic faces only"


class SyncLipMAE:
  """A trained model. `SyncLipMAE.load` makes one.

  `name`: origin of the model; `step`: the checkpoint, if it was loaded; `notes`: caveats for the user; `image_size`: S.
  """

  def __init__(
    self,
    embedder: Embedder,
    *,
    name: str,
    calibration: Calibration,
    notes: Sequence[str] = (),
    step: Path | None = None,
  ):
    self.embedder, self.name, self.calibration, self.notes = embedder, name, calibration, tuple(notes)
    self.step = step
    self._sync_loss = jax.jit(functools.partial(_sync_loss, embedder.model), static_argnames="lag")

  @property
  def image_size(self) -> int:
    """Pixels of a side of the face crops."""
    return self.embedder.image_size

  @classmethod
  def load(cls, directory: str | os.PathLike | None = None, *, decoder: bool = False) -> SyncLipMAE:
    """Loads a workdir or a step; by default the small model that comes with the package. On request with the decoder.

    Raises InputError if no complete checkpoint is found, or if its training data were prepared differently from this
    version.
    """
    if directory is None and not DEMO.exists():
      raise InputError("this installation contains no checkpoint: give the directory of one")
    say = functools.partial(print, file=sys.stderr)  # standard output is for results
    trained = load_trained(DEMO if directory is None else directory, decoder=decoder, say=say)
    stored = trained.meta.get("calibration")
    with refusing(f"checkpoint {trained.step} has a calibration that cannot be read"):
      calibration = Calibration.from_json(stored) if stored else Calibration.uncalibrated()
    data = trained.config["data"]
    synthetic = data.get("synthtalk") and not data.get("sources")
    return cls(
      trained.embedder,
      name="the embedded demo" if directory is None else str(trained.step),
      calibration=calibration,
      step=trained.step,
      notes=[SYNTHETIC] * bool(synthetic) + ["its confidence is not calibrated"] * (not stored),
    )

  def embed(
    self,
    source: str | os.PathLike | Sequence[str | os.PathLike] | np.ndarray,
    waveform: np.ndarray | None = None,
    *,
    face_box: np.ndarray | None = None,
    mouth_box: np.ndarray | None = None,
    faces: str = "auto",
    audio_track: int | None = None,
  ) -> Embedding | list[Embedding]:
    """Tokens of a video file, of each of several files, or of arrays.

    Files: the face that is visible longest; `faces` selects the detector (`data.faces.sources.open_faces`),
    `audio_track` the sound track, counted from 1 (None: `data.media.sound_track.choose_sound` chooses). Arrays: see
    `Embedder.embed`. Raises InputError.
    """
    if isinstance(source, str | os.PathLike):
      return embed_file(self.embedder, source, faces=faces, audio_track=audio_track)
    if not isinstance(source, np.ndarray):
      return [embed_file(self.embedder, path, faces=faces, audio_track=audio_track) for path in source]
    return self.embedder.embed(source, waveform, face_box=face_box, mouth_box=mouth_box)

  def sync(
    self,
    path: str | os.PathLike,
    *,
    faces: str = "auto",
    audio_track: int | None = None,
    progress: Callable[[float, float], None] | None = None,
  ) -> SyncResult:
    """The lag between picture and sound of a video file, with its confidence.

    Positive: the video lags the audio. `audio_track` selects the sound track, counted from 1 (None: the one with
    speech). `progress(reached, length)` is called with the position and the length in seconds; the length is 0 if the
    file does not state it. Raises InputError for a file that cannot be analysed; silence, no face and a still mouth are
    results.
    """
    return sync_file(
      self.embedder, path, calibration=self.calibration, checkpoint=self.name, notes=self.notes, faces=faces,
      audio_track=audio_track, progress=progress,
    )  # fmt: skip

  def sync_loss(
    self,
    frames: Shaped[Array, "b t s s 3"],
    audio: Float[Array, "b n"],
    *,
    lag: int = 0,
    face_box: Float[Array, "b t 4"] | None = None,
    mouth_box: Float[Array, "b t 4"] | None = None,
  ) -> Float[Array, ""]:
    """1 - mean cosine of audio_t and vocal_{t + lag}: a training loss for generators of talking faces.

    `frames`: RGB face crops in [0, 1], which receive gradients; `audio`: float32 [B, 640 * T] in [-1, 1]. The loss uses
    the cosine of the lip-sync experts of Wav2Lip (Prajwal et al. 2020) and LatentSync, but not their logarithm: its
    gradient is unbounded at cosine 0, a typical value for an untrained generator. Compiled once per shape; usable
    inside `jax.jit` and `jax.grad`. Raises ValueError for other shapes or integer pixels.
    """
    total = frames.shape[1]
    if not jnp.issubdtype(frames.dtype, jnp.floating) or frames.shape[2:] != (self.image_size, self.image_size, 3):
      raise ValueError(
        f"frames must be floating [B, T, {self.image_size}, {self.image_size}, 3], got {frames.dtype} {frames.shape}"
      )
    if audio.shape != (len(frames), SAMPLES_PER_FRAME * total):
      raise ValueError(f"{total} frames need audio [B, {SAMPLES_PER_FRAME * total}], got {audio.shape}")
    if abs(lag) >= total:
      raise ValueError(f"the lag ({lag} frames) must be shorter than the clip ({total} frames)")
    return self._sync_loss(self.embedder.params, frames, audio, lag=lag, face_box=face_box, mouth_box=mouth_box)


def _sync_loss(model, params, frames, audio, *, lag, face_box, mouth_box):
  tokens = model.embed(params, params, frames, audio, face_box=face_box, mouth_box=mouth_box)
  total = frames.shape[1]
  heard = tokens.audio[:, max(0, -lag) : total - max(0, lag)]
  seen = tokens.vocal[:, max(0, lag) : total - max(0, -lag)]
  # The constant keeps the gradient of a zero token finite.
  unit = lambda x: x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)
  return 1 - (unit(heard) * unit(seen)).sum(-1).mean()
