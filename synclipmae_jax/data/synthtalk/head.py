"""SynthTalk faces in 3D: the parameters of a clip drive MakeHuman's head, turned, lit and seen in perspective."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from synclipmae_jax.data.synthtalk import geometry, head_model, head_shape, phones, raster
from synclipmae_jax.data.synthtalk.clip import SCENE, Clip
from synclipmae_jax.data.synthtalk.identity import IDENTITY
from synclipmae_jax.data.synthtalk.motion import AMBIENT

_FINER = 2  # each pixel is the mean of 2 x 2
_LIT_FROM = 96  # side of the shadow map, pixels
_CLOSER = 1.03  # the head is this much larger than that of the flat faces, whose features fill more of it
_BODY_TURNS = 0.35  # of the turn of the head
_BATCH = 25  # frames


# What the boxes of `faces/mediapipe.py` have beyond the landmarks of 20 rendered people, shares of the longer side.
_WIDER, _HIGHER, _LOWER = 0.028, 0.028, 0.045


def face_boxes(points: np.ndarray) -> np.ndarray:
  """float32 [T, 4] x0, y0, x1, y1 of landmarks [T, LANDMARKS, 2], in the convention of the face tracker."""
  boxes = geometry.face_boxes(points)
  side = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
  return boxes + side[:, None] * np.array([-_WIDER, -_HIGHER, _WIDER, _LOWER], np.float32)


class Stage:
  """A person before a camera. The same clip and size give the same pictures."""

  def __init__(self, clip: Clip, size: int):
    self.clip, self.size = clip, size
    self.face = dict(zip(IDENTITY, clip.face.tolist(), strict=True))
    self.scene = dict(zip(SCENE, clip.scene.tolist(), strict=True))
    self.mouth = dict(zip(phones.MOUTH, clip.mouth.T, strict=True))
    self.ambient = dict(zip(AMBIENT, clip.ambient.T, strict=True))
    self.who = head_shape.person(self.face)
    self.model = head_model.build(self.face, self.who)
    self.seed = np.abs(np.round(clip.scene * 1e4)).astype(np.int64).tolist()
    rng = np.random.default_rng([*self.seed, 0])
    self.distance = rng.uniform(5, 13)  # of the camera, half-heights of the head
    self.fill, self.rim = rng.uniform(0.6, 1.0), max(0.0, rng.uniform(-0.6, 0.7))
    self.rim_from = np.array([rng.choice((-1.0, 1.0)), rng.uniform(-0.2, 0.5), -0.45])
    self.blur, self.noise = rng.uniform(0.0, 0.9) * size / 160, rng.uniform(0.0, 0.016)

  def batches(self):
    return [np.arange(first, min(first + _BATCH, self.clip.frames)) for first in range(0, self.clip.frames, _BATCH)]

  def turned(self, rows: np.ndarray) -> np.ndarray:
    """float32 [T, V + A, 3] of some frames: half-heights of the head around its middle, y upwards."""
    who, model = self.who, self.model
    mouth, ambient = ({name: track[rows] for name, track in tracks.items()} for tracks in (self.mouth, self.ambient))
    points = head_shape.posed(who, mouth, ambient)
    worn = np.broadcast_to(model.worn, (len(rows), *model.worn.shape))
    points = (np.concatenate([points, worn], axis=1) - who.centre) / np.float32(who.half_height)
    pivot = np.array([0, -0.35, -0.05], np.float32)
    share = _BODY_TURNS + (1 - _BODY_TURNS) * model.turning[:, None]
    turn = _rotations(ambient["yaw"], ambient["pitch"], ambient["roll"])
    points = points - pivot
    return points + share * (points @ turn.transpose(0, 2, 1) - points) + pivot

  def project(self, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[T, V, 3] -> x, y in pixels, and the distance."""
    scene, far = self.scene, self.distance - points[..., 2]
    scale = _CLOSER * scene["zoom"] * self.distance / far
    x = scale * points[..., 0] + (scene["x"] + self.ambient["x"][rows])[:, None]
    y = -scale * (points[..., 1] + 0.06) + (scene["y"] + self.ambient["y"][rows])[:, None]
    return np.stack([(x + 1) * (self.size / 2) - 0.5, (y + 1) * (self.size / 2) - 0.5, far], -1).astype(np.float32)

  def landmarks(self) -> np.ndarray:
    """float32 [T, LANDMARKS, 2] in pixels: vertices of the head, hidden ones too."""
    chosen = [head_shape.mesh().landmark[name] for name in geometry.LANDMARKS]
    return np.concatenate([self.project(self.turned(rows)[:, chosen], rows)[..., :2] for rows in self.batches()])

  def pictures(self) -> np.ndarray:
    """uint8 [T, size, size, 3]."""
    rng = np.random.default_rng([*self.seed, 1])
    behind = _background(self.scene, rng, self.size)
    found = np.zeros((self.clip.frames, self.size, self.size, 3), np.uint8)
    for rows in self.batches():
      turned = self.turned(rows)
      placed = self.project(turned, rows)
      for row, points, place in zip(rows, turned, placed, strict=True):
        found[row] = self._picture(row, np.ascontiguousarray(points), place, behind, rng)
    return found

  def _picture(self, row: int, points: np.ndarray, place: np.ndarray, behind: np.ndarray, rng) -> np.ndarray:
    model, scene = self.model, self.scene
    side = self.size * _FINER
    image = np.repeat(np.repeat(behind, _FINER, axis=0), _FINER, axis=1)
    depth = np.full((side, side), raster.FAR, np.float32)
    fine = place[model.source]
    fine[:, :2] = (fine[:, :2] + 0.5) * _FINER - 0.5
    light = self._light(row, points)
    raster.draw(fine, model.triangles, model.coordinates, light, model.texture, image, depth)
    parts = [image[y::_FINER, x::_FINER] for y in range(_FINER) for x in range(_FINER)]  # mean() is ten times slower
    picture = sum(parts[1:], parts[0]) / np.float32(len(parts))
    if self.blur > 0.2:
      picture = ndimage.gaussian_filter(picture, (self.blur, self.blur, 0))
    picture = np.sqrt(np.maximum(picture, 0))
    if self.clip.occluder[row, 1] < 2:
      _hold_microphone(picture, *self.clip.occluder[row])
    tint = np.array([1 + scene["warmth"], 1, 1 - scene["warmth"]], np.float32)
    picture = picture * (tint * np.float32(2.0 ** (scene["gain"] + self.ambient["light"][row])))
    picture = picture + np.float32(self.noise) * rng.standard_normal(picture.shape, np.float32)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)

  def _light(self, row: int, points: np.ndarray) -> np.ndarray:
    """float32 [N, 4]: the light at every vertex that is drawn, and its gloss."""
    model, scene = self.model, self.scene
    normal = raster.normals(points[model.source], model.triangles)
    key = np.array([1.3 * scene["light_x"], -scene["light_y"] + 0.15, 1.0], np.float32)
    key /= np.linalg.norm(key)
    lit = self._lit(points, key)[model.source]
    across = normal @ key
    contrast = scene["contrast"]
    wrap = np.array([0.42, 0.22, 0.15], np.float32) * model.skin[:, None] + 0.1  # red light goes furthest through skin
    direct = np.clip((across[:, None] + wrap) / (1 + wrap), 0, 1) ** 1.2 * (0.25 + 0.75 * lit[:, None])
    sky = 1 + 0.28 * normal[:, 1:2]
    light = (0.72 - 0.85 * contrast) * self.fill * sky + (0.25 + 1.25 * contrast) * direct
    rim = np.clip(normal @ (self.rim_from / np.linalg.norm(self.rim_from)), 0, 1) ** 2
    light = light + (self.rim * rim)[:, None]
    wide = np.clip(float(self.mouth["opening"][row]) * 1.2, 0, 1)
    inside = model.inside + np.where(model.inside < 0.8, 0.35 * wide * model.inside, 0)
    half = key + np.array([0, 0, 1], np.float32)
    glance = np.clip(normal @ (half / np.linalg.norm(half)), 0, 1)
    gloss = model.shine * lit * inside * (0.05 * glance**6 + 0.16 * glance**40) * (0.3 + contrast)
    return np.concatenate([light * inside[:, None], gloss[:, None]], axis=1).astype(np.float32)

  def _lit(self, points: np.ndarray, key: np.ndarray) -> np.ndarray:
    """[V + A]: 1 in the light, 0 in shadow."""
    right = np.cross([0.0, 1.0, 0.0], key)
    right /= np.linalg.norm(right)
    seen = points @ np.stack([right, np.cross(key, right), key], axis=1).astype(np.float32)
    scale = _LIT_FROM / 3.2
    place = np.stack([_LIT_FROM / 2 + scale * seen[:, 0], _LIT_FROM / 2 - scale * seen[:, 1], 9 - seen[:, 2]], axis=1)
    depth = np.full((_LIT_FROM, _LIT_FROM), raster.FAR, np.float32)
    raster.draw_depth(place.astype(np.float32), self.model.shadows, depth)
    x, y = np.round(place[:, :2]).astype(int).T
    lit = np.zeros(len(points), np.float32)
    for dx in (-1, 0, 1):
      for dy in (-1, 0, 1):
        near = depth[np.clip(y + dy, 0, _LIT_FROM - 1), np.clip(x + dx, 0, _LIT_FROM - 1)]
        lit += place[:, 2] < near + 0.09
    return lit / 9


