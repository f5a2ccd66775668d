"""Re-encodes a video at another frame rate and sample rate without a shift between picture and sound."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from synclipmae_jax.data.media.video import open_media, video_stream


def reencode(source, out, *, fps, rate: int):
  """Writes `source` to `out` as H.264 at `fps` (each frame shows the picture at its time) and AAC at `rate` Hz.

  Second 0 of both is the first picture of `source`; earlier sound is cut. The whole file is held in memory. Returns
  `out`.
  """
  fps = Fraction(fps)
  with open_media(source) as footage:
    pictures = list(footage.decode(video_stream(footage)))
  origin = pictures[0].pts * pictures[0].time_base
  samples, resampler, begin = [], av.AudioResampler("fltp", "mono", rate), None
  with open_media(source) as footage:
    for frame in footage.decode(audio=0):
      if begin is None:
        begin = round((frame.pts * frame.time_base - origin) * rate)
      samples += [part.to_ndarray()[0] for part in resampler.resample(frame)]
    samples += [part.to_ndarray()[0] for part in resampler.resample(None)]
  sound = np.concatenate([np.zeros(max(begin, 0), np.float32), *samples])[max(-begin, 0) :]

  with av.open(str(out), "w") as container:
    seen = container.add_stream("libx264", rate=fps, width=pictures[0].width, height=pictures[0].height)
    seen.pix_fmt, seen.options = "yuv420p", {"preset": "ultrafast", "crf": "16", "threads": "1"}
    heard = container.add_stream("aac", rate=rate, layout="mono", bit_rate=96_000)
    begins = [frame.pts * frame.time_base - origin for frame in pictures]
    index, shown = 0, 0
    while (time := index / fps) < 2 * begins[-1] - begins[-2]:
      while shown + 1 < len(pictures) and begins[shown + 1] <= time:
        shown += 1
      frame = av.VideoFrame.from_ndarray(pictures[shown].to_ndarray(format="rgb24"), format="rgb24")
      frame.pts, frame.time_base = index, 1 / fps
      container.mux(seen.encode(frame))
      index += 1
    container.mux(seen.encode())
    for first in range(0, len(sound), 1024):
      frame = av.AudioFrame.from_ndarray(sound[None, first : first + 1024], format="fltp", layout="mono")
      frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
      container.mux(heard.encode(frame))
    container.mux(heard.encode())
  return out
