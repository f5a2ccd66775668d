"""Reads any sound track as 16 kHz mono on the clock of the pictures; encodes and decodes the FLAC of clips.

Sample n belongs to second n / 16000 of the clock of `data.media.video` (second 0 is the first picture). Each run of
packets without a gap is resampled in one piece and placed at the time that its timestamp gives. A new run begins where
the timestamps have a gap or differ from the sample count by more than 10 ms. Samples that no packet covers are zero.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from synclipmae_jax.data.media.clock import read_clock
from synclipmae_jax.data.media.containers import check_length
from synclipmae_jax.data.media.sound_track import MIN_RATE, SoundTrack, choose_sound
from synclipmae_jax.data.media.watchdog import watched
from synclipmae_jax.types import SAMPLE_RATE, InputError

_MAX_DRIFT = Fraction(1, 100)  # seconds between a packet's timestamp and the sample count before it
_MAX_DAMAGE = Fraction(1, 2)  # seconds of damaged sound in one place, which are replaced by silence ...
_MAX_DAMAGED_SHARE = 0.05  # ... and share of the length; a file with more is refused


def read_chunks(
  path: str | os.PathLike,
  *,
  origin: Fraction,
  sound: SoundTrack | None = None,
  notes: list[str] | None = None,
  rate: int = SAMPLE_RATE,
  layout: str = "mono",
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (first sample, float32 [n] in [-1, 1]) in order: 16 kHz mono, sample 0 at second `origin` of the container.

  With another `layout` than mono the samples are [channels, n]. `sound` is a result of `choose_sound`, which is called
  if it is None. Sound that cannot be decoded is left out; a note on it is appended to `notes`. Raises InputError if
  there is no sound, if it ends early, or if it cannot be decoded.
  """
  sound = sound or choose_sound(path)
  clock = read_clock(path)
  with clock.open(path) as container:
    stream = container.streams[sound.index]
    position = 0  # of the next sample

    def lay(frames) -> Iterator[tuple[int, np.ndarray]]:
      nonlocal position
      for frame in frames:
        samples = frame.to_ndarray()
        yield position, samples[sound.channel or 0] if layout == "mono" else samples
        position += samples.shape[1]

    resampler, run_format, run_end = None, None, Fraction(0)  # the end of the run in seconds of the container
    failed, damage = False, []
    for packet in clock.packets(container, stream):
      try:
        with watched():
          frames = packet.decode()
      except av.error.InvalidDataError:
        failed = True
        continue
      for frame in frames:
        placed = clock.placed(stream, frame.pts, round(frame.samples / (frame.sample_rate * frame.time_base)))
        if placed is None and frame.pts is not None:  # an edit list hides it
          continue
        begin = run_end if placed is None else placed * frame.time_base
        frame_format = (frame.sample_rate, frame.layout.name, frame.format.name)
        if failed and resampler is not None and begin > run_end:
          damage.append((run_end - origin, begin - run_end))
          if damage[-1][1] > _MAX_DAMAGE:
            at, lasts = map(float, damage[-1])
            raise InputError(f"it is damaged: its sound is broken from {at:.1f} s to {at + lasts:.1f} s")
        failed = False
        if frame.sample_rate < MIN_RATE:
          raise InputError(f"its sound has {frame.sample_rate} samples a second, too few for speech")
        if frame_format != run_format or abs(begin - run_end) > _MAX_DRIFT:
          if resampler is not None:
            yield from lay(resampler.resample(None))
          apart = layout == "mono" and sound.channel is not None and frame.layout.nb_channels > sound.channel
          resampler = av.AudioResampler("fltp", frame.layout if apart else layout, rate)
          run_format, run_end = frame_format, begin
          position = round((begin - origin) * rate)
        run_end += Fraction(frame.samples, frame.sample_rate)
        frame.pts = None  # the resampler only counts samples; times are computed here
        yield from lay(resampler.resample(frame))
    if resampler is None:
      raise InputError("its sound cannot be decoded" if failed else "its sound track is empty")
    yield from lay(resampler.resample(None))
    check_length("sound", end=float(run_end), declared=clock.declared_end(stream))
    lost = float(sum(lasts for _, lasts in damage))
    if lost > _MAX_DAMAGED_SHARE * float(run_end - origin):
      raise InputError(f"it is damaged: {lost:.1f} s of its sound are broken, in {len(damage)} places")
    if damage and notes is not None:
      places = ", ".join(f"{float(at):.2f}" for at, _ in damage[:5]) + (", …" if len(damage) > 5 else "")
      notes.append(f"its sound is damaged at {places} s, for {1000 * lost:.0f} ms in all: it is silent there")


class Track:
  """Reads stretches of a file's sound in ascending order of their begin; keeps only the current stretch in memory."""

  def __init__(
    self, path: str | os.PathLike, *, origin: Fraction, sound: SoundTrack | None = None, notes: list[str] | None = None
  ):
    self._chunks = read_chunks(path, origin=origin, sound=sound, notes=notes)
    self._held: list[tuple[int, np.ndarray]] = []

  def read(self, first: int, last: int) -> np.ndarray:
    """Samples [first, last) as float32; zero if the file has no sound there."""
    self._held = [chunk for chunk in self._held if _end(chunk) > first]
    while not self._held or _end(self._held[-1]) < last:
      if (chunk := next(self._chunks, None)) is None:
        break
      if _end(chunk) > first:
        self._held.append(chunk)
    out = np.zeros(last - first, np.float32)
    for start, samples in self._held:
      low, high = max(first, start), min(last, start + len(samples))
      if low < high:
        out[low - first : high - first] = samples[low - start : high - start]
    return out


def _end(chunk: tuple[int, np.ndarray]) -> int:
  return chunk[0] + len(chunk[1])


def encode_flac(waveform: np.ndarray) -> bytes:
  """FLAC, 16 bit, of float [n] at 16 kHz, clipped to [-1, 1]."""
  samples = np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)
  out = io.BytesIO()
  with av.open(out, "w", format="flac") as container:
    stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono", format="s16")
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = SAMPLE_RATE, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return out.getvalue()


def decode_flac(flac: bytes) -> np.ndarray:
  """float32 [n] in [-1, 1] of 16 kHz mono FLAC, bit-exact with the rounded input of `encode_flac`."""
  with av.open(io.BytesIO(flac), format="flac") as container:
    # Not `to_ndarray`, which took a fifth of the time: 6 s have 80 frames.
    frames = [np.frombuffer(frame.planes[0], np.int16, frame.samples) for frame in container.decode(audio=0)]
  return np.concatenate(frames).astype(np.float32) / 32768.0
