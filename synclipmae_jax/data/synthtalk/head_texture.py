"""The colours of a 3D head: one picture that its triangles are cut from. Linear light (the square of sRGB), opacity.

Skin and hair are unrolled around the head: columns follow the angle around it (0 is the front, finer there), rows the
height. Beside them are eye, teeth, tongue, and plain fields.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from synclipmae_jax.data.synthtalk import raster
from synclipmae_jax.data.synthtalk.head_shape import Person, mesh
from synclipmae_jax.data.synthtalk.identity import colours

ROWS, COLUMNS, FIELD = 512, 640, 64
_TOP, _BOTTOM, _AXIS = 8.6, 4.5, 0.3  # decimetres: heights of the first and last row; z of the axis
FIELDS = ("eye", "teeth", "tongue", "mouth", "lashes", "frame", "cloth", "gums")


def unrolled(points: np.ndarray) -> np.ndarray:
  """[..., 3] points of the base mesh -> float32 [..., 2] column and row in the skin."""
  angle = np.arctan2(points[..., 0], points[..., 2] - _AXIS)
  column = (0.5 + 0.5 * np.sin(angle / 2)) * (COLUMNS - 1)
  row = (_TOP - points[..., 1]) / (_TOP - _BOTTOM) * (ROWS - 1)
  return np.stack([column, row], axis=-1).astype(np.float32)


def field(name: str, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
  """Column and row of the point (x, y), 0 to 1, of one of FIELDS."""
  number = FIELDS.index(name)
  place = np.stack(np.broadcast_arrays(np.clip(x, 0.02, 0.98), np.clip(y, 0.02, 0.98)), axis=-1) * FIELD
  return (place + [2 * COLUMNS, number * FIELD]).astype(np.float32)


@functools.cache
def _chart() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Of every texel of the skin: angle around the head [ROWS, COLUMNS], height, and the lips."""
  angle = 2 * np.arcsin(np.linspace(-1, 1, COLUMNS, dtype=np.float32))
  height = np.linspace(_TOP, _BOTTOM, ROWS, dtype=np.float32)
  triangles = mesh().triangles[mesh().part["skin"]]
  place = unrolled(mesh().base)
  radius = np.hypot(mesh().base[:, 0], mesh().base[:, 2] - _AXIS)
  light = np.stack([mesh().lips] * 4, axis=1) * np.array([1, 1, 1, 0], np.float32)
  image = np.zeros((ROWS, COLUMNS, 3), np.float32)
  raster.draw(
    np.concatenate([place, 10 - radius[:, None]], axis=1).astype(np.float32), triangles, place * 0,
    light.astype(np.float32), np.ones((1, 1, 4), np.float32), image, np.full(image.shape[:2], raster.FAR),
  )  # fmt: skip
  lips = ndimage.gaussian_filter(image[..., 0], 1.0)
  return *np.broadcast_arrays(angle[None, :], height[:, None]), lips


