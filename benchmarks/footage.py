"""What the benchmarks run on where no file is named: SynthTalk, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_video(path: Path, width: int, height: int, *, seconds: float, repeat: int = 1) -> Path:
  """Writes a SynthTalk clip with grey bars at the sides, `repeat` times in one file; returns `path`."""
  from synclipmae_jax.data.synthtalk.clip import make_clip
  from synclipmae_jax.data.synthtalk.corpus import encode
  from synclipmae_jax.data.synthtalk.render import render

  clip = make_clip(0, seed=0, split="train", seconds=seconds)
  margin = (width - height) // 2
  frames = np.pad(render(clip, size=height), [(0, 0), (0, 0), (margin, margin), (0, 0)], constant_values=90)
  path.parent.mkdir(parents=True, exist_ok=True)
  encode(path, np.concatenate([frames] * repeat), np.concatenate([clip.waveform()] * repeat), crf=23)
  return path


def write_records(directory: Path, *, size: int, clips: dict[str, int]) -> Path:
  """Writes and prepares a small SynthTalk corpus below `directory`; returns the folder of its records."""
  from synclipmae_jax.data.prepare import prepare
  from synclipmae_jax.data.synthtalk.corpus import write_corpus

  write_corpus(directory / "raw", clips=clips, seconds=6.0, size=size, progress=False)
  out = directory / "prepared"
  prepare(directory / "raw", out, corpus="synthtalk", faces="precomputed", size=size, progress=False)
  return out
