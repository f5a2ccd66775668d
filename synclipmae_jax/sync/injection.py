"""`sync` on footage whose lag nobody knows: a known lag is injected, and the answer must follow it.

Of a file whose picture is moved by d frames, the lag must be that of the file itself plus d, within a frame. Lip tokens
depend on single frames, so that moving them against the audio tokens is equivalent to moving the picture; the file is
read and embedded once. Audio tokens hear some frames around them: at the two ends they still hear what a file cut there
would not contain.

A false peak moves with the picture too, as long as it stays in the search range. The same injections into the sound of
another file therefore belong to every result: they show how often an answer is right by chance, and how often the
model answers where it must not. Where the lag of the footage is known, the answer is compared with it, too.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from synclipmae_jax.inference.stream import Block, FaceBlock
from synclipmae_jax.metrics.sync import MAX_LAG, TOLERANCE
from synclipmae_jax.sync.analysis import analyse
from synclipmae_jax.sync.calibration import Calibration, expected_error
from synclipmae_jax.sync.result import SyncResult
from synclipmae_jax.types import FPS

MAX_SHIFT = 10  # frames
_SIMULATIONS = 200  # of `chance_error`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """The judgement of one file with one injected lag."""

  shift: int  # frames, the injected lag; 0: the file as it is
  lag: int | None  # what `sync` answers; None: it cannot be told
  peak: int | None  # the lag with the highest score, whether answered or not; None: no curve
  confidence: float  # that of the peak, P(|error| <= 1 frame)
  right: bool | None = None  # whether the peak is right by injection; None without a curve, with or without the shift
  right_by_known: bool | None = None  # likewise by the known lag; None where it is unknown


def join_blocks(blocks: Sequence[Block]) -> Block:
  """The blocks of a whole file as one."""
  count = sum(block.count for block in blocks)
  faces = {}
  for number in sorted({number for block in blocks for number in block.faces}):
    some = next(block.faces[number] for block in blocks if number in block.faces)
    joined = FaceBlock.absent(count, width=some.identity.shape[1], looks=some.lips.shape[1] // some.identity.shape[1])
    for block in blocks:
      if number in block.faces:
        for name, rows in vars(joined).items():
          rows[block.start : block.start + block.count] = getattr(block.faces[number], name)
    faces[number] = joined
  waveform, audio = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("waveform", "audio"))
  return Block(start=0, count=count, waveform=waveform, audio=audio, faces=faces)


def inject(heard: Block, seen: Block, shift: int) -> Block:
  """The sound of `heard` under the faces of `seen`, the picture `shift` frames late, cut to what both have."""
  late, early = max(0, shift), max(0, -shift)
  count = min(heard.count - late, seen.count - early)
  sound, picture = slice(late, late + count), slice(early, early + count)
  samples = len(heard.waveform) // heard.count
  return Block(
    start=0,
    count=count,
    waveform=heard.waveform[samples * sound.start : samples * sound.stop],
    audio=heard.audio[sound],
    faces={
      number: FaceBlock(**{name: rows[picture] for name, rows in vars(face).items()})
      for number, face in seen.faces.items()
    },
  )


def draw_shifts(key: str, frames: int, *, number: int, seed: int) -> list[int]:
  """Different lags in -10 .. 10, never 0, that leave enough of a file of `frames`; they depend on `seed` and `key`."""
  most = min(MAX_SHIFT, frames - 2 * MAX_LAG - 1)
  every = np.array([shift for shift in range(-most, most + 1) if shift])
  rng = np.random.default_rng([seed, zlib.crc32(key.encode("utf-8", "surrogateescape"))])
  return rng.permutation(every)[:number].tolist()


def judge(
  heard: Block, seen: Block, shifts: Sequence[int], *, hear, calibration: Calibration, known_lag: int | None = None
) -> tuple[SyncResult, list[Case]]:
  """The result without a shift, and the case of it and of every shift. Raises InputError for too few frames.

  `hear` is `Embedder.heard`.
  """
  results, cases = [], []
  for shift in (0, *shifts):
    result, lags = analyse([inject(heard, seen, shift)], hear=hear, file="", fps=float(FPS), calibration=calibration)
    peak = lags.lag if lags else None
    near = lambda lag, peak=peak: None if lag is None or peak is None else abs(peak - lag) <= TOLERANCE
    unmoved = cases[0].peak if cases else peak
    cases.append(Case(
      shift=shift,
      lag=None if result.lag_frames is None else round(result.lag_frames),
      peak=peak,
      confidence=lags.right if lags else 0.0,
      right=near(None if unmoved is None else unmoved + shift),
      right_by_known=near(None if known_lag is None else known_lag + shift),
    ))  # fmt: skip
    results.append(result)
  return results[0], cases


def summarise(files: Sequence[Sequence[Case]], *, known: bool = False) -> dict[str, Any]:
  """Shares over the cases of each of the files, 0 .. 1; None where nothing is counted.

  `known`: compared with the known lag, with the file as it is among the cases; else with the injected lags.
  """
  chosen = [(number, case) for number, cases in enumerate(files) for case in cases if known or case.shift]
  name = "right_by_known" if known else "right"
  measured = [(number, case) for number, case in chosen if getattr(case, name) is not None]
  answered = [case for _, case in chosen if case.lag is not None]
  right = sum(bool(getattr(case, name)) for case in answered)
  confidence = np.array([case.confidence for _, case in measured])
  outcome = np.array([getattr(case, name) for _, case in measured], bool)
  share = lambda count, of: count / of if of else None
  return {
    "cases": len(chosen),
    "answered": share(len(answered), len(chosen)),
    "right_of_answered": share(right, len(answered)),
    "wrong": share(len(answered) - right, len(chosen)),
    "peaks_right": share(int(outcome.sum()), len(chosen)),
    "calibration_error": expected_error(confidence, outcome)[1] if measured else None,
    "calibration_error_by_chance": chance_error(confidence, np.array([n for n, _ in measured])) if measured else None,
  }


def chance_error(confidence: np.ndarray, files: np.ndarray) -> float:
  """The mean calibration error that exact confidences [n] would show on so few cases; those of a file share a fate."""
  rng, numbers = np.random.default_rng(0), np.unique(files, return_inverse=True)[1]
  drawn = (rng.uniform(size=numbers.max() + 1)[numbers] < confidence for _ in range(_SIMULATIONS))
  return float(np.mean([expected_error(confidence, outcome)[1] for outcome in drawn]))
