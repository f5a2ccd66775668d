"""Changes to small videos that imitate those of recorders, editors and broken disks."""

from __future__ import annotations

import av
import numpy as np
from footage import numbered, write_video

from synclipmae_jax.data.media import audio, video


def talk(path, *, count=75, at=(1.0,), fps=25, rate=16000, **kwargs):
  """`count` numbered pictures, and a click at each of the seconds `at`."""
  sound = bursts(count / fps, at, rate=rate)
  return write_video(path, map(numbered, range(count)), fps=fps, sound=sound, rate=rate, **kwargs)


def bursts(seconds, at, *, rate=16000):
  """float32 [n]: 10 ms of 1 kHz at each of the seconds `at`, in faint noise. Every codec keeps them."""
  sound = np.random.default_rng(0).normal(0, 0.003, round(seconds * rate)).astype(np.float32)
  wave = 0.7 * np.sin(2 * np.pi * 1000 * np.arange(rate // 100) / rate)
  for second in at:
    sound[round(second * rate) :][: len(wave)] = wave
  return sound


def read(path, *, seconds=None, audio_track=None):
  """(frames of the clock of 25 frames/s, sound from second 0 of it, notes), by the readers of the package."""
  info = video.probe(path, audio_track=audio_track)
  notes = list(info.notes)
  frames = list(video.read_frames(path, notes=notes))
  track = audio.Track(path, origin=info.origin, sound=info.sound, notes=notes)
  heard = track.read(0, round(16000 * (seconds or len(frames) / 25)))
  track.read(10**9, 10**9 + 1)  # to its end
  return frames, heard, notes


def click_times(heard):
  """Seconds at which the bursts begin."""
  loud = np.flatnonzero(np.abs(heard) > 0.3)
  return [float(loud[k]) / 16000 for k in range(len(loud)) if not k or loud[k] - loud[k - 1] > 800]


def restamp_ts(data: bytes, *, kind: str, ticks) -> bytes:
  """A transport stream whose timestamps of `kind` ("video" or "audio") are moved by `ticks(number of the PES)`."""
  mask, wanted = {"video": (0xF0, 0xE0), "audio": (0xE0, 0xC0)}[kind]
  out, number = bytearray(data), 0
  for at in range(0, len(out) - 187, 188):
    begins, adapted = out[at + 1] & 0x40, out[at + 3] & 0x20
    pes = at + 4 + (1 + out[at + 4] if adapted else 0)
    if not begins or out[pes : pes + 3] != b"\0\0\1" or out[pes + 3] & mask != wanted:
      continue
    for place in [pes + 9, pes + 14][: out[pes + 7] >> 6 and (1 if out[pes + 7] >> 6 == 2 else 2)]:
      five = out[place : place + 5]
      stamp = (five[0] >> 1 & 7) << 30 | five[1] << 22 | five[2] >> 1 << 15 | five[3] << 7 | five[4] >> 1
      stamp = (stamp + ticks(number)) % 2**33
      out[place : place + 5] = bytes([
        five[0] & 0xF1 | stamp >> 29 & 0xE, stamp >> 22 & 0xFF, stamp >> 14 & 0xFE | 1, stamp >> 7 & 0xFF,
        stamp << 1 & 0xFE | 1,
      ])  # fmt: skip
    number += 1
  return bytes(out)


def spoil_packet(path, *, number: int, kind: str = "video") -> None:
  """Overwrites the content of a packet; the container stays valid."""
  with av.open(str(path)) as container:
    packets = [packet for packet in container.demux(**{kind: 0}) if packet.size]
    content = bytes(packets[number])
  data = path.read_bytes()
  assert data.count(content) == 1
  path.write_bytes(data.replace(content, bytes(len(content))))


def tone(seconds, *, rate=16000, hz=440):
  return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def voice(seconds, *, seed=0):
  """Noise with independent modulation of its bands at syllable rates, as in speech. 16 kHz."""
  rng = np.random.default_rng(seed)
  count = round(seconds * 16000)
  spectrum = np.fft.rfft(rng.normal(size=count))
  hz = np.fft.rfftfreq(count, 1 / 16000)
  out = np.zeros(count)
  for low, high in zip([100, 400, 900, 1800, 3200], [400, 900, 1800, 3200, 6000], strict=True):
    swing = np.fft.rfft(rng.normal(size=count)) * ((hz > 2) & (hz < 6))
    swing = np.fft.irfft(swing, count)
    out += np.fft.irfft(spectrum * ((hz >= low) & (hz < high)), count) * np.exp(2.5 * swing / swing.std())
  return (0.5 * out / np.abs(out).max()).astype(np.float32)


def write_tracks(path, tracks, *, count=75):
  """Numbered pictures with sound tracks, float [channels, n] at 16 kHz each, in AAC; the first is the default."""
  with av.open(str(path), "w") as container:
    picture = container.add_stream("libx264", rate=25, width=64, height=64, pix_fmt="yuv420p")
    picture.options = {"preset": "ultrafast"}
    layouts = ["mono" if len(track) == 1 else "stereo" for track in tracks]
    streams = [container.add_stream("aac", rate=16000, layout=layout, bit_rate=96_000) for layout in layouts]
    for number, stream in enumerate(streams):
      stream.disposition = av.stream.Disposition.default if not number else av.stream.Disposition(0)
    for index in range(count):
      container.mux(picture.encode(av.VideoFrame.from_ndarray(numbered(index), format="rgb24")))
    container.mux(picture.encode())
    for stream, layout, track in zip(streams, layouts, tracks, strict=True):
      for first in range(0, track.shape[1], 1024):
        part = np.ascontiguousarray(track[:, first : first + 1024], np.float32)
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = 16000, first
        container.mux(stream.encode(frame))
      container.mux(stream.encode())
  return path
