"""The geometry of a face. The renderer and the landmarks use the same curves, so they agree exactly.

There are three coordinate systems, all with y downwards. Image: -1..1 across. Head: centred and upright, in
half-heights of the head. Front: the plane of eyes, nose and mouth, turned by yaw and pitch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

_DEPTH = 0.5  # distance of the front of the face from the axis of the head
LANDMARKS = (
  *(f"contour_{k}" for k in range(9)), *(f"{side}_brow_{k}" for side in ("left", "right") for k in range(3)),
  *(f"{side}_eye_{part}" for side in ("left", "right") for part in ("outer", "inner", "top", "bottom")),
  "nose_bridge", "nose_tip", "mouth_left", "mouth_right",
  *(f"{lip}_{k}" for lip in ("upper_outer", "upper_inner", "lower_inner", "lower_outer") for k in range(3)),
)  # fmt: skip
MOUTH_LANDMARKS = np.array([k for k, name in enumerate(LANDMARKS) if name.startswith(("mouth", "upper", "lower"))])


@dataclasses.dataclass(frozen=True)
class Lips:
  """Four curves across the mouth at the requested positions, and half its width, in front coordinates."""

  outer_upper: Any
  inner_upper: Any
  inner_lower: Any
  outer_lower: Any
  half_width: Any
  centre: Any  # y of the middle of the mouth


def half_mouth(face, mouth, ambient):
  """Half the width of the mouth. Spread lips and a smile widen it; rounded lips narrow it."""
  return face["mouth_width"] * (1 + 0.26 * mouth["width"] - 0.46 * mouth["rounding"] + 0.12 * ambient["smile"])


def lips(x, face, mouth, ambient, xp=np) -> Lips:
  """The lips at front coordinates `x`. Beyond the corners the curves coincide."""
  half_width = half_mouth(face, mouth, ambient)
  across = x / half_width
  arch = xp.clip(1 - across**2, 0.0, 1.0) ** (1 - 0.35 * mouth["rounding"])
  gap = 0.42 * xp.maximum(mouth["opening"], 0.0) * arch
  fullness = (1 + 0.6 * mouth["rounding"]) * (1 - 1.3 * xp.maximum(-mouth["opening"], 0.0)) * xp.sqrt(arch)
  bow = 1 - 0.25 * xp.exp(-((across / 0.22) ** 2))  # the dip in the middle of the upper lip
  bounded = xp.clip(across, -1.3, 1.3)
  centre = face["mouth_y"] + 0.05 * mouth["jaw"]
  line = centre - 0.085 * ambient["smile"] * bounded**2 - 0.05 * ambient["smirk"] * bounded
  inner_upper = line - 0.3 * gap
  inner_lower = line + 0.7 * gap - 0.035 * mouth["tuck"] * arch
  return Lips(
    outer_upper=inner_upper - face["lip_upper"] * fullness * bow,
    inner_upper=inner_upper,
    inner_lower=inner_lower,
    outer_lower=inner_lower + face["lip_lower"] * fullness * (1 - 0.5 * mouth["tuck"]),
    half_width=half_width,
    centre=centre,
  )


def jaw_line(y, face, mouth, xp=np):
  """(half-width, half-height) of the ellipse of the head outline at head coordinate `y`."""
  down = xp.clip(y, 0.0, 1.3)
  half_height = face["face_height"] + 0.16 * mouth["jaw"] * (y > 0)
  return face["face_width"] * (1 - face["jaw_taper"] * down * xp.sqrt(down)), half_height


def brow(x, face, ambient):
  """Front y of the brows at distance `x` >= 0 from the middle of the face."""
  out = (x - face["eye_gap"]) / 0.17  # -1 at the inner end, 1 at the outer
  arch = 0.02 * (1 - out**2)
  return face["eye_y"] - face["brow_height"] - 0.08 * ambient["brow"] - arch + 0.055 * ambient["brow_slant"] * out


def eye_height(face, ambient, blink, xp=np):
  """Half the opening of an eye."""
  return face["eye_size"] * (0.58 + 0.24 * ambient["lid"]) * (1 - blink) + 0.008 * xp.ones_like(blink)


def to_head(x, y, scene, ambient, xp=np):
  """Image -> head coordinates."""
  x, y = x - scene["x"] - ambient["x"], y - scene["y"] - ambient["y"]
  cos, sin = xp.cos(ambient["roll"]), xp.sin(ambient["roll"])
  return (cos * x + sin * y) / scene["zoom"], (cos * y - sin * x) / scene["zoom"]


def to_front(x, y, ambient, xp=np, depth: float = _DEPTH):
  """Head -> front coordinates, or coordinates of another plane at distance `depth` from the axis of the head."""
  yaw, pitch = ambient["yaw"], ambient["pitch"]
  return (x - depth * xp.sin(yaw)) / xp.cos(yaw), (y - depth * xp.sin(pitch)) / xp.cos(pitch)


def _front_to_head(x, y, ambient):
  yaw, pitch = ambient["yaw"], ambient["pitch"]
  return x * np.cos(yaw) + _DEPTH * np.sin(yaw), y * np.cos(pitch) + _DEPTH * np.sin(pitch)


def _head_to_image(x, y, scene, ambient):
  cos, sin = np.cos(ambient["roll"]), np.sin(ambient["roll"])
  return (
    scene["zoom"] * (cos * x - sin * y) + scene["x"] + ambient["x"],
    scene["zoom"] * (sin * x + cos * y) + scene["y"] + ambient["y"],
  )


def landmarks(face, scene, mouth, ambient, *, size: int) -> np.ndarray:
  """float32 [T, LANDMARKS, 2] in pixels. `mouth` and `ambient` map names to [T] tracks."""
  zero = np.zeros_like(ambient["yaw"])
  contour, front = [], []
  for angle in np.linspace(0.05, np.pi - 0.05, 9):  # from the ear on the right of the image, over the chin
    half_height = face["face_height"] + 0.16 * mouth["jaw"]
    y = np.sin(angle) * half_height
    contour.append((np.cos(angle) * jaw_line(y, face, mouth)[0], y))
  for side in (-1, 1):
    for x in (0.17, 0.0, -0.17):
      x = face["eye_gap"] + x
      front.append((side * x + zero, brow(x, face, ambient) + zero))
  for side, blink in ((-1, ambient["blink_left"]), (1, ambient["blink_right"])):
    height = eye_height(face, ambient, blink)
    for x, y in ((1, 0), (-1, 0), (0, -1), (0, 1)):
      front.append((side * (face["eye_gap"] + x * face["eye_size"]) + zero, face["eye_y"] + y * height))
  front += [(zero, face["eye_y"] + zero), (zero, face["eye_y"] + face["nose_length"] + zero)]
  half_width = half_mouth(face, mouth, ambient)
  for x in (-1, 1):
    front.append((x * half_width, lips(x * half_width, face, mouth, ambient).inner_upper))
  for curve in ("outer_upper", "inner_upper", "inner_lower", "outer_lower"):
    for x in (-0.5, 0.0, 0.5):
      front.append((x * half_width, getattr(lips(x * half_width, face, mouth, ambient), curve)))

  points = contour + [_front_to_head(x, y, ambient) for x, y in front]
  image = np.array([_head_to_image(x, y, scene, ambient) for x, y in points])  # [K, 2, T]
  return ((image.transpose(2, 0, 1) + 1) * (size / 2) - 0.5).astype(np.float32)


def face_boxes(points: np.ndarray) -> np.ndarray:
  """float32 [T, 4] x0, y0, x1, y1: from ear to ear and from the chin to slightly above the brows, as by a detector."""
  low, high = points.min(axis=1), points.max(axis=1)
  low[:, 1] -= 0.12 * (high - low)[:, 1]
  return np.concatenate([low, high], axis=1)
