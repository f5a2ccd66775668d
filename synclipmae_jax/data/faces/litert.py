"""The two MediaPipe networks of this package, run with LiteRT on one thread."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from synclipmae_jax.types import InputError

MODELS = Path(__file__).parent / "models"
SHA256 = {
  "face_detection_full_range_sparse.tflite": "2c3728e6da56f21e21a320433396fb06d40d9088f2247c05e5635a688d45dfe1",
  "face_landmark.tflite": "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
}


class Unavailable(InputError):
  """The MediaPipe networks cannot be run; the message gives the reason."""


class Network:
  """A network. It is not thread-safe; `network` keeps one per thread.

  Raises Unavailable if the file is missing or its hash is wrong, or LiteRT is not installed.
  """

  def __init__(self, name: str):
    content = _read(name)
    try:
      from ai_edge_litert.interpreter import Interpreter  # local import: only face detection needs it
    except ImportError as error:
      raise Unavailable(f"ai-edge-litert is not installed ({error})") from error
    with _silenced():
      self._interpreter = Interpreter(model_content=content, num_threads=1)
      self._interpreter.allocate_tensors()
    (self._input,) = self._interpreter.get_input_details()
    self._outputs = [entry["index"] for entry in self._interpreter.get_output_details()]
    self.size = int(self._input["shape"][1])  # side of the input, pixels

  def __call__(self, image: np.ndarray) -> list[np.ndarray]:
    """image: float32 [size, size, 3] in the value range of the network. Returns its outputs without the batch axis."""
    self._interpreter.set_tensor(self._input["index"], image[None])
    self._interpreter.invoke()
    return [self._interpreter.get_tensor(index)[0] for index in self._outputs]


def network(name: str) -> Network:
  """The network of the calling thread. It is kept, because loading it takes as long as running it ten times."""
  kept = _threads.__dict__.setdefault("networks", {})
  if name not in kept:
    kept[name] = Network(name)
  return kept[name]


_threads = threading.local()


def check() -> None:
  """Raises Unavailable if the networks cannot be run."""
  for name in SHA256:
    network(name)


def _read(name: str) -> bytes:
  try:
    content = (MODELS / name).read_bytes()
  except OSError as error:
    raise Unavailable(f"the face model {name} cannot be read ({error.strerror})") from error
  if hashlib.sha256(content).hexdigest() != SHA256[name]:
    raise Unavailable(f"the face model {name} is damaged: install the package anew")
  return content


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
  """Redirects stderr of the process: LiteRT writes an information line there, and no setting prevents it."""
  try:
    kept = os.dup(2)
  except OSError:  # stderr is closed
    yield
    return
  with open(os.devnull, "wb") as nowhere:
    os.dup2(nowhere.fileno(), 2)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