def _noise(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
  """[ROWS, COLUMNS] smooth noise with about `rows` x `columns` waves, roughly -1 to 1."""
  return ndimage.zoom(
    rng.standard_normal((rows, columns)).astype(np.float32), (ROWS / rows, COLUMNS / columns), order=1
  )


def _ramp(value, low, high):
  value = np.clip((value - low) / (high - low), 0, 1)
  return value * value * (3 - 2 * value)


def _bump(value, middle, width):
  return np.exp(-(((value - middle) / width) ** 2))


def hairline(face: Mapping[str, float], who: Person, angle: np.ndarray) -> np.ndarray:
  """Height of the lower edge of the hair on the head at `angle`."""
  rng = who.rng(1)
  receding = rng.uniform(0, 1) * _ramp(who.age * who.male, 0.15, 0.6)
  away = np.abs(angle)
  front = 7.93 + 0.5 * (-0.55 - face["hairline"]) + 0.3 * receding - 0.05 * _bump(angle, 0, 0.25)
  temple = front - 0.04 + 0.25 * receding * _bump(away, 0.6, 0.25)
  burns = 7.1 + 0.25 * rng.uniform() * (1 - who.male)
  line = np.where(away < 0.75, temple, front)
  line = line + (7.62 - line) * _ramp(away, 0.78, 1.02)
  line = line + (burns - line) * _ramp(away, 1.05, 1.2)
  line = line + (7.5 - line) * _ramp(away, 1.3, 1.42)
  return line + (6.72 - line) * _ramp(away, 2.0, 2.3)


def paint(face: Mapping[str, float], who: Person) -> np.ndarray:
  """float32 [ROWS, 2 * COLUMNS + FIELD, 4]: the texture of a person."""
  rng = who.rng(2)
  palette = colours(dict(face))
  for part in ("hair", "iris"):  # dark skin goes with dark hair and eyes
    palette[part] = palette[part] * np.float32(1 - 0.6 * np.clip((face["skin"] - 0.45) / 0.3, 0, 1))
  darker = np.array([0.1, 0.19, 0.22], np.float32)  # else light skin is white where it is lit
  palette["skin"] = palette["skin"] * (1 - darker * np.float32(1 - face["skin"]))
  angle, height, lips = _chart()
  away = np.abs(angle)
  texture = np.ones((ROWS, 2 * COLUMNS + FIELD, 4), np.float32)
  texture[:, :COLUMNS, :3] = _skin(rng, face, who, palette, angle, away, height, lips)
  texture[:, COLUMNS : 2 * COLUMNS] = _hair(rng, face, who, palette, angle, height)
  for number, name in enumerate(FIELDS):
    texture[number * FIELD : (number + 1) * FIELD, 2 * COLUMNS :, :3] = _field(name, rng, palette)
  texture[..., :3] = np.clip(texture[..., :3], 0.01, 1) ** 2
  return texture


def _skin(rng, face, who, palette, angle, away, height, lips):
  mottled = 0.6 * _noise(rng, 30, 40) + 0.5 * _noise(rng, 110, 150)
  fine = _noise(rng, 256, 320)
  dark = float(palette["skin"].mean())
  red = 0.5 * face["blush"] * _bump(away, 0.62, 0.3) * _bump(height, 6.92, 0.2) + 0.3 * _bump(away, 0, 0.16) * _bump(
    height, 6.93, 0.13
  )
  red = red + 0.3 * _ramp(away, 1.2, 1.4) * _bump(height, 7.15, 0.3) + 0.06 * mottled
  socket = _bump(away, 0.27, 0.2) * (0.8 * _bump(height, 7.22, 0.09) + 0.5 * _bump(height, 7.37, 0.06))
  skin = palette["skin"] * (1 + (0.02 + 0.03 * rng.uniform()) * mottled + 0.022 * fine)[..., None]
  skin = skin * (1 - (0.10 + 0.14 * rng.uniform()) * socket)[..., None]
  skin = skin * (1 - red[..., None] * np.array([-0.06, 0.22, 0.2], np.float32))
  if rng.random() < 0.35:
    freckles = _ramp(_noise(rng, 170, 213), 1.2, 2.0) * _bump(height, 7.05, 0.3) * _bump(away, 0.3, 0.5)
    skin = skin * (1 - 0.35 * freckles[..., None] * np.array([0.5, 0.8, 1.0], np.float32))
  for _ in range(rng.integers(0, 4)):
    spot = _bump(angle, rng.uniform(-0.8, 0.8), 0.022) * _bump(height, rng.uniform(6.3, 7.9), 0.02)
    skin = skin * (1 - 0.6 * spot[..., None])
  lines = (
    who.age
    * (_bump(height - 0.02 * np.cos(6 * angle), 7.68, 0.012) + _bump(height + 0.02 * np.cos(5 * angle), 7.77, 0.012))
    * _bump(away, 0, 0.4)
  )  # of the forehead
  fold = who.age * _bump(away - 0.17 - 0.35 * (6.95 - height), 0, 0.02) * _bump(height, 6.78, 0.14)
  skin = skin * (1 - 0.12 * (lines + 2 * fold))[..., None]

  # Whiskers: moustache, chin, cheeks; more for higher values. The shadow of a shave is left on most men.
  strands = _noise(rng, 200, 512)
  region = _ramp(6.72 + 0.38 * _ramp(away, 0.5, 1.1) - height, -0.1, 0.1) * _ramp(height, 5.95, 6.2)
  region = np.maximum(region, _bump(height, 6.775, 0.055) * _ramp(0.36 - away, 0, 0.1))
  region = region * (1 - 0.9 * _bump(height, 6.44, 0.03) * _ramp(0.2 - away, 0, 0.1)) * _ramp(1.35 - away, 0, 0.15)
  beard = float(np.clip(face["beard"], 0, 1))
  stubble = region * np.clip(0.12 * who.male + 1.6 * beard * (0.75 + 0.25 * strands), 0, 0.93)
  skin = skin + stubble[..., None] * (0.9 * palette["hair"] * (1 + 0.25 * strands[..., None]) - skin)

  natural = palette["skin"] * np.array([0.88, 0.67, 0.66], np.float32) + np.array([0.04, 0.0, 0.01], np.float32)
  paint_share = (0.0 if who.male > 0.5 else 0.2) + 0.2 * rng.uniform()
  colour = natural + paint_share * (palette["lips"] - natural)
  wrinkles = 1 + 0.05 * _noise(rng, 64, 400) + 0.03 * fine
  skin = skin + np.clip(lips * 1.1, 0, 1)[..., None] * (colour * wrinkles[..., None] - skin)
  seam = _bump(height, 6.598, 0.010) * _ramp(0.24 - away, 0, 0.04)
  skin = skin * (1 - 0.45 * seam[..., None])
  skin = skin * (1 - 0.75 * (_bump(away, 0.058, 0.022) * _bump(height, 6.845, 0.022)))[..., None]  # nostrils

  out = (away - 0.28) / 0.2  # brows: -1 at the inner end, 1 at the outer
  arch = 7.455 + 0.055 * (1 - (out - 0.15) ** 2)
  thick = (0.55 + 0.9 * (face["brow_thickness"] - 0.022) / 0.028) * (0.035 + 0.012 * who.male) * (1 - 0.35 * out)
  brow = _ramp(thick - np.abs(height - arch), -0.012, 0.02) * _ramp(1 - np.abs(out), 0, 0.25)
  brow = np.clip(brow * (0.9 + 0.25 * strands), 0, 0.92)
  skin = skin + brow[..., None] * (palette["hair"] * (0.75 - 0.3 * float(palette["hair"].mean() > dark)) - skin)
  lid = _bump(height, 7.335, 0.012) * _ramp(0.13 - np.abs(away - 0.29), 0, 0.03)
  skin = skin * (1 - (0.35 + 0.3 * (1 - who.male)) * lid[..., None])  # the edge of the upper lid

  scalp = _ramp(height - hairline(face, who, angle) + 0.02 * strands, -0.05, 0.1)
  skin = skin + 0.9 * scalp[..., None] * (palette["hair"] - skin)
  dip = rng.uniform(0.0, 0.5)
  collar = 5.98 - dip * _bump(away, 0, 0.2 + 0.6 * dip) + 0.02 * np.sin(9 * angle)
  cloth = palette["cloth"] * (1 + 0.06 * fine + 0.05 * np.sin(40 * away) * (rng.random() < 0.3))[..., None]
  second = _ramp(0.12 - away, 0, 0.04) * (rng.random() < 0.3)  # a tie or a row of buttons
  cloth = cloth * (1 - 0.5 * second[..., None])
  under = _ramp(collar - height, -0.012, 0.012)
  edge = 1 - 0.4 * _bump(height, collar, 0.03)
  return (skin + under[..., None] * (cloth - skin)) * edge[..., None]


def _hair(rng, face, who, palette, angle, height):
  strands = 0.5 * _noise(rng, 10, 320) + 0.3 * _noise(rng, 24, 200) + 0.35 * _noise(rng, 4, 60)
  colour = palette["hair"] * (1 + 0.34 * strands)[..., None] + 0.03 * np.clip(strands, 0, 2)[..., None]
  ragged = 0.035 * _noise(rng, 20, 320) + 0.03 * _noise(rng, 6, 80)
  inside = height - hairline(face, who, angle) + ragged > 0
  return np.concatenate([colour, inside[..., None]], axis=-1)


def _field(name, rng, palette):
  across = np.linspace(-1, 1, FIELD, dtype=np.float32)
  x, y = across[None, :, None], across[:, None, None]
  r = np.sqrt(x**2 + y**2)
  match name:
    case "eye":
      veins = 0.04 * rng.standard_normal((FIELD, FIELD, 1)).astype(np.float32)
      white = (
        np.array([0.90, 0.87, 0.85], np.float32)
        - r * np.array([0.06, 0.16, 0.16], np.float32)
        + veins * np.array([0, 1, 1], np.float32)
      )
      rays = 1 + 0.18 * np.sin(11 * np.arctan2(y, x) + rng.uniform(0, 6)) + 0.4 * (r / 0.44 - 0.5)
      iris = palette["iris"] * rays * (1 - 0.6 * _ramp(r, 0.37, 0.44))
      eye = white + _ramp(0.47 - r, 0, 0.05) * (iris - white)
      eye = eye * (1 - 0.95 * _ramp(0.2 - r, 0, 0.05))
      spark = _bump(x, rng.uniform(-0.2, 0.2), 0.09) * _bump(y, -0.2, 0.09)
      return eye + 0.85 * spark * (1 - eye)
    case "teeth":  # unrolled: x around the jaw, y from the gums to the edge
      gaps = np.exp(-(((x * 5.5 - np.round(x * 5.5)) / 0.09) ** 2)) * (np.abs(y) < 2)
      return palette["teeth"] * (1 - 0.3 * gaps) * (1 - 0.35 * np.abs(x))
    case "tongue":
      return np.array([0.72, 0.36, 0.36], np.float32) * (1 - 0.15 * np.exp(-((x / 0.08) ** 2))) * np.ones_like(r)
    case "gums":
      return np.array([0.62, 0.32, 0.32], np.float32) * np.ones_like(r)
    case "mouth":
      return np.array([0.42, 0.16, 0.16], np.float32) * np.ones_like(r)
    case "lashes":
      return np.array([0.10, 0.07, 0.06], np.float32) * np.ones_like(r)
    case "frame":
      return rng.choice(((0.08, 0.08, 0.1), (0.25, 0.15, 0.1), (0.5, 0.5, 0.52))).astype(np.float32) * np.ones_like(r)
  return palette["cloth"] * np.ones_like(r)
