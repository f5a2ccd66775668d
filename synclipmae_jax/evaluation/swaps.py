"""Faces decoded from the tokens of several people, and how near they come to the true picture where it is known."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from synclipmae_jax.evaluation.table import interval_or_null, markdown, value_or_null
from synclipmae_jax.metrics.bootstrap import Estimate, clip_bootstrap
from synclipmae_jax.metrics.image_quality import WHOLE, picture_scores
from synclipmae_jax.models.editing import decode_around
from synclipmae_jax.models.synclipmae import SyncLipMAEModel
from synclipmae_jax.types import Params


class Portrait(NamedTuple):
  """One picture of each of R people, with its face and mouth boxes."""

  frames: Any  # uint8 [R, S, S, 3]
  face_box: Any  # [R, 4]
  mouth_box: Any  # [R, 4]


def swap_factors(
  model: SyncLipMAEModel,
  trainable: Params,
  identity_of: Portrait,
  mouth_of: Portrait,
  pose_of: Portrait,
  context_of: Portrait | None = None,
) -> jax.Array:
  """Pictures [R, S, S, 3] in 0..1 with the identity of one person, the mouth of another and the pose of a third.

  The visible patches are those of the first picture, or of `context_of`, that cover least of the face, so that mouth
  and pose come from the tokens.
  """
  context_of = identity_of if context_of is None else context_of
  identity, vocal, ambient = (
    model.embed_visual(trainable, one.frames[:, None], face_box=one.face_box[:, None], mouth_box=one.mouth_box[:, None])
    for one in (identity_of, mouth_of, pose_of)
  )
  return decode_around(
    model, trainable, context_of.frames, context_of.face_box,
    identity=identity.identity[:, 0], vocal=vocal.vocal[:, 0], ambient=ambient.ambient[:, 0],
  )  # fmt: skip


# -- against the true picture --

REGIONS = ("picture", "face", "mouth")
SWAPPED, UNSWAPPED, OWN, SOURCE, MEAN = (
  "swapped", "not swapped", "tokens of the true picture", "the first person's picture", "mean picture"
)  # fmt: skip
ROWS = {
  SWAPPED: "decoded from the identity of A, and what is swapped of B and C",
  UNSWAPPED: "decoded from the tokens of A alone: the decoder, but no swap",
  OWN: "decoded from the mouth and pose tokens of the true picture itself: what the decoder could do",
  SOURCE: "the picture of A as it is",
  MEAN: "the mean of all pictures",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwapReport:
  """Scores by what is swapped, row and region; `shown` are pictures of some swaps of everything."""

  psnr: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
  ssim: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
  nearer: Mapping[str, Mapping[str, Estimate]]  # share of the swaps that are nearer to the truth (PSNR) by the swap
  swaps: int
  frames: int  # of a swap
  shown: Mapping[str, np.ndarray]  # label -> [F, S, S, 3]

  def to_json(self) -> dict[str, Any]:
    cell = lambda estimate: {"mean": value_or_null(estimate), "ci95": interval_or_null(estimate)}

    def nested(tree: Mapping[str, Any]) -> dict[str, Any]:
      return {name: nested(each) if isinstance(each, Mapping) else cell(each) for name, each in tree.items()}

    return {
      "swaps": self.swaps,
      "frames_a_swap": self.frames,
      "psnr_db": nested(self.psnr),
      "ssim": nested(self.ssim),
      "nearer_than_not_swapped": nested(self.nearer),
      "rows": ROWS,
    }

  def table(self) -> str:
    body = [
      [f"{name}: {row}"] + [f"{scores[name][row][region].value:.{digits}f}" for scores, digits in
                            ((self.psnr, 1), (self.ssim, 3)) for region in REGIONS]
      for name in self.psnr for row in ROWS
    ]  # fmt: skip
    head = ["what is swapped", *(f"PSNR {region}" for region in REGIONS), *(f"SSIM {region}" for region in REGIONS)]
    share = lambda found: f"{100 * found['face'].value:.0f} and {100 * found['mouth'].value:.0f} %"
    nearer = ", ".join(f"{name} {share(found)}" for name, found in self.nearer.items())
    return "\n".join([
      *markdown(head, body),
      f"{self.swaps} swaps of {self.frames} frames of rendered people, against the true picture. Face and mouth come"
      f" nearer to it (PSNR) swapped than not swapped in: {nearer}.",
    ])  # fmt: skip


def measure_swaps(model: SyncLipMAEModel, params: Params, swaps: Sequence[Any], *, shown: int = 8) -> SwapReport:
  """Decodes every swap (`data.synthtalk.swaps.Swap`) and compares it with the true picture. All have as many frames."""
  decode = jax.jit(functools.partial(swap_factors, model))
  unit = lambda frames: np.asarray(frames, np.float32) / 255
  mean = np.mean([unit(swap.identity_of[0]).mean(0) for swap in swaps], axis=0)
  names = list(swaps[0].true)
  values: dict[tuple[str, str], list[np.ndarray]] = {(name, row): [] for name in names for row in ROWS}
  pictures: dict[str, list[np.ndarray]] = {}
  for swap in swaps:
    own, mouth, pose = (Portrait(*shot) for shot in (swap.identity_of, swap.mouth_of, swap.pose_of))
    unswapped = np.asarray(decode(params, own, own, own))
    for name in names:
      true = Portrait(*swap.true[name])
      parts = (mouth if name != "ambient" else own), (pose if name != "mouth" else own)
      made = {
        SWAPPED: np.asarray(decode(params, own, *parts)),
        UNSWAPPED: unswapped,
        OWN: np.asarray(decode(params, own, true, true)),
        SOURCE: unit(own.frames),
        MEAN: np.broadcast_to(mean, unswapped.shape),
      }
      for row, images in made.items():
        values[name, row].append(_scores(images, true))
      if name == names[-1] and len(pictures.get("decoded", ())) < shown:
        middle = len(true.frames) // 2
        rows = {"identity of": unit(own.frames), "mouth of": unit(mouth.frames), "pose of": unit(pose.frames),
                "true picture": unit(true.frames), "decoded": made[SWAPPED], "not swapped": unswapped,
                "tokens of the\ntrue picture": made[OWN]}  # fmt: skip
        for label, images in rows.items():
          pictures.setdefault(label, []).append(np.clip(images[middle], 0, 1))
  table = lambda kind: {
    name: {
      row: dict(zip(REGIONS, clip_bootstrap(np.stack(values[name, row])[:, kind]), strict=True)) for row in ROWS
    }
    for name in names
  }  # fmt: skip
  nearer = {name: np.stack(values[name, SWAPPED])[:, 0] > np.stack(values[name, UNSWAPPED])[:, 0] for name in names}
  return SwapReport(
    psnr=table(0),
    ssim=table(1),
    nearer={name: dict(zip(REGIONS, clip_bootstrap(each), strict=True)) for name, each in nearer.items()},
    swaps=len(swaps),
    frames=len(swaps[0].identity_of[0]),
    shown={label: np.stack(images) for label, images in pictures.items()},
  )


def _scores(images: np.ndarray, true: Portrait) -> np.ndarray:
  """(PSNR, SSIM) by region, [2, REGIONS]: means over the frames."""
  each = []
  for image, frame, face, mouth in zip(np.clip(images, 0, 1), *true, strict=True):
    found = picture_scores(image, frame / 255, {"picture": WHOLE, "face": face, "mouth": mouth})
    each.append(np.transpose([found[region] for region in REGIONS]))
  return np.mean(each, axis=0)
