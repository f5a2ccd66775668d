"""The evaluation of a SyncNet training run: `eval.json` and a table, in the format of pretraining."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np

from synclipmae_jax import checkpoints
from synclipmae_jax.evaluation.sync import SyncReport, TokenEvaluator, evaluate_sync
from synclipmae_jax.tasks.syncnet import SyncNetTask
from synclipmae_jax.types import Batch, ClipData, Evaluation, HeldOut, Params, RunContext


def build(context: RunContext) -> Evaluation:
  """Synchronisation scores of held-out clips; `context.data` is a `types.ClipData`."""
  data, batches = context.data, context.config["train"]["calibration_batches"]
  if not data.shown:
    return Evaluation(conclude=lambda: "No clips to evaluate.")

  def save(step: int, params: Params) -> None:
    """Writes WORKDIR/calibrated/STEP: SyncNet with the statistics of its batch norm."""
    directory = context.workdir / "calibrated" / str(step)
    if not directory.exists():
      meta = {**context.stamp, "sizes": context.task.sizes, "similarity": context.task.similarity}
      checkpoints.save_items(directory, {"syncnet": params["syncnet"]}, meta)

  evaluator = SyncNetEvaluator(
    context.task,
    data,
    workdir=context.workdir,
    batches=lambda: itertools.islice(data.train_batches(0, host_index=0, host_count=1), batches),
    save=save,
  )
  return Evaluation(evaluators=[evaluator], conclude=lambda: evaluator.report.table())


class SyncNetEvaluator(TokenEvaluator):
  """Evaluates SyncNet on held-out clips. `batches()`, the same on every process, calibrate its batch norm.

  The last evaluation passes the calibrated parameters to `save(step, parameters)`. The run's checkpoints hold
  uncalibrated parameters.
  """

  def __init__(
    self,
    task: SyncNetTask,
    data: ClipData,
    *,
    workdir: Path,
    batches: Callable[[], Iterable[Batch]],
    save: Callable[[int, Params], None],
  ):
    super().__init__(data, workdir=workdir)
    self._task, self._batches, self._save = task, batches, save

  def measure(self, trainable: Params, frozen: Params, held_out: HeldOut, *, step: int, final: bool) -> SyncReport:
    params = self._task.calibrate(jax.tree.map(np.asarray, trainable), self._batches())
    if final:
      self._save(step, params)
    model = self._task.tokens(params)
    return evaluate_sync(
      model.embed,
      held_out.clips,
      references=self.references(held_out),
      similarity=model.similarity,
      name=f"{model.name}-{model.context_frames}",
      split=held_out.split,
      remark=held_out.remark,
    )
