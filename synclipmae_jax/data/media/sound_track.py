"""Selects the sound of a file: the track with speech, and the mix of its channels unless they cancel each other."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Sequence

import av
import numpy as np

from synclipmae_jax.data.media.clock import read_clock
from synclipmae_jax.data.media.containers import open_media
from synclipmae_jax.data.media.speech import speech_score
from synclipmae_jax.data.media.watchdog import watched
from synclipmae_jax.types import SAMPLE_RATE, InputError

MIN_RATE = 2000  # samples a second; at 1, which a header may declare, a frame would last minutes
_LISTEN = 30  # seconds of sound without silence by which a track is judged ...
_LISTEN_AT_MOST = 300  # ... within this number of seconds
_SILENCE = 1e-3  # of full scale: a block below it is not counted
_CANCELS = 0.02  # share of the power of the loudest channel below which the channels cancel each other
_AS_GOOD = 0.5  # share of the best score that the default track of players needs


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundTrack:
  """The sound that is read from a file. All readers of the file use the same."""

  index: int  # of the stream in its container
  channel: int | None = None  # None: the mix of all channels
  notes: tuple[str, ...] = ()  # what the user must know: tracks that are left out, and other tracks


def choose_sound(path: str | os.PathLike, number: int | None = None) -> SoundTrack:
  """The sound track `number`, counted from 1; if None, the track with speech.

  Of several tracks with speech it is the default of players. Raises InputError if there is no track, no track of that
  number, or none that can be decoded. The results for the last few files are cached by path, size and time of change.
  """
  try:
    stat = os.stat(path)
  except OSError:
    with open_media(path):  # raises the reason
      raise InputError("the file is missing") from None
  state = (stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_dev)
  return _choose_sound(os.path.abspath(path), number, state)


@functools.lru_cache(maxsize=4)
def _choose_sound(path: str, number: int | None, state: tuple[int, ...]) -> SoundTrack:
  with open_media(path) as container:  # a stream must not be used after its container is closed
    streams = list(container.streams.audio)
    indices = [stream.index for stream in streams]
    names = {stream.index: f"sound track {n} ({_codec(stream)})" for n, stream in enumerate(streams, 1)}
    channels = {stream.index: stream.channels for stream in streams if stream.codec_context is not None}
    best = container.streams.best("audio")
    default = av.stream.Disposition.default
    usual = [stream.index for stream in (best, *streams) if stream and stream.disposition & default]
    usual = [index for index in (best and best.index, *usual, *indices) if index in channels]  # players play the first
  if not indices:
    raise InputError("it has no sound track")
  if number is not None and not 1 <= number <= len(indices):
    raise InputError(f"it has {len(indices)} sound track{'s' * (len(indices) > 1)}: there is no track {number}")
  if not usual or (number is not None and indices[number - 1] not in channels):
    raise InputError("its sound is of a codec that cannot be decoded")
  notes = [f"{names[index]} is left out: its codec cannot be decoded" for index in indices if index not in channels]
  chosen, heard = usual[0] if number is None else indices[number - 1], {}
  if number is None and len(channels) > 1:
    heard = {index: _listen(path, index) for index in channels}
    most = max(channels, key=lambda index: heard[index].score)
    chosen = chosen if heard[chosen].score >= _AS_GOOD * heard[most].score else most
  if len(channels) > 1:
    others = ", ".join(names[index] for index in channels if index != chosen)
    notes.append(f"it is judged by its {names[chosen]}; there is also {others}: --audio-track chooses")
  channel = None
  if channels[chosen] != 1:
    track = heard.get(chosen) or _listen(path, chosen)
    if track.cancels:
      channel = max(range(len(track.channels)), key=lambda c: track.channels[c])
      notes.append(f"the channels of its sound cancel each other when they are mixed: channel {channel + 1} is heard")
  return SoundTrack(index=chosen, channel=channel, notes=tuple(notes))


def _codec(stream) -> str:
  """The name of the codec, and the language if known."""
  if stream.codec_context is not None:
    name = stream.codec_context.name
  else:  # the four-letter name in the container, which FFmpeg gives only in its printed description
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
      description = stream.container.dumps_format()
    finally:
      av.logging.set_level(level)
    line = re.search(rf"Stream #0:{stream.index}\b.*Audio: \w+ \((\w+) /", description)
    name = line[1] if line else "of an unknown codec"
  return f"{name}, {stream.language}" if stream.language and stream.language != "und" else name


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Heard:
  """Measures of the first half minute of a track."""

  score: float  # speech score
  cancels: bool  # the mix is silent, the channels are not
  channels: Sequence[float]  # speech score of each


def _listen(path: str, index: int) -> _Heard:
  """Raises InputError if the file cannot be read. A track that cannot be decoded counts as silent."""
  mixes, channels, seconds, loud = [], [], 0.0, 0.0
  clock = read_clock(path)
  with clock.open(path) as container:
    stream = container.streams[index]
    mix, apart = None, None
    for packet in clock.packets(container, stream):
      try:
        with watched():
          frames = packet.decode()
      except av.error.InvalidDataError:
        continue
      for frame in frames:
        if mix is None:
          mix = av.AudioResampler("fltp", "mono", SAMPLE_RATE)
          apart, form = av.AudioResampler("fltp", frame.layout, SAMPLE_RATE), _form(frame)
        if _form(frame) != form or frame.sample_rate < MIN_RATE:
          continue
        if frame.pts is not None and clock.placed(stream, frame.pts, 1) is None:  # an edit list hides it
          continue
        frame.pts = None
        parts = [part.to_ndarray() for part in apart.resample(frame)]
        mixes += [part.to_ndarray()[0] for part in mix.resample(frame)]
        channels += parts
        seconds += frame.samples / frame.sample_rate
        loud += sum(part.shape[1] for part in parts if np.abs(part).max(initial=0) > _SILENCE) / SAMPLE_RATE
      if loud > _LISTEN or seconds > _LISTEN_AT_MOST:
        break
  if not mixes or not channels:
    return _Heard(score=0.0, cancels=False, channels=(0.0,))
  mixed, each = np.concatenate(mixes), np.concatenate(channels, axis=1)
  power = np.square(each).mean(axis=1).max()
  cancels = len(each) > 1 and bool(np.square(mixed).mean() < _CANCELS * power)
  scores = [speech_score(channel) for channel in each] if cancels else []
  return _Heard(score=max(scores) if cancels else speech_score(mixed), cancels=cancels, channels=scores)


def _form(frame: av.AudioFrame) -> tuple:
  return frame.sample_rate, frame.layout.name, frame.format.name
