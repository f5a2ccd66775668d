"""Speech for a dubbed video: the sound of any file, also of one without pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from synclipmae_jax.data.media import audio
from synclipmae_jax.data.media.containers import CONTAINERS
from synclipmae_jax.data.media.sound_track import MIN_RATE, SoundTrack
from synclipmae_jax.data.media.watchdog import watched
from synclipmae_jax.types import SAMPLE_RATE, InputError

_FORMATS = ("wav", "w64", "aiff", "caf", "flac", "mp3", "aac", "ac3", *CONTAINERS)
_RATES = (48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)  # of AAC, without the rare ones


class SoundFile:
  """The first sound of a file, from its first sample. Its `rate` and `channels` are those that it is to be kept with.

  Raises InputError if the file has no sound that can be decoded.
  """

  def __init__(self, path: str | os.PathLike):
    self._path = path
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would block
      raise InputError("it is not a regular file")
    self.rate, self.channels = kept_as(*self._form())

  def stretches(self) -> Iterator[np.ndarray]:
    """float32 [channels, n] in [-1, 1], at `rate`."""
    return self._decoded("stereo" if self.channels == 2 else "mono", self.rate)

  def waveform(self) -> np.ndarray:
    """float32 [n] in [-1, 1], 16 kHz mono. Raises InputError for silence, and if there are no samples."""
    parts = [part[0] for part in self._decoded("mono", SAMPLE_RATE)]
    heard = np.concatenate([np.zeros(0, np.float32), *parts])
    if not len(heard):
      raise InputError("it has no samples: its length is zero")
    if np.abs(heard).max() < 1e-4:
      raise InputError("it is silent")
    return heard

  def _form(self) -> tuple[int, int]:
    with self._open() as container:
      stream = container.streams.audio[0]
      return stream.rate or 0, stream.channels or 0

  def _decoded(self, layout: str, rate: int) -> Iterator[np.ndarray]:
    resampler = None
    try:
      with self._open() as container, watched():
        for frame in container.decode(container.streams.audio[0]):
          if resampler is None:
            resampler = av.AudioResampler("fltp", layout, rate)
          frame.pts = None  # stretches follow one another
          yield from (part.to_ndarray() for part in resampler.resample(frame))
        yield from (part.to_ndarray() for part in resampler.resample(None)) if resampler else ()
    except (av.error.FFmpegError, ValueError) as error:
      if isinstance(error, InputError):
        raise
      raise InputError(f"it is damaged: its sound cannot be decoded to its end ({error})") from error

  def _open(self):
    try:
      container = av.open(
        os.path.abspath(self._path), options={"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file"}
      )
    except FileNotFoundError as error:
      raise InputError("the file is missing") from error
    except (av.error.FFmpegError, OSError) as error:
      if os.path.isfile(self._path) and os.path.getsize(self._path) == 0:
        raise InputError("the file is empty (0 bytes)") from error
      raise InputError(f"it cannot be read as sound ({error.strerror})") from error
    if not container.streams.audio or container.streams.audio[0].codec_context is None:
      container.close()
      raise InputError("it has no sound that can be decoded")
    return container


def kept_as(rate: int, channels: int) -> tuple[int, int]:
  """(rate, 1 or 2 channels) with which AAC keeps a sound. Raises InputError for a rate too low for speech."""
  if rate < MIN_RATE:
    raise InputError(f"its sound has {rate} samples a second, too few for speech")
  return (rate if rate in _RATES else _RATES[0]), min(2, max(1, channels))


def of_video(
  path: str | os.PathLike, *, origin: Fraction, sound: SoundTrack, rate: int, channels: int
) -> Iterator[np.ndarray]:
  """float32 [channels, n]: the sound of a video from its first picture on, silent where it has none."""
  position = 0
  layout = "stereo" if channels == 2 else "mono"
  for first, samples in audio.read_chunks(path, origin=origin, sound=sound, rate=rate, layout=layout):
    samples = np.atleast_2d(samples)[:, max(0, position - first) :]
    first = max(first, position)
    if samples.shape[1]:
      yield np.pad(samples, ((0, 0), (first - position, 0)))
      position = first + samples.shape[1]


def lasting(stretches: Iterator[np.ndarray], samples: int, *, channels: int) -> Iterator[np.ndarray]:
  """The same sound with exactly so many `samples`: cut, or followed by silence."""
  left = samples
  for stretch in stretches:
    yield stretch[:, :left]
    left -= min(left, stretch.shape[1])
    if not left:
      return
  while left:
    block = min(left, 48_000)
    yield np.zeros((channels, block), np.float32)
    left -= block
