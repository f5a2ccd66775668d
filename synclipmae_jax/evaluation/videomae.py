"""The evaluation of a VideoMAE or MARLIN run: how much of the masked tubes of held-out clips is restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from synclipmae_jax import sharding
from synclipmae_jax.evaluation.pretrain import middle_batch
from synclipmae_jax.evaluation.report import write_entries
from synclipmae_jax.tasks.videomae import explained
from synclipmae_jax.types import Evaluation, HeldOut, Params, RunContext

CLIPS = 8  # restored at once


def build(context: RunContext) -> Evaluation:
  """R² of the masked pixels, of the target's kind; `context.data` is a `types.ClipData`."""
  evaluator = RestorationEvaluator(context)
  return Evaluation(evaluators=[evaluator], conclude=lambda: evaluator.text)


class RestorationEvaluator:
  """Restores the middle of every held-out clip, under the same mask in every call."""

  name = "videomae"

  def __init__(self, context: RunContext):
    self._context = context
    self._restore = jax.jit(context.task.restore)
    self.text = "No clips to evaluate."

  def __call__(self, trainable: Params, frozen: Params, *, step: int, final: bool) -> Mapping[str, Any]:
    data = self._context.data
    held_out: HeldOut = data.test if final else data.val
    everywhere = NamedSharding(self._context.mesh, PartitionSpec())
    whole = jax.jit(lambda tree: tree, out_shardings=everywhere)(trainable)
    sums = self._sums(jax.tree.map(lambda x: x.addressable_data(0), whole), held_out)
    clips, error, deviation = np.sum(sharding.gather(sums), axis=0)
    if not clips or not deviation:
      return {}
    found = {"explained": float(1 - error / deviation)}
    if jax.process_index() == 0:
      entry = {"step": step, "split": held_out.split, "remark": held_out.remark, "clips": int(clips), **found}
      write_entries(self._context.workdir, {self.name: entry})
    caveat = f"\nCaveat: {held_out.remark}." if held_out.remark else ""
    self.text = (
      f"Masked pixels of {int(clips)} clips of the split {held_out.split}: R² {found['explained']:.3f}.{caveat}"
    )
    return found

  def _sums(self, params: Params, held_out: HeldOut) -> np.ndarray:
    """[number of clips, squared error, squared deviation] of this process's clips."""
    frames, total = self._context.task.clip_frames, np.zeros(3)
    clips = [clip for clip in held_out.clips if len(clip.frames) >= frames]
    for start in range(0, len(clips), CLIPS):
      chosen = clips[start : start + CLIPS]
      batch = dict(middle_batch(chosen, clip_frames=frames, audio_frames=frames))
      batch = {name: np.pad(x, [(0, CLIPS - len(chosen))] + [(0, 0)] * (x.ndim - 1)) for name, x in batch.items()}
      del batch["waveform"]
      errors = explained(jax.device_get(self._restore(params, batch, jax.random.key(0))))
      total += [len(chosen), *(x[: len(chosen)].sum() for x in errors)]
    return total
