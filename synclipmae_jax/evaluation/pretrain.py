"""The evaluation of a pretraining run: `eval.json`, a table and pictures."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from synclipmae_jax.evaluation import pictures
from synclipmae_jax.evaluation.factors import FactorEvaluator
from synclipmae_jax.evaluation.swaps import Portrait, swap_factors
from synclipmae_jax.evaluation.sync import SyncReport, TokenEvaluator, evaluate_sync
from synclipmae_jax.evaluation.tokens import HeldOutTokens, embed_clip
from synclipmae_jax.metrics.sync import ClipTokens
from synclipmae_jax.models import masking
from synclipmae_jax.models.synclipmae import Outputs, SyncLipMAEModel
from synclipmae_jax.models.visual_encoder import denormalise_pixels
from synclipmae_jax.types import (
  AUDIO_MARGIN,
  SAMPLES_PER_FRAME,
  Batch,
  ClipData,
  EvalClip,
  Evaluation,
  HeldOut,
  Params,
  RunContext,
  audio_context_samples,
)

COLUMNS = 8  # frames in a picture
FACTOR_PANEL = pictures.Panel(
  title="validation: factors",
  series={
    "vocal: mouth, R²": "factors/vocal_mouth",
    "ambient: ambient, R²": "factors/ambient_ambient",
    "identity: retrieval": "factors/identity_retrieval",
    "largest leak, R²": "factors/leak_max",
  },
)


def build(context: RunContext) -> Evaluation:
  """Synchronisation and factors of held-out clips, and pictures of a few; `context.data` is a `types.ClipData`."""
  model, data = context.task.model, context.data
  if not data.shown:
    return Evaluation(conclude=lambda: "No clips to evaluate.")
  steps = context.config.get("evaluation", {}).get("factor_ceiling_steps", 0)
  evaluators = evaluators_of(model, data, mesh=context.mesh, workdir=context.workdir, factor_ceiling_steps=steps)

  def conclude() -> str:
    evaluators[0].draw_curves()
    return tables(evaluators)

  drawn = PretrainPictures(model, clips=data.shown, workdir=context.workdir, mesh=context.mesh)
  return Evaluation(evaluators=evaluators, pictures=drawn, conclude=conclude)


def evaluators_of(
  model: SyncLipMAEModel, data: ClipData, *, mesh: Mesh, workdir: Path, factor_ceiling_steps: int = 0
) -> tuple[SyncEvaluator, *tuple[FactorEvaluator, ...]]:
  """The evaluator of synchronisation and, for clips of known truth, that of the factors, on the same tokens."""
  tokens = HeldOutTokens(model, mesh=mesh)
  sync = SyncEvaluator(tokens, data, workdir=workdir)
  if all(clip.truth is None for clip in data.shown):  # of every source
    return (sync,)
  return sync, FactorEvaluator(tokens, data, workdir=workdir, ceiling_steps=factor_ceiling_steps)


def tables(evaluators: Sequence[SyncEvaluator | FactorEvaluator]) -> str:
  """The tables of the last evaluation."""
  return "\n\n".join(evaluator.report.table() for evaluator in evaluators if evaluator.report)


class SyncEvaluator(TokenEvaluator):
  """Evaluates the tokens of SyncLipMAE on held-out clips."""

  def __init__(self, tokens: HeldOutTokens, data: ClipData, *, workdir: Path):
    super().__init__(data, workdir=workdir)
    self._tokens = tokens

  def measure(self, trainable: Params, frozen: Params, held_out: HeldOut, *, step: int, final: bool) -> SyncReport:
    tokens = self._tokens(trainable, frozen, held_out.clips)
    tokens_of = lambda clip: (tokens[clip.key].audio, tokens[clip.key].vocal)
    return evaluate_sync(
      tokens_of,
      held_out.clips,
      references=self.references(held_out),
      split=held_out.split,
      remark=held_out.remark,
    )

  def draw_curves(self) -> None:
    """Draws WORKDIR/curves.png from WORKDIR/metrics.jsonl, with the references on the same clips as levels."""
    lines = [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]
    references = self.references(self.data.val)

    def levels(name: str) -> dict[str, float]:
      found = {"chance": self.report.model.chance[name]}
      for label, scores in (("linear", references.linear), ("ceiling", references.ceiling)):
        found |= {label: scores.estimates[name].value} if scores else {}
      return {label: value for label, value in found.items() if not math.isnan(value)}

    panel = pictures.Panel
    pictures.curves(
      self.workdir / "curves.png",
      lines,
      panels=[
        panel(
          title="reconstruction",
          series={"video-driven": "reconstruction_video", "audio-driven": "reconstruction_audio"},
          log=True,
        ),
        panel(title="contrast", series={"InfoNCE": "contrast"}),
        panel(title="cross-covariance", series={"sum of the pairs": "covariance"}, log=True),
        panel(title="validation: Acc, K = 5", series={"SyncLipMAE": "sync/acc/k5"}, references=levels("acc/k5")),
        panel(
          title="validation: R@1 of 32",
          series={"SyncLipMAE": "sync/r_precision/top1"},
          references=levels("r_precision/top1"),
        ),
        panel(title="temperature", series={"temperature": "temperature"}),
        *([FACTOR_PANEL] if any("factors/vocal_mouth" in line for line in lines) else []),
      ],
    )


def on_every_host(function: Callable, mesh: Mesh) -> Callable:
  """`function`, jitted with replicated results, wherever the parameters are."""
  return jax.jit(function, out_shardings=NamedSharding(mesh, PartitionSpec()))


class PretrainPictures:
  """Reconstructions, factor swaps and similarities of a few held-out clips, with the same masks in every call."""

  def __init__(self, model: SyncLipMAEModel, *, clips: Sequence[EvalClip], workdir: Path, mesh: Mesh):
    self.model, self.workdir = model, workdir
    self._clips = [clip for clip in clips if len(clip.frames) >= model.clip_frames][:COLUMNS]
    self._apply = on_every_host(model.apply, mesh)
    self._embed = on_every_host(model.embed, mesh)
    self._swap = on_every_host(functools.partial(swap_factors, model), mesh)

  def __call__(self, trainable: Params, frozen: Params, *, step: int) -> Mapping[str, np.ndarray]:
    if not self._clips:
      return {}
    # `apply` shuffles identity inside a pair of clips. Both clips of a pair are equal here.
    pairs = [clip for clip in self._clips for _ in range(2)]
    batch = middle_batch(pairs, clip_frames=self.model.clip_frames, audio_frames=self.model.audio_frames)
    outputs = jax.device_get(self._apply(trainable, frozen, batch, jax.random.key(0)))
    frames, face, mouth = (
      np.stack([getattr(clip, name)[len(clip.frames) // 2] for clip in self._clips])
      for name in ("frames", "face_box", "mouth_box")
    )
    mouth_of, pose_of = (Portrait(*(np.roll(x, -turn, axis=0) for x in (frames, face, mouth))) for turn in (1, 2))
    swapped = jax.device_get(self._swap(trainable, Portrait(frames, face, mouth), mouth_of, pose_of))
    tokens = [self._tokens(trainable, frozen, clip) for clip in self._clips[:3]]
    if jax.process_index():
      return {}
    return {
      "reconstruction": self._draw_reconstruction(jax.tree.map(lambda x: x[::2], outputs)),
      "factor_swap": pictures.factor_swap(
        self.workdir / "factor_swap.png",
        identity_of=frames,
        mouth_of=mouth_of.frames,
        pose_of=pose_of.frames,
        decoded=swapped,
      ),
      "similarity": pictures.similarity(self.workdir / "similarity.png", tokens),
    }

  def _tokens(self, trainable: Params, frozen: Params, clip: EvalClip) -> ClipTokens:
    audio, vocal = embed_clip(self._embed, trainable, frozen, clip)
    return ClipTokens(key=clip.key, audio=audio, vocal=vocal, lag=clip.lag)

  def _draw_reconstruction(self, out: Outputs) -> np.ndarray:
    image = lambda patches: np.asarray(masking.unpatchify(denormalise_pixels(jnp.asarray(patches)), self.model.patch))
    return pictures.reconstruction(
      self.workdir / "reconstruction.png",
      original=image(out.target[:, 0]),
      uniform_visible=np.asarray(out.masked[:, 0] == 0),
      face_view=image(out.motion_view[:, 0]),
      face_visible=np.any(out.motion_view[:, 0] != 0, axis=-1),
      video_driven=image(out.predicted[:, 0, 0]),
      audio_driven=image(out.predicted[:, 0, 1]),
      titles=[Path(clip.key).name.split(".")[0] for clip in self._clips],
    )


def middle_batch(clips: Sequence[EvalClip], *, clip_frames: int, audio_frames: int) -> Batch:
  """A training batch of the middle `clip_frames` frames of each clip with their sound. A known lag is removed."""
  lead = (audio_frames - clip_frames) // 2 * SAMPLES_PER_FRAME + AUDIO_MARGIN
  samples = audio_context_samples(audio_frames)

  def window(clip: EvalClip) -> tuple[slice, np.ndarray]:
    start = (len(clip.frames) - clip_frames) // 2
    beyond = len(clip.waveform) + samples  # enough silence for any lag
    first = beyond + (start - (clip.lag or 0)) * SAMPLES_PER_FRAME - lead
    return slice(start, start + clip_frames), np.pad(clip.waveform, beyond)[first : first + samples]

  windows = [window(clip) for clip in clips]
  cut = lambda name: np.stack([getattr(clip, name)[rows] for clip, (rows, _) in zip(clips, windows, strict=True)])
  return {
    "frames": cut("frames"),
    "waveform": np.stack([sound for _, sound in windows]),
    "face_box": cut("face_box"),
    "mouth_box": cut("mouth_box"),
    "index": np.arange(len(clips), dtype=np.uint32),
  }
