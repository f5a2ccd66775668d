"""Renders frames from parameters: anti-aliased layers, painted back to front, jitted over a batch of frames on CPU."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from synclipmae_jax.data.synthtalk import geometry, phones
from synclipmae_jax.data.synthtalk.clip import SCENE, Clip
from synclipmae_jax.data.synthtalk.identity import IDENTITY, colours
from synclipmae_jax.data.synthtalk.motion import AMBIENT

_FRAMES_PER_CALL = 25  # one second


def render(clip: Clip, *, size: int) -> np.ndarray:
  """uint8 [T, size, size, 3]: the pictures of a clip. The result is bit-identical on the same machine."""
  face = dict(zip(IDENTITY, clip.face.astype(np.float32), strict=True))
  scene = dict(zip(SCENE, clip.scene.astype(np.float32), strict=True))
  palette = {part: rgb[:, None, None] for part, rgb in colours(face).items()}
  tracks = np.concatenate([clip.mouth, clip.ambient, clip.occluder], axis=1).astype(np.float32)
  padded = np.pad(tracks, [(0, -len(tracks) % _FRAMES_PER_CALL), (0, 0)], mode="edge")
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    pieces = [
      np.asarray(_render(face, palette, scene, rows, size=size))
      for rows in padded.reshape(-1, _FRAMES_PER_CALL, padded.shape[1])
    ]
  return np.ascontiguousarray(np.concatenate(pieces)[: len(tracks)].transpose(0, 2, 3, 1))


@functools.partial(jax.jit, static_argnames="size")
def _render(face, colour, scene, rows, *, size):
  grid = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (2 / size) - 1
  u, v = grid[None, :], grid[:, None]
  background = _background(u, v, scene)
  # One frame at a time, so that its planes fit into the cache. A batch of frames took twice the time.
  return jax.lax.map(lambda row: _frame(background, u, v, face, colour, scene, row), rows)


def _frame(background, u, v, face, colour, scene, row):
  """uint8 [3, S, S]: one picture, painted in the order body, hair, head, features, mouth, occluder, light."""
  names = phones.MOUTH + AMBIENT
  values = dict(zip(names, row[: len(names)], strict=True))
  mouth = {name: values[name] for name in phones.MOUTH}
  ambient = {name: values[name] for name in AMBIENT}

  x, y = geometry.to_head(u, v, scene, ambient, jnp)
  painter = _Painter(background, pixel=(u[0, 1] - u[0, 0]) / scene["zoom"])
  shade = _paint_head(painter, x, y, u, v, face, colour, scene, mouth, ambient)
  fx, fy = geometry.to_front(x, y, ambient, jnp)
  _paint_eyes(painter, fx, fy, face, colour, ambient)
  _paint_nose(painter, fx, fy, face, scene)
  _paint_mouth(painter, fx, fy, face, colour, mouth, ambient, shade)
  _paint_microphone(painter, u, v, row[-2], row[-1])

  light = 2.0 ** (scene["gain"] + ambient["light"])
  tint = _rgb(1 + scene["warmth"], 1.0, 1 - scene["warmth"])
  return jnp.round(jnp.clip(painter.image * light * tint, 0, 1) * 255).astype(jnp.uint8)


class _Painter:
  """The picture so far. `paint` blends a colour over it; `cover` converts a signed distance to coverage."""

  def __init__(self, image, pixel):
    self.image, self.pixel = image, pixel

  def cover(self, distance, softness=0.0):
    """Coverage 0..1 of each pixel by the inside (negative values) of a distance field in head units."""
    return jnp.clip(0.5 - distance / (self.pixel + softness), 0, 1)

  def paint(self, colour, alpha):
    self.image = self.image + alpha * (colour - self.image)


def _ellipse(x, y, rx, ry):
  """Signed distance to an ellipse at the origin, exact at the boundary to first order."""
  near = _length(x / rx, y / ry)
  slope = _length(x / rx**2, y / ry**2)
  return near * (near - 1) / slope


def _length(x, y):
  return jnp.sqrt(x**2 + y**2 + 1e-9)  # jnp.hypot also avoids overflow, but costs several times as much


def _blob(x, y, radius):
  return jnp.exp(-(x**2 + y**2) / radius**2)


def _rgb(red, green, blue):
  return jnp.array([red, green, blue], jnp.float32)[:, None, None]


def _background(u, v, scene):
  top = _rgb(scene["top_r"], scene["top_g"], scene["top_b"])
  low = _rgb(scene["low_r"], scene["low_g"], scene["low_b"])
  top, low = (0.4 * colour + 0.6 * colour.mean(axis=0) for colour in (top, low))  # less saturated, as rooms are
  wave = scene["pitch"] * (u * jnp.cos(scene["slant"]) + v * jnp.sin(scene["slant"])) + scene["phase"]
  return top + (low - top) * (0.5 + 0.5 * v) + scene["grating"] * jnp.sin(wave)


def _paint_head(painter, x, y, u, v, face, colour, scene, mouth, ambient):
  """Paints body, hair, ears, skin, fringe and beard. Returns the shading of the skin."""
  skin, hair = colour["skin"], colour["hair"]
  half_width, half_height = geometry.jaw_line(y, face, mouth, jnp)
  nx, ny = x / half_width, y / half_height
  nz = jnp.sqrt(jnp.clip(1 - nx**2 - ny**2, 0, 1))
  towards = (nx * scene["light_x"] + ny * scene["light_y"] + nz) / jnp.sqrt(
    scene["light_x"] ** 2 + scene["light_y"] ** 2 + 1
  )
  shade = 1 + scene["contrast"] * (1.15 * jnp.maximum(towards, 0) - 0.85)

  # The hair at the crown turns with the back of the head. The body follows the head only partly.
  hx, hy = geometry.to_front(x, y, ambient, jnp, depth=-0.12)
  crown = _ellipse(hx, hy + 0.1, face["face_width"] + 0.13, face["face_height"] + 0.08)
  fall = jnp.maximum(jnp.abs(hx) - face["face_width"] - 0.1, jnp.maximum(hy - 1.2 * face["hair_length"], -hy - 0.1))
  gloss = 0.72 + 0.25 * scene["light_x"] * hx + 0.3 * _blob(hx - 0.35 * scene["light_x"], hy + 0.75, 0.45)
  painter.paint(hair * gloss * (1 - 0.25 * jnp.clip(hy + 0.2, 0, 1)), painter.cover(jnp.minimum(crown, fall), 0.03))
  bx = (u - scene["x"] - 0.4 * ambient["x"]) / scene["zoom"]
  by = (v - scene["y"]) / scene["zoom"]
  painter.paint(skin * 0.68 * shade, painter.cover(jnp.maximum(jnp.abs(bx) - 0.4 - 0.1 * by**2, -by), 0.02))
  shoulders = _ellipse(bx, by - 2.15, 1.35, 0.95)
  painter.paint(colour["cloth"] * (1 - 0.25 * bx * scene["light_x"]), painter.cover(shoulders, 0.02))
  ears = _ellipse(jnp.abs(hx) - face["face_width"] * 0.99, hy - 0.02, 0.09, 0.17)
  painter.paint(skin * 0.82 * shade, painter.cover(ears))

  head = _ellipse(x, y, half_width, half_height)
  inside = painter.cover(head)
  painter.paint(skin * shade, inside)
  fx, fy = geometry.to_front(x, y, ambient, jnp)
  cheeks = _blob(jnp.abs(fx) - 0.42, fy - 0.22, 0.2)
  painter.paint(skin * _rgb(1.0, 0.72, 0.68) * shade, 0.35 * face["blush"] * cheeks * inside)
  stubble = jnp.clip((fy - 0.12 - 0.25 * jnp.cos(2.2 * fx) + 0.35 * fx**2) / 0.2, 0, 1)
  painter.paint(hair * shade, 0.8 * jnp.clip(face["beard"], 0, 1) * stubble * inside)
  line = face["hairline"] + 0.35 * fx**2 - 0.05 * fx
  painter.paint(skin * 0.55, 0.5 * painter.cover(fy - line - 0.05, 0.12) * inside)  # the shadow of the fringe
  painter.paint(hair * gloss * 1.12, painter.cover(jnp.maximum(fy - line, crown), 0.04))
  return shade


def _paint_eyes(painter, fx, fy, face, colour, ambient):
  for side, blink in ((-1, ambient["blink_left"]), (1, ambient["blink_right"])):
    x, y = fx - side * face["eye_gap"], fy - face["eye_y"]
    size, height = face["eye_size"], geometry.eye_height(face, ambient, blink, jnp)
    painter.paint(colour["skin"] * 0.62, 0.35 * _blob(x, (y + 0.04) * 1.3, 1.35 * size))  # the socket
    opening = _ellipse(x, y, size, height)
    lens = painter.cover(opening)
    painter.paint(_rgb(0.94, 0.94, 0.93), lens)
    gx, gy = x - 0.4 * size * ambient["gaze_x"], y - 0.3 * size * ambient["gaze_y"]
    away = _length(gx, gy)
    painter.paint(colour["iris"], lens * painter.cover(away - 0.56 * size))
    painter.paint(_rgb(0.04, 0.04, 0.05), lens * painter.cover(away - 0.27 * size))
    painter.paint(_rgb(1.0, 1.0, 1.0), lens * painter.cover(_length(gx + 0.2 * size, gy + 0.2 * size) - 0.11 * size))
    lash = jnp.maximum(jnp.abs(opening) - 0.016, y - 0.3 * height)
    painter.paint(_rgb(0.10, 0.07, 0.06), 0.9 * painter.cover(lash, 0.01))
    bow = fy - geometry.brow(side * fx, face, ambient)
    band = jnp.maximum(jnp.abs(bow) - face["brow_thickness"] * (1 - 12 * x**2), jnp.abs(x) - 0.17)
    painter.paint(colour["hair"] * 0.7, 0.9 * painter.cover(band, 0.015))
    frame = jnp.abs(_length(x, 1.1 * y) - 0.235) - 0.014
    frame = jnp.minimum(frame, jnp.maximum(jnp.abs(y + 0.03) - 0.013, jnp.abs(fx) - face["eye_gap"] + 0.235))
    painter.paint(_rgb(0.08, 0.08, 0.10), (face["glasses"] > 0) * painter.cover(frame))


def _paint_nose(painter, fx, fy, face, scene):
  tip = face["eye_y"] + face["nose_length"]
  width = face["nose_width"]
  along = jnp.clip((fy - face["eye_y"]) / face["nose_length"], 0, 1)
  ridge = jnp.exp(-(((fx + jnp.sign(scene["light_x"]) * width * (0.35 + 0.5 * along)) / 0.045) ** 2))
  flank = ridge * along * painter.cover(fy - tip, 0.05) * painter.cover(face["eye_y"] - fy, 0.2)
  painter.paint(painter.image * 0.72, 0.75 * flank)
  painter.paint(painter.image * 0.62, 0.8 * painter.cover(_ellipse(fx, fy - tip - 0.035, width * 1.15, 0.035), 0.05))
  nostrils = _ellipse(jnp.abs(fx) - 0.5 * width, fy - tip - 0.03, 0.028, 0.018)
  painter.paint(painter.image * 0.35, 0.8 * painter.cover(nostrils, 0.015))
  painter.paint(jnp.minimum(painter.image * 1.25 + 0.05, 1), 0.7 * _blob(fx, fy - tip + 0.04, 0.055))


def _paint_mouth(painter, fx, fy, face, colour, mouth, ambient, shade):
  """Paints the lips around a dark cavity with upper teeth, tongue and lower teeth."""
  curve = geometry.lips(fx, face, mouth, ambient, jnp)
  ends = jnp.abs(fx) - curve.half_width
  skin_shadow = _blob(fx * 0.8, fy - curve.outer_lower - 0.05, 0.11)
  painter.paint(painter.image * 0.75, 0.6 * skin_shadow)  # under the lower lip

  upper = jnp.maximum(jnp.maximum(curve.outer_upper - fy, fy - curve.inner_upper - 0.01), ends)
  lower = jnp.maximum(jnp.maximum(curve.inner_lower - fy - 0.01, fy - curve.outer_lower), ends)
  cavity = painter.cover(jnp.maximum(jnp.maximum(curve.inner_upper - fy, fy - curve.inner_lower), ends))
  painter.paint(_rgb(0.13, 0.03, 0.04), cavity)

  teeth = colour["teeth"] * (1 - 0.5 * jnp.clip(jnp.abs(fx) / curve.half_width, 0, 1) ** 2)
  gaps = 1 - 0.18 * jnp.exp(-(((fx - 0.075 * jnp.round(fx / 0.075)) / 0.008) ** 2))
  edge = curve.centre - 0.1 * jnp.maximum(mouth["opening"], 0) + 0.035 + 0.045 * mouth["teeth"]
  painter.paint(teeth * gaps, cavity * painter.cover(fy - edge, 0.005))
  floor = curve.centre + 0.27 * jnp.maximum(mouth["opening"], 0)
  rise = 0.02 + 0.27 * mouth["tongue"] * jnp.clip(mouth["opening"], 0.15, 0.6)
  tongue = _ellipse(fx, fy - floor, 0.62 * curve.half_width, rise)
  painter.paint(_rgb(0.72, 0.30, 0.32) * (0.7 + 0.3 * shade), cavity * painter.cover(tongue, 0.02))
  bottom = curve.inner_lower - 0.015 - 0.05 * mouth["teeth"]
  painter.paint(teeth * gaps * 0.86, cavity * painter.cover(bottom - fy, 0.005) * jnp.clip(mouth["teeth"] * 2, 0, 1))

  painter.paint(colour["lips"] * 0.88 * shade, painter.cover(upper, 0.006))
  glow = 1 + 0.22 * _blob(fx * 0.7, fy - 0.5 * (curve.inner_lower + curve.outer_lower), 0.06)
  painter.paint(colour["lips"] * glow * shade, painter.cover(lower, 0.006))
  bite = jnp.maximum(jnp.abs(fx) - 0.55 * curve.half_width, jnp.abs(fy - curve.inner_lower) - 0.022)
  painter.paint(teeth * gaps, jnp.clip(mouth["tuck"], 0, 1) * painter.cover(bite, 0.01))  # on the lower lip
  middle = 0.5 * (curve.inner_upper + curve.inner_lower)
  seam = jnp.maximum(jnp.abs(fy - middle) - 0.008, ends - 0.05 * curve.half_width)
  shut = jnp.clip(1 - 8 * mouth["opening"], 0, 1) * (1 - jnp.clip(mouth["tuck"], 0, 1))
  painter.paint(colour["lips"] * 0.35, 0.85 * shut * painter.cover(seam, 0.008))


def _paint_microphone(painter, u, v, cx, cy):
  """Paints the occluder: a ball on a stick from below."""
  x, y = u - cx, v - cy
  stick = jnp.maximum(jnp.abs(x - 0.35 * cx * y) - 0.035, -y)
  painter.paint(_rgb(0.18, 0.18, 0.2), painter.cover(stick))
  mesh = 0.2 + 0.3 * _blob(x + 0.04, y + 0.05, 0.07)
  painter.paint(mesh * _rgb(1, 1, 1), painter.cover(_length(x, y) - 0.12))