def _rotations(yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
  """float32 [T, 3, 3]. Positive: to the right of the image, downwards, clockwise."""
  zero, one = np.zeros_like(yaw), np.ones_like(yaw)
  cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
  of_yaw = np.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy], axis=1).reshape(-1, 3, 3)
  of_pitch = np.stack([one, zero, zero, zero, cp, -sp, zero, sp, cp], axis=1).reshape(-1, 3, 3)
  of_roll = np.stack([cr, sr, zero, -sr, cr, zero, zero, zero, one], axis=1).reshape(-1, 3, 3)
  return (of_roll @ of_pitch @ of_yaw).astype(np.float32)


def _background(scene: dict[str, float], rng: np.random.Generator, size: int) -> np.ndarray:
  """float32 [S, S, 3], linear: two colours, a grating, and blurred things and lamps behind the person."""
  grid = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
  u, v = grid[None, :, None], grid[:, None, None]
  top, low = (np.array([scene[f"{end}_{channel}"] for channel in "rgb"], np.float32) for end in ("top", "low"))
  top, low = (0.25 * colour + 0.75 * colour.mean() for colour in (top, low))
  dim = 1.0 if rng.random() < 0.5 else rng.uniform(0.1, 0.6)
  wave = scene["pitch"] * (u * np.cos(scene["slant"]) + v * np.sin(scene["slant"])) + scene["phase"]
  picture = top + (low - top) * (0.5 + 0.5 * v) + scene["grating"] * np.sin(wave)
  things = ndimage.zoom(rng.standard_normal((5, 5, 3)), (size / 5, size / 5, 1), order=rng.choice((0, 1)))
  things = ndimage.gaussian_filter(things, (size * rng.uniform(0.01, 0.06),) * 2 + (0,))
  things = 0.5 * things + 0.5 * things.mean(axis=2, keepdims=True)
  picture = dim * (picture + rng.uniform(0, 0.12) * things)
  for _ in range(rng.integers(0, 5)):
    away = np.hypot(u - rng.uniform(-1, 1), v - rng.uniform(-1, 0.6))
    picture = picture + rng.uniform(0.1, 0.6) * np.exp(-((away / rng.uniform(0.05, 0.3)) ** 4)) * rng.uniform(0.7, 1, 3)
  return (np.clip(picture, 0, 1) ** 2).astype(np.float32)


def _hold_microphone(picture: np.ndarray, cx: float, cy: float) -> None:
  """Paints a ball on a stick from below, as before the flat faces."""
  size = len(picture)
  grid = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
  x, y = grid[None, :] - cx, grid[:, None] - cy
  ball = np.hypot(x, y) - 0.12
  stick = np.maximum(np.abs(x - 0.35 * cx * y) - 0.035, -y)
  mesh = 0.2 + 0.3 * np.exp(-(((x + 0.04) ** 2 + (y + 0.05) ** 2) / 0.07**2))
  for colour, distance in ((0.18 + 0 * x, stick), (mesh, ball)):
    cover = np.clip(0.5 - distance * size / 2, 0, 1)[..., None]
    picture += cover * (colour[..., None] - picture)
