"""A copy of a video with what was read burnt into it: 25 frames/s, its own size, its sound as 16 kHz mono."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from synclipmae_jax.data.media import audio, video
from synclipmae_jax.lipread.reader import Reading
from synclipmae_jax.lipread.subtitles import cues, spoken
from synclipmae_jax.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, InputError

_LINE = 0.055  # height of a line of text / height of the picture
_CERTAIN, _DOUBTFUL = (255, 255, 255), (255, 190, 60)  # colours: of what is read without and with doubt
_EDGE = 2  # pixels of the black edge of the letters


def write_preview(
  source: str | os.PathLike,
  out: Path,
  readings: Sequence[Reading],
  boxes: Sequence[np.ndarray],
  *,
  progress: Callable[[float], None] | None = None,
) -> None:
  """Writes an .mp4. Text that is doubtful is yellow; of several faces each has its number.

  `boxes`: of every face, float [T, 4] fractions of the picture, nan where it is not seen. `progress` is called with the
  second that is reached. Raises InputError.
  """
  several = len(boxes) > 1
  shown = [
    (line[0].start, line[-1].end, spoken(reading, line, several=several), bool(reading.doubts))
    for reading in readings
    for line in cues([reading])
  ]
  info, sound = video.probe(source, silent=True), None
  with contextlib.suppress(InputError):  # a video without sound
    heard = video.probe(source)
    sound = audio.Track(source, origin=heard.origin, sound=heard.sound)
  width, height = info.width - info.width % 2, info.height - info.height % 2
  size = max(12, round(_LINE * height))
  with av.open(os.fspath(out), "w", format="mp4") as container:
    picture = container.add_stream("libx264", rate=FPS, width=width, height=height, pix_fmt="yuv420p")
    picture.options = {"crf": "20", "preset": "veryfast"}
    voice = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if sound is not None else None
    for frame in video.read_frames(source):
      now = frame.index / FPS
      lines = [(text, doubtful) for start, end, text, doubtful in shown if start <= now < end]
      image = Image.fromarray(np.ascontiguousarray(frame.image[:height, :width]))
      _draw(image, lines, size)
      if several:
        _number(image, [box[frame.index] for box in boxes if frame.index < len(box)], size)
      encoded = av.VideoFrame.from_image(image)
      encoded.pts, encoded.time_base = frame.index, Fraction(1, FPS)
      container.mux(picture.encode(encoded))
      if voice is not None and sound is not None:
        samples = sound.read(frame.index * SAMPLES_PER_FRAME, (frame.index + 1) * SAMPLES_PER_FRAME)
        part = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        part.sample_rate, part.pts, part.time_base = SAMPLE_RATE, frame.index * SAMPLES_PER_FRAME, _TICK
        container.mux(voice.encode(part))
      if progress is not None and frame.index % FPS == 0:
        progress(now)
    container.mux(picture.encode(None))
    if voice is not None:
      container.mux(voice.encode(None))


_TICK = Fraction(1, SAMPLE_RATE)


def _draw(image: Image.Image, lines: Sequence[tuple[str, bool]], size: int) -> None:
  """Lines at the bottom, the last one lowest, each in the middle; a line that is too long is made smaller."""
  pen, bottom = ImageDraw.Draw(image), image.height * 0.97
  for text, doubtful in reversed(lines):
    fitting = size
    if (wide := pen.textlength(text, font=ImageFont.load_default(size=size))) > 0.96 * image.width:
      fitting = max(8, int(size * 0.96 * image.width / wide))
    colour = _DOUBTFUL if doubtful else _CERTAIN
    _text(pen, (image.width / 2, bottom), text, colour, fitting)
    bottom -= 1.2 * fitting


def _number(image: Image.Image, boxes: Sequence[np.ndarray], size: int) -> None:
  """A number above every face that is seen."""
  pen = ImageDraw.Draw(image)
  for number, box in enumerate(boxes, start=1):
    if np.isfinite(box).all():
      place = ((box[0] + box[2]) / 2 * image.width, max(box[1] * image.height, size))
      _text(pen, place, str(number), _CERTAIN, size)


def _text(
  pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: tuple[int, int, int], size: int
) -> None:
  """Letters with a black edge; `place` is the middle of their lower end."""
  font = ImageFont.load_default(size=size)
  pen.text(place, text, fill=colour, font=font, anchor="md", stroke_width=_EDGE, stroke_fill=(0, 0, 0))
