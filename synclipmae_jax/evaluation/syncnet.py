"""What a training of SyncNet shows of itself: the same `eval.json` and table as a pretraining run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from synclipmae_jax.evaluation.sync import SyncReport, TokenEvaluator, evaluate_sync
from synclipmae_jax.tasks.syncnet import SyncNetTask
from synclipmae_jax.types import Batch, Params


class SyncNetEvaluator(TokenEvaluator):
  """SyncNet on held-out clips, its batch norm calibrated on `batches()`, the same on every process.

  At the end the calibrated parameters go to `save(step, parameters)`: those of the run's checkpoints are not.
  """

  def __init__(
    self,
    task: SyncNetTask,
    *,
    batches: Callable[[], Iterable[Batch]],
    save: Callable[[int, Params], None],
    **clips: Any,
  ):
    super().__init__(**clips)
    self._task, self._batches, self._save = task, batches, save

  def measure(self, trainable: Params, frozen: Params, *, step: int, final: bool) -> SyncReport:
    params = self._task.calibrate(jax.tree.map(np.asarray, trainable), self._batches())
    if final:
      self._save(step, params)
    model = self._task.tokens(params)
    return evaluate_sync(
      model.embed,
      self.clips,
      references=self.references,
      similarity=model.similarity,
      name=f"{model.name}-{model.context_frames}",
      remark=self.remark,
    )
