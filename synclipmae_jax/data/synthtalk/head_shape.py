"""MakeHuman's head: the shape of a person, its expression, and how far its vertices turn. Decimetres, y upwards.

x is to the right of the image and z towards the viewer. `makehuman/README.md` says where the data come from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from synclipmae_jax.data.synthtalk.geometry import LANDMARKS
from synclipmae_jax.data.synthtalk.identity import RANGES

_UNIT = 1e-3  # decimetres; of the stored displacements
# Identity -> the pair of shapes of a low and of a high value, and the strength at the ends of the range.
_BY_IDENTITY = {
  "face_width": ("head-scale-horiz-decr", "head-scale-horiz-incr", 0.6),
  "face_height": ("head-scale-vert-decr", "head-scale-vert-incr", 0.35),
  "jaw_taper": ("head-square", "head-invertedtriangular", 0.8),
  "eye_gap": ("eyes-trans-in", "eyes-trans-out", 0.7),
  "eye_size": ("eyes-scale-decr", "eyes-scale-incr", 0.9),
  "eye_y": ("eyes-trans-up", "eyes-trans-down", 0.5),
  "brow_height": ("eyebrows-trans-down", "eyebrows-trans-up", 0.7),
  "nose_length": ("nose-scale-vert-decr", "nose-scale-vert-incr", 0.8),
  "nose_width": ("nose-scale-horiz-decr", "nose-scale-horiz-incr", 0.9),
  "mouth_y": ("mouth-trans-up", "mouth-trans-down", 0.35),
  "mouth_width": ("mouth-scale-horiz-decr", "mouth-scale-horiz-incr", 0.6),
  "lip_upper": ("mouth-upperlip-height-decr", "mouth-upperlip-height-incr", 0.9),
  "lip_lower": ("mouth-lowerlip-height-decr", "mouth-lowerlip-height-incr", 0.7),
}
_SPREAD = 0.3  # standard deviation of all other shapes
_PAIRS = (("decr", "incr"), ("down", "up"), ("in", "out"), ("backward", "forward"), ("concave", "convex"))


@dataclasses.dataclass(frozen=True, eq=False)
class Mesh:
  base: np.ndarray  # float32 [V, 3]
  triangles: np.ndarray  # int64 [F, 3], counter-clockwise from outside
  part: dict[str, np.ndarray]  # bool [F]
  shapes: dict[str, np.ndarray]  # float32 [V, 3]
  unit_names: list[str]
  units: np.ndarray  # float32 [U, V * 3]: ARKit's 52 expressions
  turning: np.ndarray  # float32 [V]: 0 does not turn with the head, 1 does
  lips: np.ndarray  # float32 [V]
  landmark: dict[str, int]  # vertex of each of `geometry.LANDMARKS`

  def vertices(self, *parts: str) -> np.ndarray:
    return np.unique(self.triangles[np.any([self.part[name] for name in parts], axis=0)])


@functools.cache
def mesh() -> Mesh:
  data = np.load(Path(__file__).parent / "makehuman" / "head.npz")
  shapes, units = (data[name].astype(np.float32) * np.float32(_UNIT) for name in ("shapes", "units"))
  return Mesh(
    base=data["base"],
    triangles=data["triangles"].astype(np.int64),
    part={str(name): data["parts"] == number for number, name in enumerate(data["part_names"])},
    shapes=dict(zip(data["shape_names"].tolist(), shapes, strict=True)),
    unit_names=data["unit_names"].tolist(),
    units=units.reshape(len(units), -1),
    turning=data["turning"],
    lips=data["lips"],
    landmark=dict(zip(LANDMARKS, data["landmarks"].tolist(), strict=True)),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Person:
  """What follows from the 27 numbers of an identity: they seed the rest."""

  seed: list[int]
  male: float  # 0 to 1
  age: float  # 0 is young, 1 very old
  points: np.ndarray  # float32 [V, 3]: the face at rest
  half_height: float  # of the head, decimetres
  centre: np.ndarray  # [3]: the middle of the head

  def rng(self, purpose: int) -> np.random.Generator:
    return np.random.default_rng([*self.seed, purpose])


def person(face: Mapping[str, float]) -> Person:
  seed = np.round(np.array([face[name] for name in RANGES]) * 1e4).astype(np.int64) % 2**32
  rng = np.random.default_rng(seed)
  male = rng.choice((0.08, 0.9), p=(0.75, 0.25)) + rng.normal(0, 0.06)
  male = float(np.clip(0.95 if face["beard"] > 0 else male, 0, 1))
  age = float(np.clip(rng.beta(1.2, 2.0), 0.05, 0.8))
  weights = _phenotype(rng, face["skin"], male, age)
  for name, (low, high, strength) in _BY_IDENTITY.items():
    start, end = RANGES[name]
    value = strength * (2 * (face[name] - start) / (end - start) - 1)
    weights[low if value < 0 else high] = weights.get(low if value < 0 else high, 0.0) + abs(value)
  taken = {shape for pair in _BY_IDENTITY.values() for shape in pair[:2]}
  for name in mesh().shapes:
    stem, _, last = name.rpartition("-")
    other = next((f"{stem}-{high}" for low, high in _PAIRS if last == low), None)
    if other in mesh().shapes and name not in taken and not stem.endswith(("age", "scale-depth", "nubian")):
      value = float(np.clip(rng.normal(0, _SPREAD), -1, 1))
      weights[name if value < 0 else other] = abs(value)
  points = mesh().base + sum(np.float32(weight) * mesh().shapes[name] for name, weight in weights.items())
  for part, lower in (("upper_teeth", 0.025), ("lower_teeth", 0.035)):  # away from the lips, and seen a little earlier
    teeth = mesh().vertices(part)
    points[teeth] = (points[teeth] - points[teeth].mean(axis=0)) * 0.92 + points[teeth].mean(axis=0)
    points[teeth] -= np.array([0, lower, 0.02], np.float32)
  points[:, 0] -= points[[mesh().landmark["left_eye_inner"], mesh().landmark["right_eye_inner"]], 0].mean()
  top, chin = points[mesh().base[:, 1].argmax(), 1], points[mesh().landmark["contour_4"], 1]
  depth = points[mesh().base[:, 1] > 7.4, 2]
  return Person(
    seed=seed.tolist(),
    male=male,
    age=age,
    points=points,
    half_height=float(top - chin) / 2,
    centre=np.array([0, (top + chin) / 2, (depth.min() + depth.max()) / 2], np.float32),
  )


def _phenotype(rng: np.random.Generator, skin: float, male: float, age: float) -> dict[str, float]:
  """Weights of MakeHuman's people. Light skin is rather European or Asian, dark skin rather African."""
  dark = np.clip((skin - 0.45) / 0.35, 0, 1)
  asian = rng.beta(0.5, 0.8) * (1 - 0.8 * dark)
  kinds = {"african": dark * (1 - asian), "asian": asian, "caucasian": (1 - dark) * (1 - asian)}
  weight = rng.normal(0.0, 0.45)
  weights = {}
  for gender, of_gender in (("male", male), ("female", 1 - male)):
    for years, of_age in (("young", 1 - age), ("old", age)):
      for kind, share in kinds.items():
        weights[f"{kind}-{gender}-{years}"] = of_gender * of_age * share
      end = "maxweight" if weight > 0 else "minweight"
      weights[f"universal-{gender}-{years}-{end}"] = of_gender * of_age * min(abs(weight), 1)
  weights["head-age-incr"] = 0.6 * age
  return weights


