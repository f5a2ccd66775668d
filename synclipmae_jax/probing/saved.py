"""A probe on disk: one file `probe.npz` of its layer and of what is known of it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from synclipmae_jax.probing.linear_probe import LinearProbe
from synclipmae_jax.probing.sampling import Sampling
from synclipmae_jax.types import InputError

FILE = "probe.npz"
VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedProbe:
  """A probe with the encoder that it belongs to."""

  probe: LinearProbe
  labels: str  # what the classes are: "emotion", "actions" or "shown"
  tokens: tuple[str, ...]  # the features that it reads
  sampling: Sampling
  encoder: str  # its kind
  checkpoint: str  # its origin, for messages
  sha256: str  # of the encoder's parameters
  notes: tuple[str, ...] = ()  # what a reader of its labels must know
  beside: bool = False  # it reads them beside one another, not their mean

  def save(self, directory: str | os.PathLike) -> Path:
    """Writes DIRECTORY/probe.npz in one rename."""
    known = {
      "version": VERSION,
      **{
        name: getattr(self, name) for name in ("labels", "tokens", "encoder", "checkpoint", "sha256", "notes", "beside")
      },
      "sampling": dataclasses.asdict(self.sampling),
      "classes": self.probe.classes,
      "several": self.probe.several,
    }
    path = Path(directory, FILE)
    partial = path.with_suffix(".tmp")
    with open(partial, "wb") as out:
      np.savez(out, kernel=self.probe.kernel, bias=self.probe.bias, known=json.dumps(known))
    partial.replace(path)
    return path

  @classmethod
  def load(cls, directory: str | os.PathLike) -> SavedProbe:
    """The probe in a workdir of configs/probe.py, or such a file. Raises InputError."""
    path = Path(directory)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
      raise InputError(f"there is no probe in {directory}: make one with configs/probe.py")
    try:
      with np.load(path, allow_pickle=False) as stored:
        kernel, bias, known = stored["kernel"], stored["bias"], json.loads(str(stored["known"]))
      if known["version"] != VERSION:
        raise ValueError(f"version {known['version']}, not {VERSION}")
      _check(kernel, bias, known)
      probe = LinearProbe(
        kernel=kernel, bias=bias, classes=tuple(map(str, known["classes"])), several=bool(known["several"])
      )
      return cls(
        probe=probe, labels=known["labels"], tokens=tuple(known["tokens"]), sampling=Sampling(**known["sampling"]),
        encoder=known["encoder"], checkpoint=known["checkpoint"], sha256=known["sha256"], notes=tuple(known["notes"]),
        beside=bool(known.get("beside", False)),
      )  # fmt: skip
    except Exception as error:  # a damaged zip, JSON or array can fail in many ways
      raise InputError(f"{path} holds no probe of this version ({error})") from error

  def check_encoder(self, sha256: str) -> None:
    """Raises InputError if the probe was fitted on the features of another encoder."""
    if sha256 != self.sha256:
      raise InputError(
        f"this probe was made for another checkpoint ({self.checkpoint}): name that one with --checkpoint DIR, or fit"
        " a probe for this one with configs/probe.py"
      )


def _check(kernel: np.ndarray, bias: np.ndarray, known: dict[str, Any]) -> None:
  if kernel.ndim != 2 or bias.shape != kernel.shape[1:] or len(known["classes"]) != len(bias):
    raise ValueError(f"kernel {kernel.shape}, bias {bias.shape}, {len(known['classes'])} classes")
  if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
    raise ValueError("its layer is not finite")
