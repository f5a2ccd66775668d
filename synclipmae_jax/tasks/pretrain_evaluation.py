"""What a pretraining run shows of itself: `eval.json` with its table, and the pictures beside it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synclipmae_jax.metrics.sync import ClipTokens
from synclipmae_jax.models import masking
from synclipmae_jax.models.synclipmae import SyncLipMAE
from synclipmae_jax.models.visual_encoder import denormalise_pixels
from synclipmae_jax.tasks import pictures
from synclipmae_jax.tasks.sync_evaluation import References, SyncReport, evaluate_sync, measure_references
from synclipmae_jax.types import AUDIO_MARGIN, SAMPLES_PER_FRAME, Batch, EvalClip, Params, audio_context_samples

PAD_FRAMES = 64  # clips are padded to a multiple of this: at most four shapes to compile for clips of up to 10 s
COLUMNS = 8  # frames in a picture


class SyncEvaluator:
  """Acc, Offset and R-precision of the frozen tokens on held-out clips (`types.Evaluator`).

  Writes DIR/eval.json at every evaluation, and at the last one DIR/lag.png. The linear
  baseline and the ceiling are fitted on `train_clips` once, at the first evaluation.
  """

  name = "sync"

  def __init__(
    self,
    model: SyncLipMAE,
    *,
    clips: Sequence[EvalClip],
    train_clips: Callable[[], Iterable[EvalClip]],
    workdir: Path,
    remark: str = "",
  ):
    self.model, self.clips, self.workdir, self.remark = model, clips, workdir, remark
    self.report: SyncReport | None = None
    self._train_clips = train_clips
    self._embed = jax.jit(model.embed)

  @functools.cached_property
  def references(self) -> References:
    """Linear baseline and ceiling on these clips."""
    return measure_references(self.clips, self._train_clips())

  def __call__(self, trainable: Params, frozen: Params, *, step: int, final: bool) -> Mapping[str, Any]:
    tokens_of = functools.partial(embed_clip, self._embed, trainable, frozen)
    self.report = evaluate_sync(tokens_of, self.clips, references=self.references, remark=self.remark)
    self.report.write(self.workdir / "eval.json")
    if final:
      pictures.lag(self.workdir / "lag.png", self.report.model.examples, state=self.report.model.lags)
    return self.report.scalars()

  def draw_curves(self) -> None:
    """DIR/curves.png from DIR/metrics.jsonl, the last evaluation's references as levels."""
    lines = [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]
    report = self.report.to_json()

    def levels(group: str, name: str) -> dict[str, float]:
      rows = {"chance": report["chance"], "linear": report["linear_baseline"], "ceiling": report["ceiling"]}
      return {label: row[group][name] for label, row in rows.items() if row and row[group][name] is not None}

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
        panel(title="held out: Acc, K = 5", series={"SyncLipMAE": "sync/acc/k5"}, references=levels("acc", "k5")),
        panel(
          title="held out: R@1 of 32",
          series={"SyncLipMAE": "sync/r_precision/top1"},
          references=levels("r_precision", "top1"),
        ),
        panel(title="temperature", series={"temperature": "temperature"}),
      ],
    )


def embed_clip(
  embed: Callable, trainable: Params, frozen: Params, clip: EvalClip
) -> tuple[np.ndarray, np.ndarray]:
  """(audio, vocal) tokens [T, D] of one clip. Padding at its end is silence and changes no token before it."""
  count = len(clip.frames)
  missing = -count % PAD_FRAMES
  pad = lambda x, amount: np.pad(x, [(0, amount)] + [(0, 0)] * (x.ndim - 1), mode="edge")[None]  # noqa: E731
  waveform = np.pad(clip.waveform, (0, missing * SAMPLES_PER_FRAME))[None]
  tokens = embed(
    trainable,
    frozen,
    pad(clip.frames, missing),
    waveform,
    face_box=pad(clip.face_box, missing),
    mouth_box=pad(clip.mouth_box, missing),
  )
  audio, vocal = jax.device_get((tokens.audio, tokens.vocal))
  return audio[0, :count], vocal[0, :count]