def expression(mouth: Mapping[str, np.ndarray], ambient: Mapping[str, np.ndarray]) -> np.ndarray:
  """float32 [T, U]: the weights of the units of expression. `mouth` and `ambient` map names to [T] tracks.

  The distance between the lips is linear in the weights. The weights that open or close the lips are therefore solved
  such that it follows `opening`, whatever the jaw, the rounding and the smile do to it.
  """
  zero = np.zeros_like(np.asarray(mouth["jaw"], np.float64))
  up, down = lambda track: np.maximum(track, zero), lambda track: np.maximum(-np.asarray(track), zero)
  jaw, opening, width, rounding = (mouth[name] for name in ("jaw", "opening", "width", "rounding"))
  smile, smirk, brow, slant, lid = (ambient[name] for name in ("smile", "smirk", "brow", "brow_slant", "lid"))
  tuck, press = np.clip(mouth["tuck"], 0, 1), np.clip(down(opening) / 0.35, 0, 1)
  shut = {"Right": ambient["blink_left"], "Left": ambient["blink_right"]}  # the image's left is the person's right
  values = {
    "jawOpen": 0.62 * np.asarray(jaw),
    "mouthFunnel": 0.45 * up(rounding) * np.clip(0.3 + opening, 0, 1),
    "mouthPucker": 0.8 * up(rounding) + 0.35 * down(width),
    "mouthRollLower": 0.75 * tuck + 0.55 * press,
    "mouthRollUpper": 0.5 * press,
    "browInnerUp": 0.7 * up(brow) + 0.8 * up(slant),
    "noseSneerLeft": 0.15 * down(brow),
    "noseSneerRight": 0.15 * down(brow),
  }
  for side, sign in (("Left", 1.0), ("Right", -1.0)):
    one_sided = up(sign * smirk)
    values |= {
      f"mouthSmile{side}": 0.75 * up(smile) + 0.7 * one_sided + 0.2 * up(width),
      f"mouthDimple{side}": 0.3 * one_sided + 0.25 * up(width),
      f"mouthStretch{side}": 0.6 * up(width) + 0.15 * up(smile),
      f"mouthFrown{side}": 0.8 * down(smile),
      f"mouthPress{side}": 0.5 * press,
      f"cheekSquint{side}": 0.5 * up(smile),
      f"eyeSquint{side}": 0.6 * down(lid) + 0.2 * up(smile),
      f"eyeWide{side}": 0.9 * up(lid),
      f"eyeBlink{side}": np.clip(shut[side] + 0.15 * down(lid), 0, 1),
      f"browDown{side}": 0.7 * down(brow) + 0.45 * down(slant),
      f"browOuterUp{side}": 0.9 * up(brow) + 0.5 * down(slant),
      f"eyeLookUp{side}": 0.9 * down(ambient["gaze_y"]),
      f"eyeLookDown{side}": 0.9 * up(ambient["gaze_y"]),
      f"eyeLookOut{side}": 0.9 * up(sign * ambient["gaze_x"]),
      f"eyeLookIn{side}": 0.9 * down(sign * ambient["gaze_x"]),
    }
  gap = _gap()
  wanted = 0.24 * up(opening) + 0.03 * np.asarray(mouth["teeth"]) * np.clip(opening / 0.1, 0, 1) + 0.02 * tuck
  missing = wanted - sum(gap[name] * track for name, track in values.items())
  part = ("mouthUpperUpLeft", "mouthUpperUpRight", "mouthLowerDownLeft", "mouthLowerDownRight")
  opened = np.clip(missing / sum(gap[name] for name in part), 0, 1.6)
  values |= dict.fromkeys(part, opened)
  values["mouthClose"] = np.clip(missing / gap["mouthClose"], 0, 1.2)
  weights = np.zeros((*zero.shape, len(mesh().unit_names)), np.float32)
  for name, track in values.items():
    weights[..., mesh().unit_names.index(name)] = track
  return weights


