from __future__ import annotations

import numpy as np
from skimage.data import astronaut
from skimage.transform import resize

from synclipmae_jax.data.media.scenes import SceneCuts
from synclipmae_jax.data.media.video import Frame


def frames(images):
  return (Frame(index, index, image) for index, image in enumerate(images))


def test_cuts_are_found_and_motion_and_light_are_not_cuts():
  face = (resize(astronaut(), (256, 256), anti_aliasing=True) * 255).astype(np.uint8)
  other = np.ascontiguousarray(face[::-1, :, ::-1])
  moving = [np.roll(face, 3 * t, axis=1) for t in range(20)]
  lamp = [(face * gain).astype(np.uint8) for gain in 1 - 0.3 * np.sin(np.arange(20) / 2) ** 2]
  scenes = SceneCuts()
  assert len(list(scenes.watch(frames(moving + [other] * 20 + lamp)))) == 60
  assert scenes.cuts == [20, 40]
  still = SceneCuts()
  list(still.watch(frames(moving + moving[::-1])))
  assert still.cuts == []
