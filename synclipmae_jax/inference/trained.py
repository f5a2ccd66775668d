"""Loads a trained model from a checkpoint. Only the items for inference are read; the stamp defines the model."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from synclipmae_jax import checkpoints
from synclipmae_jax.checkpoints.format import META
from synclipmae_jax.data.clips import VERSION
from synclipmae_jax.data.faces.track import CROP_RULE
from synclipmae_jax.inference.embedder import Embedder
from synclipmae_jax.models.synclipmae import build_model
from synclipmae_jax.types import FPS, SAMPLE_RATE, InputError, Params

# Preprocessing of this version. Image size and visible patches are taken from the checkpoint.
_PREPROCESSING = {"fps": FPS, "sample_rate": SAMPLE_RATE, "crop": CROP_RULE, "version": VERSION}
_FEW_BLOCKS = 4
_SERVING = ("visual_encoder", "audio_adapter")  # in addition to the frozen speech encoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """A model read from `step`, with the metadata and the configuration of the checkpoint."""

  step: Path
  meta: Mapping[str, Any]
  config: Mapping[str, Any]
  embedder: Embedder


def load_trained(directory: str | os.PathLike, *, decoder: bool = False, say: Callable[[str], None] = print) -> Trained:
  """The model in a workdir or a step, on request with its decoder; damaged steps are reported through `say`.

  Raises InputError if no complete checkpoint is found, or if its training data were prepared differently from this
  version.
  """
  step = checkpoints.resolve_step(directory, say=say)
  with refusing(f"checkpoint {step} has a {META} that cannot be read"):
    meta = checkpoints.load_meta(step)
  config = _stamped_config(step, meta)
  with refusing(f"checkpoint {step} does not describe a model of this version"):
    model = build_model(config)
    trainable, frozen = jax.eval_shape(model.init, jax.random.key(0))
  wanted = {name: trainable[name] for name in (*_SERVING, *(["decoder"] if decoder else []))} | frozen
  params = {name: _load_item(step, name, abstract) for name, abstract in wanted.items()}
  return Trained(step=step, meta=meta, config=config, embedder=Embedder(model, params))


def _stamped_config(step: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
  """The configuration of a checkpoint, with the model's preprocessing. Raises InputError if its stamp differs."""
  config, stamp = meta.get("config"), meta.get("preprocessing")
  if not isinstance(config, dict) or not isinstance(stamp, dict):
    raise InputError(f"checkpoint {step} has no record of its configuration and preprocessing")
  for name, ours in _PREPROCESSING.items():
    if stamp.get(name) != ours:
      raise InputError(f"checkpoint {step} has other preprocessing: {name} {stamp.get(name)!r}, here {ours!r}")
  computing: dict[str, Any] = {"remat": "none"}
  if jax.default_backend() == "cpu":  # CPUs have no bfloat16
    computing["compute_dtype"] = "float32"
  with refusing(f"checkpoint {step} has a stamp that cannot be read"):
    # A rolled scan of many blocks compiles in half the time; unrolled, few blocks run in three quarters of it.
    computing["unroll"] = config["model"]["visual_encoder"]["depth"] <= _FEW_BLOCKS
    return {
      **config,
      "data": {**config["data"], "image_size": stamp["image_size"]},
      "model": {**config["model"], "embed_visible": stamp["embed_visible"], **computing},
    }


@contextlib.contextmanager
def refusing(complaint: str) -> Iterator[None]:
  """Turns any exception into an InputError with `complaint`: the content of a checkpoint can fail in many ways."""
  try:
    yield
  except InputError as error:
    raise InputError(f"{complaint} ({error})") from error
  except Exception as error:
    raise InputError(f"{complaint} ({error!r})") from error


def _load_item(step: Path, name: str, abstract: Params) -> Params:
  if not jax.tree.leaves(abstract):  # an encoder without parameters
    return abstract
  saved = checkpoints.find_item(step, name, verify=name == "speech_encoder")  # it is stored outside the step
  return jax.device_put(saved.load_as(abstract))