@functools.cache
def _gap() -> dict[str, float]:
  """Unit of expression -> how far it moves the middles of the lips apart."""
  upper, lower = (3 * mesh().landmark[f"{lip}_inner_1"] + 1 for lip in ("upper", "lower"))
  return dict(zip(mesh().unit_names, (mesh().units[:, upper] - mesh().units[:, lower]).tolist(), strict=True))


def posed(who: Person, mouth: Mapping[str, np.ndarray], ambient: Mapping[str, np.ndarray]) -> np.ndarray:
  """float32 [T, V, 3]: the face with its expression, before the head turns."""
  moves = expression(mouth, ambient) @ mesh().units
  points = who.points + moves.reshape(len(moves), -1, 3)
  tongue = mesh().vertices("tongue")
  at = mesh().base[tongue]
  tip = np.clip((at[:, 2] - at[:, 2].min()) / np.ptp(at[:, 2]), 0, 1) ** 1.5
  rise = np.clip(np.asarray(mouth["tongue"], np.float32), 0, 1)[:, None] * tip
  low = 1 - np.clip(2.5 * np.asarray(mouth["tongue"], np.float32), 0, 1)[:, None]
  points[:, tongue, 1] += np.float32(0.16) * rise - np.float32(0.05) * low
  points[:, tongue, 2] += np.float32(0.10) * np.clip(rise * 2 - 1, 0, 1)
  return points
