"""True pictures of swapped factors: a person with the mouth of another and the pose of a third, rendered as one clip.

The joint clip is framed as any clip is, by the boxes of its own face. People are flat faces of the split `test`,
in front of their own backgrounds, without microphones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

from synclipmae_jax.data.clips import crop_boxes
from synclipmae_jax.data.faces.track import FaceTrack, crop_path
from synclipmae_jax.data.media.video import MediaInfo, Scaler
from synclipmae_jax.data.synthtalk import geometry
from synclipmae_jax.data.synthtalk.clip import Clip, make_clip
from synclipmae_jax.data.synthtalk.corpus import flat_landmarks
from synclipmae_jax.data.synthtalk.render import render
from synclipmae_jax.types import FPS, SAMPLE_RATE

SIZE = 160  # pixels of a picture before the face is cut out
SECONDS = 4.0


class Shot(NamedTuple):
  """n pictures of one person."""

  frames: np.ndarray  # uint8 [n, S, S, 3]
  face_box: np.ndarray  # float32 [n, 4] fractions of the picture
  mouth_box: np.ndarray  # float32 [n, 4]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swap:
  """Three people at the same moments of their clips, and the first with what is swapped."""

  identity_of: Shot
  mouth_of: Shot
  pose_of: Shot
  true: Mapping[str, Shot]  # "mouth", "ambient", "both" -> the first person with it


def render_swaps(count: int, *, frames: int, image_size: int, seed: int) -> Iterator[Swap]:
  """`count` swaps of `frames` moments each; the people of number i are i, i + 1 and i + 2 of the split."""
  for number in range(count):
    first, second, third = (_test_clip(index, seed) for index in (2 * number, 2 * number + 3, 2 * number + 4))
    joint = {
      "mouth": dataclasses.replace(first, mouth=second.mouth),
      "ambient": dataclasses.replace(first, ambient=third.ambient),
      "both": dataclasses.replace(first, mouth=second.mouth, ambient=third.ambient),
    }
    shot = lambda clip: _shot(clip, frames=frames, image_size=image_size)
    yield Swap(
      identity_of=shot(first),
      mouth_of=shot(second),
      pose_of=shot(third),
      true={name: shot(clip) for name, clip in joint.items()},
    )


def _test_clip(index: int, seed: int) -> Clip:
  clip = make_clip(index, seed=seed, split="test", seconds=SECONDS)
  return dataclasses.replace(clip, occluder=np.tile([0.0, 3.0], (clip.frames, 1)))


def _shot(clip: Clip, *, frames: int, image_size: int) -> Shot:
  """Evenly spread moments of a clip, cut out as `data.clips` does."""
  points = flat_landmarks(clip, SIZE)
  track = FaceTrack(
    box=geometry.face_boxes(points) / SIZE,
    track=np.zeros(clip.frames, int),
    confidence=np.ones(clip.frames, np.float32),
    landmarks=points / SIZE,
    mouth=tuple(geometry.MOUTH_LANDMARKS),
  )
  rows = np.linspace(0, clip.frames - 1, frames).round().astype(int)
  crop = crop_path(track.box * SIZE, width=SIZE, height=SIZE).round()[rows]
  cut = {name: getattr(clip, name)[rows] for name in ("mouth", "ambient", "occluder")}
  scaler, images = Scaler(), []
  for picture, (x, y, side) in zip(render(dataclasses.replace(clip, **cut), size=SIZE), crop.astype(int), strict=True):
    square = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[y : y + side, x : x + side]), format="rgb24")
    images.append(scaler(square, width=image_size, height=image_size, pixels="rgb24").to_ndarray())
  info = MediaInfo(
    width=SIZE, height=SIZE, fps=FPS, sample_rate=SAMPLE_RATE, channels=1, origin=Fraction(0), end=0.0
  )  # fmt: skip
  boxes = crop_boxes(track[rows], 0, frames, crop, info)
  return Shot(frames=np.stack(images), face_box=boxes["face_box"], mouth_box=boxes["mouth_box"])
