"""The identity of a face: its shape and colours. Lengths are in half-heights of the head."""

from __future__ import annotations

import numpy as np

RANGES = {
  "face_width": (0.72, 0.84), "face_height": (0.96, 1.06), "jaw_taper": (0.14, 0.36), "eye_gap": (0.31, 0.37),
  "eye_size": (0.115, 0.15), "eye_y": (-0.2, -0.1), "brow_height": (0.17, 0.22), "brow_thickness": (0.022, 0.05),
  "nose_length": (0.26, 0.36), "nose_width": (0.08, 0.13), "mouth_y": (0.48, 0.55), "mouth_width": (0.31, 0.37),
  "lip_upper": (0.05, 0.08), "lip_lower": (0.065, 0.1), "skin": (0.0, 1.0), "blush": (0.0, 1.0),
  "hair": (0.0, 1.0), "hairline": (-0.72, -0.5), "hair_length": (0.0, 1.0), "beard": (-1.2, 0.8), "iris": (0.0, 1.0),
  "lip_red": (0.0, 1.0), "teeth": (0.0, 1.0), "glasses": (-2.0, 1.0), "cloth_r": (0.1, 0.8), "cloth_g": (0.1, 0.8),
  "cloth_b": (0.1, 0.8),
}  # fmt: skip
IDENTITY = tuple(RANGES)

# Natural ranges, sRGB: from light to dark skin; black, browns, auburn, blond, grey hair; brown to blue eyes.
_SKIN = ((255, 222, 198), (240, 199, 165), (216, 164, 124), (172, 116, 78), (124, 80, 54), (84, 54, 38))
_HAIR = ((24, 20, 20), (58, 38, 28), (104, 68, 44), (134, 66, 36), (204, 168, 110), (168, 164, 158))
_IRIS = ((62, 38, 22), (104, 70, 36), (92, 112, 62), (88, 122, 150), (70, 110, 170))


def draw_identity(rng: np.random.Generator) -> np.ndarray:
  """[IDENTITY]: the parameters of a random person."""
  return np.array([rng.uniform(low, high) for low, high in RANGES.values()])


def colours(face: dict[str, float]) -> dict[str, np.ndarray]:
  """Part of the face -> float32 RGB in 0..1."""
  skin = _blend(_SKIN, face["skin"])
  lips = skin * (0.86, 0.56, 0.56) + (0.10, 0.0, 0.02)
  return {
    "skin": skin,
    "hair": _blend(_HAIR, face["hair"]),
    "iris": _blend(_IRIS, face["iris"]),
    "lips": lips + face["lip_red"] * (np.array((0.72, 0.16, 0.22), np.float32) - lips) * 0.5,
    "teeth": _blend(((250, 248, 240), (226, 214, 188)), face["teeth"]),
    "cloth": np.array([face["cloth_r"], face["cloth_g"], face["cloth_b"]], np.float32),
  }


def _blend(palette: tuple[tuple[int, int, int], ...], where: float) -> np.ndarray:
  stops = np.linspace(0, 1, len(palette))
  return np.array([np.interp(where, stops, channel) for channel in np.transpose(palette) / 255.0], np.float32)
