"""A z-buffer: textured triangles with light at their corners, compiled by numba. About 3 ms for 10,000 triangles."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numba
import numpy as np

FAR = np.float32(3e38)


def _compiled(function: Callable) -> Callable:
  """Compiles the function itself: a hook on imports, as that of the tests, may have wrapped it."""
  return numba.njit(cache=True, nogil=True)(inspect.unwrap(function))


@_compiled
def normals(points, triangles):
  """float32 [V, 3]: the unit normals of the vertices of a mesh, points [V, 3], triangles [F, 3]."""
  found = np.zeros_like(points)
  for f in range(len(triangles)):
    a, b, c = triangles[f]
    ux, uy, uz = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
    vx, vy, vz = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
    nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    for k in (a, b, c):
      found[k, 0] += nx
      found[k, 1] += ny
      found[k, 2] += nz
  for k in range(len(found)):
    length = np.sqrt(found[k, 0] ** 2 + found[k, 1] ** 2 + found[k, 2] ** 2) + np.float32(1e-12)
    for j in range(3):
      found[k, j] /= length
  return found


@_compiled
def draw(points, triangles, coordinates, light, texture, image, depth):
  """Draws triangles whose corners are counter-clockwise as seen in the picture, where y is downwards.

  Args:
    points: float32 [V, 3] x, y in pixels (integers are the centres of pixels) and the distance.
    triangles: [F, 3].
    coordinates: float32 [V, 2] column and row in the texture.
    light: float32 [V, 4] the factor of the texture in red, green and blue, and what is added to all three (gloss).
    texture: float32 [H, W, 4] red, green, blue and opacity. Pixels less than half opaque are not drawn.
    image: float32 [S, S, 3], changed in place.
    depth: float32 [S, S] distance of what has been drawn, `FAR` where nothing has; changed in place.
  """
  height, width = depth.shape
  rows, columns = texture.shape[:2]
  for f in range(len(triangles)):
    a, c, b = triangles[f]
    ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    if area <= 1e-6:
      continue
    x0, x1 = max(int(np.ceil(min(ax, bx, cx))), 0), min(int(np.floor(max(ax, bx, cx))), width - 1)
    y0, y1 = max(int(np.ceil(min(ay, by, cy))), 0), min(int(np.floor(max(ay, by, cy))), height - 1)
    for y in range(y0, y1 + 1):
      for x in range(x0, x1 + 1):
        wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
        wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
        wc = 1 - wa - wb
        if wa < 0 or wb < 0 or wc < 0:
          continue
        far = wa * points[a, 2] + wb * points[b, 2] + wc * points[c, 2]
        if far >= depth[y, x]:
          continue
        u = wa * coordinates[a, 0] + wb * coordinates[b, 0] + wc * coordinates[c, 0]
        v = wa * coordinates[a, 1] + wb * coordinates[b, 1] + wc * coordinates[c, 1]
        texel = texture[min(max(int(v), 0), rows - 1), min(max(int(u), 0), columns - 1)]
        if texel[3] < 0.5:
          continue
        depth[y, x] = far
        gloss = wa * light[a, 3] + wb * light[b, 3] + wc * light[c, 3]
        for k in range(3):
          image[y, x, k] = texel[k] * (wa * light[a, k] + wb * light[b, k] + wc * light[c, k]) + gloss


@_compiled
def draw_depth(points, triangles, depth):
  """Draws the distance only: what `draw` does to `depth`, without a texture and from both sides."""
  height, width = depth.shape
  for f in range(len(triangles)):
    a, b, c = triangles[f]
    ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    if abs(area) <= 1e-6:
      continue
    x0, x1 = max(int(np.ceil(min(ax, bx, cx))), 0), min(int(np.floor(max(ax, bx, cx))), width - 1)
    y0, y1 = max(int(np.ceil(min(ay, by, cy))), 0), min(int(np.floor(max(ay, by, cy))), height - 1)
    for y in range(y0, y1 + 1):
      for x in range(x0, x1 + 1):
        wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
        wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
        wc = 1 - wa - wb
        if wa >= 0 and wb >= 0 and wc >= 0:
          far = wa * points[a, 2] + wb * points[b, 2] + wc * points[c, 2]
          if far < depth[y, x]:
            depth[y, x] = far
