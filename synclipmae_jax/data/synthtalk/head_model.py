"""What is drawn of a person: face, eyes, teeth, tongue, hair and glasses as one list of triangles and a texture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from synclipmae_jax.data.synthtalk import head_texture, raster
from synclipmae_jax.data.synthtalk.head_shape import Person, mesh

_HEADSETS = 0.25  # share of people
_MOUTH = {"bag": "mouth", "upper_teeth": "teeth", "lower_teeth": "teeth", "tongue": "tongue"}


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """The points of a frame are those of the face, and behind them `worn`, which have no expression."""

  worn: np.ndarray  # float32 [A, 3] hair and glasses
  turning: np.ndarray  # float32 [V + A]
  triangles: np.ndarray  # int64 [F, 3] of drawn vertices, counter-clockwise from outside
  source: np.ndarray  # int64 [N]: the point of each drawn vertex; it is drawn once for each part of the texture
  coordinates: np.ndarray  # float32 [N, 2] in the texture
  inside: np.ndarray  # float32 [N]: share of the light that reaches it if the mouth is closed, 1 outside of the mouth
  shine: np.ndarray  # float32 [N]
  skin: np.ndarray  # float32 [N]: 1 where light is scattered
  texture: np.ndarray  # float32 [H, W, 4]
  shadows: np.ndarray  # int64 [S, 3]: triangles of points that cast shadows


def build(face: Mapping[str, float], who: Person) -> Model:
  head = mesh()
  groups: list[tuple[np.ndarray, np.ndarray, str, float]] = []  # triangles, coordinates of all points, kind, shine
  skin = head_texture.unrolled(head.base)
  rng = who.rng(3)
  oil = float(rng.uniform(0.5, 1.3))
  groups.append((head.triangles[head.part["skin"]], skin, "skin", oil))
  for part, name in _MOUTH.items():
    at = head.base
    front = at[head.vertices(part)]
    low, high = front.min(axis=0), front.max(axis=0)
    y = (high[1] - at[:, 1]) / (high[1] - low[1])
    place = head_texture.field(name, 0.5 + 0.5 * at[:, 0] / high[0], 1 - y if part == "lower_teeth" else y)
    groups.append((head.triangles[head.part[part]], place, part, {"mouth": 0.1, "teeth": 0.9}.get(name, 0.6)))
  for part in ("r_eye", "l_eye"):
    at = head.base[head.vertices(part)]
    centre, radius = (at.min(axis=0) + at.max(axis=0)) / 2, np.ptp(at[:, 0]) / 2
    x, y = ((head.base[:, :2] - centre[:2]) / radius).T
    groups.append((head.triangles[head.part[part]], head_texture.field("eye", 0.5 + 0.5 * x, 0.5 - 0.5 * y), part, 1.2))
  lashes = head.triangles[head.part["lashes"]]
  groups.append((_both_sides(lashes), head_texture.field("lashes", 0.5 + 0 * head.base[:, 0], 0.5), "lashes", 0.0))

  worn, turning, count = [], [head.turning], len(head.base)
  for points, triangles, coordinates, turns, kind in _worn(face, who, rng):
    padded = np.zeros((count + len(points), 2), np.float32)
    padded[count:] = coordinates
    groups.append((triangles + count, padded, kind, 0.9 if kind == "tubes" else 0.35))
    worn.append(points)
    turning.append(turns)
    count += len(points)
  drawn = [np.unique(triangles, return_inverse=True) for triangles, *_ in groups]
  starts = np.cumsum([0, *(len(points) for points, _ in drawn)])
  kinds = np.repeat([kind for _, _, kind, _ in groups], [len(points) for points, _ in drawn])
  source = np.concatenate([points for points, _ in drawn])
  return Model(
    worn=np.concatenate([np.zeros((0, 3)), *worn]).astype(np.float32),
    turning=np.concatenate(turning).astype(np.float32),
    triangles=np.concatenate([start + index.reshape(-1, 3) for start, (_, index) in zip(starts, drawn, strict=False)]),
    source=source,
    coordinates=np.concatenate([c[points] for (points, _), (_, c, _, _) in zip(drawn, groups, strict=True)]),
    inside=_inside(kinds, source),
    shine=np.repeat([shine for *_, shine in groups], [len(points) for points, _ in drawn]).astype(np.float32),
    skin=np.isin(kinds, ("skin", "tongue")).astype(np.float32),
    texture=head_texture.paint(face, who),
    shadows=np.concatenate([triangles for triangles, _, kind, _ in groups if kind in ("skin", "fall")]),
  )


def _inside(kinds: np.ndarray, source: np.ndarray) -> np.ndarray:
  """[N]: light in the mouth, less towards the throat and the molars."""
  depth = np.concatenate([mesh().base, np.full((source.max() + 1, 3), 2.0, np.float32)])[source, 2]
  share = np.ones(len(kinds), np.float32)
  shares = {"upper_teeth": (0.75, 0.1), "lower_teeth": (0.55, 0.08), "tongue": (0.62, 0.05), "bag": (0.3, 0.02)}
  for kind, (near, far) in shares.items():
    here = kinds == kind
    share[here] = far + (near - far) * np.clip((depth[here] - 1.0) / 0.42, 0, 1) ** 1.3
  for kind in ("l_eye", "r_eye"):
    share[kinds == kind] = 0.86
  return share


def _both_sides(triangles: np.ndarray) -> np.ndarray:
  return np.concatenate([triangles, triangles[:, ::-1]])


def _worn(face: Mapping[str, float], who: Person, rng: np.random.Generator):
  """Yields points [A, 3], triangles, coordinates [A, 2], turning [A] and the kind: cap, fall or tubes."""
  thick = rng.uniform(0.03, 0.2) if who.male > 0.5 else rng.uniform(0.08, 0.22)
  yield _cap(face, who, thick, lift=rng.uniform(0, 1.2), rng=rng)
  length = face["hair_length"] if who.male < 0.5 else 0.2 * face["hair_length"]
  if length > 0.3:
    yield _fall(who, thick, length=length, open_at=rng.uniform(1.15, 1.5), rng=rng)
  if face["glasses"] > 0:
    yield _tubes(_glasses(who, rng), rng.uniform(0.010, 0.024))
  if rng.random() < _HEADSETS:
    yield _tubes(_headset(who, rng), 0.010)


def _cap(face, who, thick, *, lift, rng):
  """The hair on the skull: the skin above the hairline, pushed outwards. The texture cuts its edge."""
  head = mesh()
  angle = np.arctan2(head.base[:, 0], head.base[:, 2] - 0.3)
  above = head.base[:, 1] - head_texture.hairline(face, who, angle)
  ear = (np.abs(head.base[:, 0]) > 0.73) & (head.base[:, 1] < 7.46)
  skin = head.triangles[head.part["skin"]]
  kept = skin[(above[skin].max(axis=1) > -0.1) & ~ear[skin].any(axis=1)]
  vertices, index = np.unique(kept, return_inverse=True)
  outward = raster.normals(who.points, skin)[vertices]
  rise = np.clip((above[vertices] + 0.02) / 0.45, 0, 1)
  uneven = sum(rng.normal(0, 0.14) * np.sin(k * angle[vertices] + rng.uniform(0, 6)) for k in (1, 2, 3, 5, 8))
  uneven = uneven + 0.15 * np.sin(9 * head.base[vertices, 1] + rng.uniform(0, 6)) + rng.normal(0, 0.06, len(vertices))
  height = thick * (1 + uneven) * rise**0.9 * (1 + lift * np.clip(head.base[vertices, 1] - 7.7, 0, 1)) + 0.012
  points = who.points[vertices] + height[:, None] * outward
  coordinates = head_texture.unrolled(head.base[vertices]) + np.array([head_texture.COLUMNS, 0], np.float32)
  return points, index.reshape(-1, 3), coordinates, head.turning[vertices], "cap"


def _fall(who, thick, *, length, open_at, rng):
  """Long hair: a curtain around the back of the head, open in front."""
  columns, rows = 33, 12
  angle = np.linspace(open_at, 2 * np.pi - open_at, columns)
  head = who.points[mesh().turning > 0.99]
  half_width = 0.97 * np.abs(head[:, 0]).max()
  back, centre = head[:, 2].min(), who.centre
  top, bottom = centre[1] + 0.55, centre[1] + 0.1 - 2.0 * length + 0.08 * rng.standard_normal(columns)
  down = np.linspace(0, 1, rows)[:, None]
  wave = 0.03 * np.sin(5 * down + rng.uniform(0, 6)) * rng.uniform(0, 1)
  bulge = 0.80 + 0.2 * np.sqrt(np.clip(down * 3, 0, 1)) - 0.12 * down**2
  x = (half_width + thick * 0.6) * bulge * np.sin(angle) * (1 + 0.05 * rng.standard_normal(columns) * down) + wave
  deep = (centre[2] - back + thick) * bulge
  z = centre[2] + np.where(np.cos(angle) < 0, deep * np.cos(angle), 0.75 * np.cos(angle)) + 0.1 * down**2
  y = top + (bottom - top) * down
  points = np.stack(np.broadcast_arrays(x, y, z), axis=-1).reshape(-1, 3).astype(np.float32)
  grid = np.arange(rows * columns).reshape(rows, columns)
  a, b, c, d = grid[:-1, :-1].ravel(), grid[:-1, 1:].ravel(), grid[1:, 1:].ravel(), grid[1:, :-1].ravel()
  triangles = _both_sides(np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]))
  column = 0.1 * head_texture.COLUMNS * (1 + 3 * np.linspace(0, 1, columns)[None, :] + 0 * down)
  # A field of the texture that is hair from edge to edge: the back of the head.
  row = (0.12 + 0.22 * down) * head_texture.ROWS
  coordinates = np.stack(np.broadcast_arrays(column % (0.18 * head_texture.COLUMNS), row), axis=-1).reshape(-1, 2)
  coordinates[:, 0] += head_texture.COLUMNS
  turns = np.broadcast_to(np.clip(1 - 0.9 * (down - 0.35) * length, 0.3, 1), (rows, columns)).ravel()
  return points, triangles, coordinates, turns, "fall"


def _glasses(who, rng) -> list[np.ndarray]:
  """The paths of two rims, two arms and a bridge."""
  mark, points = mesh().landmark, who.points
  wide, tall, power = rng.uniform(0.23, 0.29), rng.uniform(0.16, 0.25), rng.uniform(2, 3.5)
  turn = np.linspace(0, 2 * np.pi, 29)
  cos, sin = np.cos(turn), np.sin(turn)
  paths = []
  for side, sign in (("left", -1.0), ("right", 1.0)):
    eye = points[[mark[f"{side}_eye_{part}"] for part in ("outer", "inner")]].mean(axis=0)
    middle = eye + np.array([0.03 * sign, -0.03, 0.22], np.float32)
    x = wide * np.sign(cos) * np.abs(cos) ** (2 / power)
    y = tall * np.sign(sin) * np.abs(sin) ** (2 / power)
    paths.append(middle + np.stack([x, y, -0.25 * x * sign - 0.12 * np.abs(y)], axis=1))
    hinge = middle + [sign * wide, 0.4 * tall, -0.25 * wide]
    ear = np.array([sign * 0.97 * np.abs(points[mark["contour_0"], 0]), hinge[1] + 0.02, 0.4])
    paths.append(np.linspace(hinge, ear, 6))
  left, right = (path[turn.searchsorted(at)] for path, at in ((paths[0], 0.3), (paths[2], np.pi - 0.3)))
  along = np.linspace(0, 1, 7)[:, None]
  paths.append(left + (right - left) * along + np.array([0, 0.06, 0.03]) * np.sin(np.pi * along))
  return paths


def _headset(who, rng) -> list[np.ndarray]:
  """The paths of the microphone of a speaker on a stage: from an ear along the cheek, and its tip."""
  side, sign, ear = (("left", -1.0, "contour_8"), ("right", 1.0, "contour_0"))[rng.integers(2)]
  start, end = who.points[mesh().landmark[ear]], who.points[mesh().landmark[f"mouth_{side}"]]
  end = end + np.array([0.22 * sign, rng.uniform(-0.12, 0.05), 0.0])
  along = np.linspace(0, 1, 12)[:, None]
  path = start + (end - start) * along + np.array([0.16 * sign, -0.05, 0.1]) * np.sin(np.pi * along) ** 0.7
  return [path, path[-1] + np.array([0, 0, 0.02]) * np.linspace(-1, 1, 3)[:, None] + np.array([-0.02 * sign, 0, 0.03])]


def _tubes(paths: list[np.ndarray], radius: float):
  found, triangles, count = [], [], 0
  for path in paths:
    ring, faces = _tube(path, radius * (2.5 if len(path) == 3 else 1))
    found.append(ring)
    triangles.append(faces + count)
    count += len(ring)
  points = np.concatenate(found).astype(np.float32)
  place = head_texture.field("frame", np.full(count, 0.5), 0.5)
  return points, np.concatenate(triangles), place, np.ones(count, np.float32), "tubes"


def _tube(path: np.ndarray, radius: float, sides: int = 6) -> tuple[np.ndarray, np.ndarray]:
  along = np.gradient(path, axis=0)
  along /= np.linalg.norm(along, axis=1, keepdims=True)
  first = np.cross(along, np.where(np.abs(along[:, 2:]) < 0.8, [[0.0, 0, 1]], [[0.0, 1, 0]]))
  first /= np.linalg.norm(first, axis=1, keepdims=True)
  second = np.cross(along, first)
  turn = np.linspace(0, 2 * np.pi, sides, endpoint=False)
  points = path[:, None] + radius * (np.cos(turn)[:, None] * first[:, None] + np.sin(turn)[:, None] * second[:, None])
  grid = np.arange(len(path) * sides).reshape(len(path), sides)
  a, b = grid[:-1], grid[1:]
  c, d = np.roll(b, -1, axis=1), np.roll(a, -1, axis=1)
  faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
  return points.reshape(-1, 3), _both_sides(faces)
