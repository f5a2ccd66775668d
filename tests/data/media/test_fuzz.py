"""Mutated files: each is accepted or refused with a reason, by `prepare` and its workers, in bounded time and memory.

The message names failures by number: `mutant(number, bases)` makes the same bytes again.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import resource
from fractions import Fraction

import numpy as np
import pytest
from awkward import talk

from synclipmae_jax.data.media import watchdog
from synclipmae_jax.data.prepare import prepare

FRAME = Fraction(1, 25)
KINDS = {
  "a.mp4": {"codec": "h264"},
  "b.mp4": {"codec": "h264", "options": {"movflags": "frag_keyframe+empty_moov"}},
  "c.mp4": {"codec": "mpeg4", "sound_codec": "libmp3lame", "rate": 44100, "time_base": FRAME},
  "a.mov": {"codec": "mjpeg", "sound_codec": "pcm_s16le"},
  "a.mkv": {"codec": "h264", "sound_codec": "flac"},
  "a.webm": {"codec": "libvpx", "sound_codec": "libopus", "rate": 48000},
  "a.ts": {"codec": "h264"},
  "a.mpg": {"codec": "mpeg1video", "sound_codec": "mp2", "rate": 44100, "time_base": FRAME},
  "a.vob": {"codec": "mpeg2video", "sound_codec": "ac3", "rate": 48000, "time_base": FRAME},
  "a.flv": {"codec": "h264"},
  "a.avi": {"codec": "h264", "sound_codec": "libmp3lame", "rate": 44100},
  "b.avi": {"codec": "mpeg4", "sound_codec": "pcm_s16le", "time_base": FRAME},
  "a.wmv": {"codec": "wmv2", "sound_codec": "libmp3lame", "rate": 44100, "time_base": FRAME},
  "a.ogv": {"codec": "libvpx", "sound_codec": "libopus", "rate": 48000},
  "a.mxf": {"codec": "mpeg2video", "sound_codec": "pcm_s16le", "rate": 48000, "time_base": FRAME},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """The whole files, by name."""
  folder = tmp_path_factory.mktemp("whole")
  return {name: talk(folder / name, count=50, **kwargs).read_bytes() for name, kwargs in KINDS.items()}


def mutant(number: int, bases: dict[str, bytes]) -> tuple[str, bytes]:
  """(name, content) of a file with one to three kinds of damage, by its number."""
  rng = np.random.default_rng(number)
  name = list(bases)[number % len(bases)]
  data = bytearray(bases[name])
  for _ in range(rng.integers(1, 4)):
    rng.choice([_flip, _lie, _cut, _splice, _repeat])(data, rng, bases)
  return f"{number:05d}-{name}", bytes(data)


def _place(data, rng) -> int:
  """A place anywhere, or in the headers and indexes."""
  edge = min(len(data), 1500)
  return int([rng.integers(len(data)), rng.integers(edge), len(data) - 1 - rng.integers(edge)][rng.integers(3)])


def _flip(data, rng, bases):
  for _ in range(int(2 ** rng.uniform(0, 8))):
    data[_place(data, rng)] ^= 1 << int(rng.integers(8))


def _lie(data, rng, bases):
  for _ in range(rng.integers(1, 6)):
    size = int(rng.choice([1, 2, 4, 8]))
    number = int(rng.choice([0, 1, 0x7F, 0xFF, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]))
    at = _place(data, rng)
    data[at : at + size] = (number % 256**size).to_bytes(size, rng.choice(["big", "little"]))


def _cut(data, rng, bases):
  first = _place(data, rng)
  last = len(data) if rng.integers(2) else first + int(rng.integers(1, 5000))
  if first > 100:
    del data[first:last]


def _splice(data, rng, bases):
  other = bases[rng.choice(list(bases))]
  first = int(rng.integers(len(other)))
  part = other[first : first + int(2 ** rng.uniform(4, 16))]
  at = _place(data, rng)
  data[at : at + (len(part) if rng.integers(2) else 0)] = part


def _repeat(data, rng, bases):
  first = int(rng.integers(len(data)))
  part = bytes(data[first : first + int(rng.integers(1, 20_000))])
  at = _place(data, rng)
  data[at:at] = part * int(rng.integers(1, 4))


def _prepare(raw, out):
  """The manifest, and the peak of the largest worker's memory in KiB."""
  found = prepare(raw, out, faces="full_frame", size=32, min_seconds=0.2, workers=2, progress=False)
  return found, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def _check(numbers, bases, folder):
  raw = folder / "raw"
  raw.mkdir()
  for number in numbers:
    name, data = mutant(number, bases)
    (raw / name).write_bytes(data)
  # In a process of its own, whose children are the workers of `prepare` alone: the peak of memory is theirs.
  with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
    found, peak = alone.submit(_prepare, raw, folder / "out").result()
  assert len(found.entries) == len(numbers)
  for entry in found.entries:
    reason = entry["reason"]
    if entry["outcome"] == "accepted":
      assert entry["clips"] and not reason
      continue
    assert reason and "\n" not in reason
    assert "unexpected" not in reason and watchdog.REASONS not in reason, (entry["file"], reason)
  assert peak < 2 * 2**20, "KiB of the largest worker"
  return found


def test_mutated_files_are_accepted_or_refused(bases, tmp_path):
  found = _check(range(60), bases, tmp_path)
  accepted = sum(entry["outcome"] == "accepted" for entry in found.entries)
  assert 5 <= accepted <= 55, "neither are they all whole nor all beyond reading"


@pytest.mark.slow
def test_a_thousand_mutated_files(bases, tmp_path):
  _check(range(60, 1060), bases, tmp_path)
