"""Small videos for the tests, made by PyAV; every picture carries its number."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

BITS = 16


def numbered(number: int, *, size: int = 64) -> np.ndarray:
  """A picture that encodes its number in BITS black and white squares, which every codec keeps."""
  bits = (number >> np.arange(BITS)) & 1
  squares = np.where(bits.reshape(4, 4), 220, 35).astype(np.uint8)
  return np.repeat(np.kron(squares, np.ones((size // 4, size // 4), np.uint8))[..., None], 3, axis=2)


def number_of(image: np.ndarray) -> int:
  size = image.shape[0] // 4
  squares = image[..., 1].reshape(4, size, 4, size).mean((1, 3))
  return int(((squares > 128).reshape(-1) << np.arange(BITS)).sum())


def clicks(seconds: float, times, *, rate: int = 16000, noise: float = 0.01) -> np.ndarray:
  """float32 [n]: faint noise with one loud sample-long click at each of `times`."""
  sound = np.random.default_rng(0).normal(0, noise, round(seconds * rate)).astype(np.float32)
  for time in times:
    sound[round(time * rate)] = 0.9
  return sound


def write_video(
  path, images, *, fps=25, times=None, sound=None, rate=16000, layout="mono", codec="libx264", sound_codec="aac",
  time_base=None, sound_times=None, options=None,
):  # fmt: skip
  """Writes `images` at `fps` (or at `times`, seconds) and float `sound` [n] at `rate`, beginning at second 0.

  `sound_times`: (second, sound) stretches instead of `sound`, each laid down at its own time.
  """
  fps = Fraction(fps).limit_denominator(100_000)
  time_base = time_base or Fraction(1, 90_000)
  with av.open(str(path), "w", options=options or {}) as container:
    picture = None
    for index, image in enumerate(images):
      if picture is None:
        picture = container.add_stream(codec, rate=fps)
        picture.width, picture.height = image.shape[1], image.shape[0]
        picture.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        picture.codec_context.time_base = time_base
        if codec == "libx264":
          picture.options = {"preset": "ultrafast", "crf": "12", "threads": "1"}
        stretches = sound_times or ([(0, sound)] if sound is not None else [])
        if stretches:
          hearing = container.add_stream(sound_codec, rate=rate, layout=layout)
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
      second = times[index] if times is not None else Fraction(index) / fps
      frame.pts, frame.time_base = round(second / time_base), time_base
      container.mux(picture.encode(frame))
    container.mux(picture.encode())
    for second, stretch in stretches:
      channels = 2 if layout == "stereo" else 1
      for first in range(0, len(stretch), 1024):
        part = np.repeat(stretch[None, first : first + 1024].astype(np.float32), channels, 0)
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = round(second * rate) + first
        container.mux(hearing.encode(frame))
    if stretches:
      container.mux(hearing.encode())
  return path