class PretrainPictures:
  """Reconstructions, factor swaps and similarities of a few held-out clips: the same, masked alike, at every call."""

  def __init__(self, model: SyncLipMAE, *, clips: Sequence[EvalClip], workdir: Path):
    self.model, self.workdir = model, workdir
    long_enough = [clip for clip in clips if len(clip.frames) >= model.clip_frames]
    self._clips = (long_enough * COLUMNS)[:COLUMNS]
    self._apply = jax.jit(model.apply)
    self._embed = jax.jit(model.embed)
    self._swap = jax.jit(functools.partial(swap_factors, model))

  def __call__(self, trainable: Params, frozen: Params, *, step: int) -> Mapping[str, np.ndarray]:
    if not self._clips:
      return {}
    self._draw_reconstruction(trainable, frozen)
    self._draw_factor_swap(trainable)
    pictures.similarity(self.workdir / "similarity.png", [self._tokens(trainable, frozen, c) for c in self._clips[:3]])
    names = ("reconstruction", "factor_swap", "similarity")
    return {name: _read_png(self.workdir / f"{name}.png") for name in names}

  def _tokens(self, trainable: Params, frozen: Params, clip: EvalClip) -> ClipTokens:
    audio, vocal = embed_clip(self._embed, trainable, frozen, clip)
    return ClipTokens(key=clip.key, audio=audio, vocal=vocal, lag=clip.lag)

  def _draw_reconstruction(self, trainable: Params, frozen: Params) -> None:
    batch = middle_batch(self._clips, clip_frames=self.model.clip_frames, audio_frames=self.model.audio_frames)
    out = jax.device_get(self._apply(trainable, frozen, batch, jax.random.key(0)))
    image = lambda patches: np.asarray(  # noqa: E731
      masking.unpatchify(denormalise_pixels(jnp.asarray(patches)), self.model.patch)
    )
    pictures.reconstruction(
      self.workdir / "reconstruction.png",
      original=image(out.target[:, 0]),
      uniform_visible=out.masked[:, 0] == 0,
      face_view=image(out.motion_view[:, 0]),
      face_visible=np.any(out.motion_view[:, 0] != 0, axis=-1),
      video_driven=image(out.predicted[:, 0, 0]),
      audio_driven=image(out.predicted[:, 0, 1]),
      titles=[Path(clip.key).name.split(".")[0] for clip in self._clips],
    )

  def _draw_factor_swap(self, trainable: Params) -> None:
    frames = np.stack([clip.frames[len(clip.frames) // 2] for clip in self._clips])
    boxes = np.stack([clip.face_box[len(clip.frames) // 2] for clip in self._clips])
    mouth_of, pose_of = np.roll(frames, -1, axis=0), np.roll(frames, -2, axis=0)
    decoded = self._swap(trainable, identity_of=frames, face_box=boxes, mouth_of=mouth_of, pose_of=pose_of)
    pictures.factor_swap(
      self.workdir / "factor_swap.png",
      identity_of=frames,
      mouth_of=mouth_of,
      pose_of=pose_of,
      decoded=np.asarray(decoded),
    )


def swap_factors(model: SyncLipMAE, trainable: Params, *, identity_of, face_box, mouth_of, pose_of) -> jax.Array:
  """Pictures [R, S, S, 3] in 0..1 of one person's identity, another's mouth and a third's pose.

  Frames are uint8 [R, S, S, 3]. The decoder sees the patches of the first picture that are least on the face, so that
  mouth and pose can only come from the tokens.
  """
  identity, vocal, ambient = (model.embed_visual(trainable, x[:, None]) for x in (identity_of, mouth_of, pose_of))
  on_face = masking.box_coverage(face_box[:, None], model.grid)
  surroundings = masking.top_weighted(-on_face, model.visible)
  patches = model.encode(trainable, identity_of[:, None], surroundings).patches
  decoded = model.decode(
    trainable,
    patches,
    surroundings,
    identity=identity.identity,
    ambient=ambient.ambient,
    conditioning=vocal.vocal[:, :, None],
  )
  return masking.unpatchify(denormalise_pixels(decoded[:, 0, 0]), model.patch)


def middle_batch(clips: Sequence[EvalClip], *, clip_frames: int, audio_frames: int) -> Batch:
  """A training batch of the middle `clip_frames` frames of each clip, with the sound around them."""
  lead = (audio_frames - clip_frames) // 2 * SAMPLES_PER_FRAME + AUDIO_MARGIN

  def window(clip: EvalClip) -> tuple[slice, np.ndarray]:
    start = (len(clip.frames) - clip_frames) // 2
    sound = np.pad(clip.waveform, (lead, audio_context_samples(audio_frames)))
    first = start * SAMPLES_PER_FRAME
    return slice(start, start + clip_frames), sound[first : first + audio_context_samples(audio_frames)]

  windows = [window(clip) for clip in clips]
  cut = lambda name: np.stack([getattr(clip, name)[rows] for clip, (rows, _) in zip(clips, windows, strict=True)])  # noqa: E731
  return {
    "frames": cut("frames"),
    "waveform": np.stack([sound for _, sound in windows]),
    "face_box": cut("face_box"),
    "mouth_box": cut("mouth_box"),
    "index": np.arange(len(clips), dtype=np.uint32),
  }


def _read_png(path: Path) -> np.ndarray:
  from matplotlib.image import imread

  return (imread(path)[..., :3] * 255).round().astype(np.uint8)
