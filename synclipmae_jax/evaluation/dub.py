"""The evaluation of dubbing: held-out segments are generated with each drive and compared with the truth.

During training the error of the velocity is measured at some noise levels, and how much of the true motion of the mouth
the tokens alone explain (`Generator.at_once`; quick). The latter tells whether the model listens: a still mouth has
nearly the same PSNR. At the end the segments of the test clips are sampled. PSNR and motion are those of the mouth
region, in which alone the model is needed, against the truth as the autoencoder gives it back.

With `release` the parameters are then written to WORKDIR/released/STEP, in float16 and without what training needs, and
with them goes what 95 % of the segments reach of `mouth_gain`. Of a face that the model does not know, the mouth is no
nearer to the true one than a still picture is (`dub.Dubber`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from synclipmae_jax import checkpoints, sharding
from synclipmae_jax.evaluation.report import write_entries
from synclipmae_jax.evaluation.table import markdown, number_or_null
from synclipmae_jax.metrics.dubbing import motion_errors, motion_explained, mouth_gain, region_error
from synclipmae_jax.models.wan import flow_matching
from synclipmae_jax.models.wan.conditioning import REFERENCES
from synclipmae_jax.tasks.dub import SAMPLING, Generator
from synclipmae_jax.types import Evaluation, Params, RunContext

Segment = Mapping[str, Any]
DOUBTED = 0.05  # share of the segments with a smaller `mouth_gain` than expected
TOLD, STILL = "told", "still"  # keys of a row: errors that `mouth_gain` compares
MOTION = "motion"  # key of a row: the `motion_errors` of the systems
# Row of the table -> what drives the mouth. The tokens of `other` are those of the segment before in the list.
SYSTEMS = {
  "audio": "audio tokens",
  "video": "vocal-motion tokens",
  "none": "no control",
  "other": "vocal-motion tokens of another clip",
  "history": "no model: the picture before the segment, still",
}


def build(context: RunContext) -> Evaluation:
  """The scores of `context.data`, which has `autoencoder`, `remark`, `val` and `test` (its own share)."""
  evaluator = DubbingEvaluator(context)
  return Evaluation(evaluators=[evaluator], conclude=evaluator.conclude)


class DubbingEvaluator:
  """Scores of the current parameters; see the head of this file."""

  name = "dubbing"

  def __init__(self, context: RunContext):
    self._context, self._task, self._data = context, context.task, context.data
    self._settings = context.config["evaluation"]
    self._generate = Generator(self._task, self._settings)  # wrong settings are refused before training
    self._decode = self._data.autoencoder.decode
    self._table = "No clips to evaluate."

  def __call__(self, trainable: Params, frozen: Params, *, step: int, final: bool) -> Mapping[str, Any]:
    params = self._local(trainable), self._local(frozen)
    if not final:
      return {**self._velocity_errors(*params), **self._motion(*params)}
    states = [self._psnr(*params, segments) for segments in self._batches(self._data.test)]
    gathered = [row for share in sharding.gather(states) for part in share for row in part]
    if gathered and self._settings.get("release"):
      self._release({**params[0], **params[1]}, gathered, step)
    return self._report(gathered, step) if gathered else {}

  def conclude(self) -> str:
    return self._table

  def _velocity_errors(self, trainable: Params, frozen: Params) -> dict[str, float]:
    """Mean squared error of the velocity by drive, over segments and noise levels, with the same noise every time."""
    found = []
    for segments in self._batches(self._data.val):
      batch = _stack(segments)
      clean, context, noise = self._inputs(batch)
      for level in self._settings["levels"]:
        sigma = jnp.full(len(clean), level)
        noisy = flow_matching.add_noise(clean, noise, sigma)
        for drive in ("audio", "video", "none"):
          tokens = batch["video" if drive == "video" else "audio"]
          velocity = self._generate.velocity(
            trainable, frozen, noisy, context, batch["text"], flow_matching.TIMES * sigma, tokens,
            texted=True, driven=drive != "none",
          )  # fmt: skip
          error = flow_matching.velocity_error(velocity, clean, noise)[:, len(REFERENCES) :].mean(axis=1)
          found += [(drive, float(value)) for value in error]
    found = [pair for share in sharding.gather(found) for pair in share]
    drives = sorted({drive for drive, _ in found})
    return {f"error_{drive}": float(np.mean([value for each, value in found if each == drive])) for drive in drives}

  def _motion(self, trainable: Params, frozen: Params) -> dict[str, float]:
    """Share of the motion of the mouth that tokens explain; those of `other` are of another clip, to be near 0."""
    found = []
    for segments in self._batches(self._data.val):
      batch = _stack(segments)
      _, context, noise = self._inputs(batch)
      truth = np.asarray(self._decode(jnp.asarray(batch["target"], jnp.float32)))
      for system, tokens in _drives(batch).items():
        latents = self._generate.at_once(trainable, frozen, noise, context, batch["text"], tokens)
        made = np.asarray(self._decode(latents[:, len(REFERENCES) :]))
        errors = motion_errors(made, truth, batch["mask"])
        found += [(system, row) for row in errors]
    found = [pair for share in sharding.gather(found) for pair in share]
    return {
      f"motion_{system}": motion_explained(np.array([row for each, row in found if each == system]))
      for system in dict.fromkeys(each for each, _ in found)
    }

  def _psnr(self, trainable: Params, frozen: Params, segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """One row a segment: its key, and for each system the mean squared error in the mouth region (pixels 0..1).

    `MOTION` holds the `motion_errors` of each system that the model makes.
    """
    batch = _stack(segments)
    _, context, noise = self._inputs(batch)
    truth = np.asarray(self._decode(jnp.asarray(batch["target"], jnp.float32)))
    still = np.asarray(self._decode(jnp.asarray(batch["references"][:, 1:], jnp.float32)))
    errors = {"history": region_error(np.broadcast_to(still, truth.shape), truth, batch["mask"])}
    motion = {}
    for system, given in {**_drives(batch), "none": batch["audio"]}.items():
      latents = self._generate(trainable, frozen, noise, context, batch["text"], given, controlled=system != "none")
      made = np.asarray(self._decode(latents[:, len(REFERENCES) :]))
      errors[system] = region_error(made, truth, batch["mask"])
      motion[system] = motion_errors(made, truth, batch["mask"])
    if self._settings.get("release"):
      _, alone = self._task.inputs(batch, history=jnp.zeros(len(segments), bool))
      latents = self._generate.at_once(trainable, frozen, noise, alone, batch["text"], batch["video"])
      made = np.asarray(self._decode(latents[:, len(REFERENCES) :]))
      errors[TOLD] = region_error(made, truth, batch["mask"])
      person = np.asarray(self._decode(jnp.asarray(batch["references"][:, :1], jnp.float32)))
      errors[STILL] = region_error(np.broadcast_to(person, truth.shape), truth, batch["mask"])
    return [
      {
        "key": segment["key"],
        **{system: float(values[row]) for system, values in errors.items()},
        MOTION: {system: values[row] for system, values in motion.items()},
      }
      for row, segment in enumerate(segments)
    ]

  def _inputs(self, batch: Mapping[str, np.ndarray]):
    """(clean latents, context, noise), the noise by the keys' places in the batch."""
    clean, context = self._task.inputs(batch, history=jnp.ones(len(batch["mask"]), bool))
    return clean, context, jax.random.normal(jax.random.key(0), clean.shape)

  def _batches(self, segments: Sequence[Segment]) -> list[Sequence[Segment]]:
    size = self._settings["batch_clips"]
    return [segments[start : start + size] for start in range(0, len(segments), size)]

  def _local(self, params: Params) -> Params:
    """A whole copy on this process's first device: every process has its own segments."""
    everywhere = NamedSharding(self._context.mesh, PartitionSpec())
    whole = jax.jit(lambda tree: tree, out_shardings=everywhere)(params)
    return jax.tree.map(lambda x: x.addressable_data(0), whole)

  def _release(self, params: Params, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    directory = self._context.workdir / "released" / str(step)
    if not sharding.gather(directory.exists())[0]:  # all processes save together
      half = jax.tree.map(lambda x: np.asarray(x, np.float16 if x.dtype == np.float32 else x.dtype), params)
      gain = float(np.quantile([mouth_gain(row[TOLD], row[STILL]) for row in rows], DOUBTED))
      stamp, data = self._context.stamp, self._context.stamp["config"]["data"]
      nowhere = {"cache": None, "sources": [(Path(place).name, weight) for place, weight in data["sources"] or ()]}
      config = {**stamp["config"], "data": {**data, **nowhere}}  # what is handed on names no folder of this machine
      meta = {**stamp, "config": config, "step": step, "expected": {"mouth_gain": gain}}
      checkpoints.save_items(directory, half, meta)

  def _report(self, rows: Sequence[Mapping[str, Any]], step: int) -> dict[str, float]:
    psnr = {
      system: np.array([_decibels(row[system]) for row in rows if system in row])
      for system in SYSTEMS
      if any(system in row for row in rows)
    }
    mean = {system: float(values.mean()) for system, values in psnr.items()}
    motion = {
      system: motion_explained(np.array([row[MOTION][system] for row in rows if system in row[MOTION]]))
      for system in psnr
      if any(system in row[MOTION] for row in rows)
    }
    if jax.process_index() == 0:
      sampling = {name: self._settings[name] for name in SAMPLING}
      guidance = {name: self._settings[name] for name in ("text_guidance", "control_guidance")}
      entry = {"step": step, "segments": len(rows), "remark": self._data.remark, **sampling, **guidance}
      entry["psnr_mouth"] = {system: number_or_null(value) for system, value in mean.items()}
      entry["motion_explained"] = {system: number_or_null(value) for system, value in motion.items()}
      write_entries(self._context.workdir, {"dubbing": entry})
    body = [
      [system, SYSTEMS[system], f"{mean[system]:.2f}", _percent(motion.get(system, 0.0)), str(len(values))]
      for system, values in psnr.items()
    ]
    head = ("system", "driven by", "PSNR of the mouth, dB", "of its motion", "segments")
    self._table = "\n".join(markdown(head, body))
    if self._data.remark:
      self._table += f"\nCaveat: {self._data.remark}."
    motions = {f"motion_{system}": value for system, value in motion.items()}
    return {**{f"psnr_{system}": value for system, value in mean.items()}, **motions}


def _drives(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """System -> tokens of it, where a batch has them."""
  tokens = {"audio": batch["audio"], "video": batch["video"]}
  return tokens | ({"other": np.roll(batch["video"], 1, axis=0)} if len(batch["video"]) > 1 else {})


def _stack(segments: Sequence[Segment]) -> dict[str, np.ndarray]:
  return {name: np.stack([segment[name] for segment in segments]) for name in segments[0] if name != "key"}


def _decibels(error: float) -> float:
  return -10 * math.log10(max(error, 1e-10))


def _percent(share: float) -> str:
  return f"{100 * share:.0f} %" if math.isfinite(share) else "-"
