"""What drives the mouth: the new sound, one token for every picture, and how long the result is."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from synclipmae_jax.data.media import sound_file, video
from synclipmae_jax.data.media.exchange import Sound
from synclipmae_jax.inference.editing import to_and_fro
from synclipmae_jax.inference.embedder import Embedder
from synclipmae_jax.inference.stream import embed_file
from synclipmae_jax.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, InputError

FITS = ("pad", "trim", "loop")
_LEAST_SEEN = 0.5  # share of a driving video in which its mouth must be seen
_NEAR = 0.1  # of a frame: a picture this near to a token's time takes the token as it is


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speech:
  """A file that is to be spoken. `seconds` is its length."""

  seconds: float
  rate: int
  channels: int
  stretches: Callable[[], Iterator[np.ndarray]]  # the sound anew: float32 [channels, n]
  tokens: Callable[[float], np.ndarray]  # seconds -> float32 [T, D] at 25 frames/s, at least so long
  notes: tuple[str, ...]

  def sound(self, seconds: float) -> Sound:
    """The sound, exactly so long."""
    samples = round(seconds * self.rate)
    parts = sound_file.lasting(self.stretches(), samples, channels=self.channels)
    return Sound(rate=self.rate, channels=self.channels, stretches=parts)


def from_audio(embedder: Embedder, path: str | os.PathLike) -> Speech:
  """Speech by its audio tokens. Beyond its end there is silence. Raises InputError."""
  file = sound_file.SoundFile(path)
  heard = file.waveform()

  def tokens(seconds: float) -> np.ndarray:
    frames = max(1, int(np.ceil(seconds * FPS)) + 1)
    whole = np.zeros(SAMPLES_PER_FRAME * frames, np.float32)
    whole[: len(heard)] = heard[: len(whole)]
    return embedder.embed_sound(whole)

  return Speech(
    seconds=len(heard) / SAMPLE_RATE, rate=file.rate, channels=file.channels, stretches=file.stretches, tokens=tokens,
    notes=(),
  )  # fmt: skip


def from_video(embedder: Embedder, path: str | os.PathLike, *, faces: str, audio_track: int | None = None) -> Speech:
  """The mouth of another video by its vocal-motion tokens, with its sound.

  Where the mouth is not seen, the tokens between are interpolated; beyond its end the last is held. Raises InputError,
  also if the mouth is seen in less than half of the frames.
  """
  found = embed_file(embedder, path, faces=faces, audio_track=audio_track)
  seen = np.isfinite(found.vocal[:, 0])
  if seen.mean() < _LEAST_SEEN:
    raise InputError(f"its mouth is seen in {seen.sum()} of {len(seen)} frames only: too few to drive another")
  times = np.arange(len(seen))
  vocal = np.stack([np.interp(times, times[seen], column[seen]) for column in found.vocal.T], 1).astype(np.float32)
  notes = list(found.notes)
  if not seen.all():
    notes.append(f"its mouth is not seen in {(~seen).sum()} of {len(seen)} frames: there the motion is interpolated")
  info = video.probe(path, audio_track=audio_track)
  rate, channels = sound_file.kept_as(info.sample_rate, info.channels)

  def stretches():
    return sound_file.of_video(path, origin=Fraction(info.origin), sound=info.sound, rate=rate, channels=channels)

  def tokens(seconds: float) -> np.ndarray:
    frames = max(1, int(np.ceil(seconds * FPS)) + 1)
    return vocal[np.minimum(np.arange(frames), len(vocal) - 1)]

  return Speech(
    seconds=len(vocal) / FPS, rate=rate, channels=channels, stretches=stretches, tokens=tokens, notes=tuple(notes)
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """The m pictures of the result."""

  order: np.ndarray  # int [m]: pictures of the video
  ticks: np.ndarray  # int64 [m]: when each is shown, as `Footage.ticks`
  seconds: float  # length of the result
  note: str  # what was done to make both lengths agree; "" where they did


def schedule(ticks: np.ndarray, step: int, time_base: Fraction, *, speech: float, fit: str) -> Schedule:
  """Fits a video with pictures at `ticks` [n], the last shown for `step`, to `speech` seconds.

  `pad`: the video as it is; silence follows shorter speech, and of longer speech the end is left out. `trim`: as long
  as the shorter. `loop`: as long as the speech; a shorter video runs to and fro. Raises InputError for another fit.
  """
  if fit not in FITS:
    raise InputError(f"unknown fit {fit!r}: {', '.join(FITS)}")
  length = float((ticks[-1] - ticks[0] + step) * time_base)
  order, shown = np.arange(len(ticks)), ticks
  differ = abs(speech - length) > 1 / FPS
  note = ""
  if fit == "pad" and differ:
    note = f"silence follows the {speech:.2f} s of speech" if speech < length else (
      f"the last {speech - length:.2f} s of the speech are left out: the video is shorter (--fit loop keeps them)"
    )  # fmt: skip
  elif differ and speech < length:
    kept = max(1, int(np.searchsorted((ticks - ticks[0]) * float(time_base), speech - 1e-6)))
    order, shown = order[:kept], ticks[:kept]
    note = f"the last {len(ticks) - kept} of {len(ticks)} pictures are left out: the speech is shorter"
    length = speech
  elif differ and fit == "trim":
    note = f"the last {speech - length:.2f} s of the speech are left out: the video is shorter (--fit loop keeps them)"
  elif differ:
    count = len(ticks)
    while True:
      order = to_and_fro(len(ticks), count)
      gaps = np.abs(np.diff(ticks[order])) if len(ticks) > 1 else np.full(count - 1, step)
      shown = ticks[0] + np.concatenate([[0], np.cumsum(gaps)]).astype(np.int64)
      if float((shown[-1] - shown[0] + step) * time_base) >= speech:
        break
      count *= 2
    kept = int(np.searchsorted((shown - shown[0]) * float(time_base), speech - 1e-6))
    order, shown, length = order[:kept], shown[:kept], speech
    note = f"the video is {len(order) / len(ticks):.1f} times as long, to and fro: the speech is longer"
  return Schedule(order=order, ticks=np.asarray(shown, np.int64), seconds=length, note=note)


def at_pictures(tokens: np.ndarray, seconds: np.ndarray) -> np.ndarray:
  """float32 [m, D]: tokens at 25 frames/s, at the times of m pictures; between two tokens by a straight line."""
  place = np.clip(seconds * FPS, 0, len(tokens) - 1)
  near = np.rint(place)
  place = np.where(np.abs(place - near) < _NEAR, near, place)
  low = np.floor(place).astype(int)
  share = (place - low)[:, None].astype(np.float32)
  return (1 - share) * tokens[low] + share * tokens[np.minimum(low + 1, len(tokens) - 1)]
