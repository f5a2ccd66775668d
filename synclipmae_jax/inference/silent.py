"""The tokens of a file's pictures alone: its sound is not read, and it needs none."""

from __future__ import annotations

import os

import numpy as np

from synclipmae_jax.data.faces.sources import open_faces
from synclipmae_jax.data.media import audio
from synclipmae_jax.inference.blocks import Embedding
from synclipmae_jax.inference.embedder import Embedder
from synclipmae_jax.inference.stream import TokenStream, embed_stream, probe_file
from synclipmae_jax.types import SAMPLES_PER_FRAME


class SilentStream(TokenStream):
  """A `TokenStream` that hears nothing: its audio tokens are those of silence."""

  def __init__(self, model: Embedder, path: str | os.PathLike, *, faces: str):
    self._model, self._path = model, path
    self.info = probe_file(path, silent=True)
    self._source, notes = open_faces(path, faces, info=self.info)
    self._notes = [*self.info.notes, *notes]

  def _hear(self, sound: audio.Track, start: int, *, end: int | None) -> np.ndarray:
    return np.zeros(SAMPLES_PER_FRAME * (self._model.block_frames + 2 * self._model.audio_context), np.float32)

  def _check_end(self, frames: int) -> None:
    """The pictures were checked while they were read, and only they count."""


def embed_pictures(model: Embedder, path: str | os.PathLike, *, faces: str = "auto") -> Embedding:
  """`stream.embed_file` without the sound. Raises InputError."""
  return embed_stream(SilentStream(model, path, faces=faces))
