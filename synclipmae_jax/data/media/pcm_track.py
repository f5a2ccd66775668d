"""Re-encodes sound as PCM, for AVI, in which sound has no timestamps."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np

from synclipmae_jax.types import InputError

_MAX_DRIFT = Fraction(1, 100)  # seconds between a sound's timestamps and its samples, as in data.media.audio
_MAX_GAP = 60  # seconds; a longer jump of the timestamps is refused as damage


class PcmTrack:
  """Writes a sound track from second 0: a late begin and gaps become silence, an early begin is cut."""

  def __init__(self, stream, target, *, shift: Fraction, mux: Callable[[list[av.Packet]], None]):
    self._mux, self._shift, self._rate = mux, shift, stream.rate
    self._layout, self._channels = stream.layout, stream.channels
    self._resampler = av.AudioResampler("s16", stream.layout, stream.rate)
    self._track = target.add_stream("pcm_s16le", rate=stream.rate, layout=stream.layout)
    self._track.metadata.update(stream.metadata)
    self._position = 0  # samples written

  def __call__(self, packet: av.Packet) -> None:
    """Raises InputError if the sound jumps or changes its format, and the errors of the decoder and `mux`."""
    for frame in packet.decode():
      begin = self._position if frame.pts is None else round((frame.pts * frame.time_base + self._shift) * self._rate)
      frame.pts = None
      try:
        parts = [part.to_ndarray().reshape(-1, self._channels) for part in self._resampler.resample(frame)]
      except ValueError as error:
        raise InputError("its sound changes its sample rate or its channels") from error
      samples = np.concatenate([np.zeros((0, self._channels), np.int16), *parts])
      if abs(begin - self._position) <= _MAX_DRIFT * self._rate and self._position:
        begin = self._position
      if begin - self._position > _MAX_GAP * self._rate:
        raise InputError(f"its sound's timestamps jump by {(begin - self._position) / self._rate:.0f} s")
      while self._position < begin:
        self._write(np.zeros((min(begin - self._position, self._rate), self._channels), np.int16))
      self._write(samples[self._position - begin :])

  def _write(self, samples: np.ndarray) -> None:
    if not len(samples):
      return
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), format="s16", layout=self._layout)
    frame.sample_rate, frame.time_base, frame.pts = self._rate, Fraction(1, self._rate), self._position
    self._position += len(samples)
    self._mux(self._track.encode(frame))
