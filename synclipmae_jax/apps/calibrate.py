"""`synclipmae calibrate WORKDIR --out DIR`: a trained model -> a checkpoint with calibrated confidences.

Measures the model on unseen clips of known lag. Half of the clips are used for the fit; the reported error is measured
on the other half. Stretches of 1.4 to 9 s are cut from every clip, with an injected lag of -10 .. 10 frames. Each is
used with its own sound, with part of its sound replaced by that of another clip (doubtful cases), and with the sound of
another clip (no lag fits). Without --records, SynthTalk with another seed is generated. The checkpoint has no optimizer
state; `synclipmae sync --checkpoint DIR` reads it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from synclipmae_jax import checkpoints
from synclipmae_jax.apps.footage import exit_status
from synclipmae_jax.data import pipeline
from synclipmae_jax.data.prepare import prepare
from synclipmae_jax.data.synthtalk.corpus import write_corpus
from synclipmae_jax.inference.embedder import Embedder
from synclipmae_jax.metrics.sync import LAGS, TOLERANCE
from synclipmae_jax.pretrained import SyncLipMAE
from synclipmae_jax.sync.calibration import Calibration, Evidence, fit, measure
from synclipmae_jax.sync.estimate import LagScorer, evidence_of
from synclipmae_jax.types import FPS, EvalClip, InputError

LENGTHS = (35, 50, 75, 110, 150, 225)  # frames
MAX_SHIFT = 10
ITEMS = ("visual_encoder", "audio_adapter", "decoder", "contrast")  # the frozen speech encoder if it has parameters
META = ("task", "config", "preprocessing", "revision", "donors", "step")
SYNTHTALK = dict(clips=120, seconds=10.0, size=112, seed=1)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser("synclipmae calibrate", description=__doc__.split("\n\n")[0])
  parser.add_argument("checkpoint", help="workdir of a run, or one of its steps")
  parser.add_argument("--out", required=True, help="folder of the new checkpoint; must not exist")
  parser.add_argument("--records", help="output of `synclipmae prepare` of footage in sync (default: SynthTalk)")
  parser.add_argument("--split", default="test", help="of the records (default test)")
  parser.add_argument("--seed", type=int, default=0, help="of the stretches and their lags")
  parser.add_argument("--json", action="store_true", help="print one JSON object, and no progress bar")
  args = parser.parse_args(argv)
  return exit_status("calibrate", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
  summary = calibrate(
    args.checkpoint, args.out, records=args.records, split=args.split, seed=args.seed, progress=not args.json
  )
  print(json.dumps(summary) if args.json else _report(summary))
  return 0


def calibrate(
  directory: str | os.PathLike,
  out: str | os.PathLike,
  *,
  records: str | os.PathLike | None = None,
  split: str = "test",
  seed: int = 0,
  progress: bool = True,
) -> dict:
  """Writes the calibrated checkpoint to `out` and returns the measurements. Raises InputError."""
  if os.path.lexists(out):
    raise InputError(f"{out} exists already")
  model = SyncLipMAE.load(directory)
  with tempfile.TemporaryDirectory() as scratch:
    if records is None:
      raw = Path(scratch) / "synthtalk"
      settings: dict[str, Any] = {**SYNTHTALK, "clips": {"test": SYNTHTALK["clips"]}}
      write_corpus(raw, **settings, progress=progress)
      prepare(
        raw, scratch, corpus="synthtalk", faces="precomputed", size=model.image_size, workers=os.cpu_count() or 1,
        progress=progress,
      )  # fmt: skip
    clips = pipeline.eval_clips(records or scratch, split=split, image_size=model.image_size)
    bar = tqdm(clips, desc="embed", unit="clip", disable=not progress)
    tokens = [(clip.lag or 0, *_tokens(model.embedder, clip)) for clip in bar]
  if len(tokens) < 4:
    raise InputError(f"{len(tokens)} clips are too few to calibrate on: at least 4 are needed")
  rng = np.random.default_rng(seed)
  fitted, held_out = (list(_stretches(half, rng)) for half in (tokens[::2], tokens[1::2]))
  if not fitted or not held_out:
    raise InputError(f"none of the {len(tokens)} clips is long enough to cut {LENGTHS[0]} frames out with a lag")
  source = f"SynthTalk, seed {SYNTHTALK['seed']}" if records is None else Path(records).name
  fitted_on = f"{len(fitted)} stretches of {len(tokens[::2])} clips of {source}"
  calibration = fit(_pairs(fitted), [case.stranger for case in fitted], fitted_on=fitted_on)
  calibration = measure(calibration, _pairs(held_out))
  summary = {"checkpoint": str(out), "fitted_on": fitted_on, "calibration_error": calibration.error,
             "by_length": _by_length(calibration, held_out)}  # fmt: skip
  _write(directory, out, calibration, summary)
  return summary


def _tokens(model: Embedder, clip: EvalClip) -> tuple[np.ndarray, np.ndarray]:
  _, lips = model.encode_frames(clip.frames, face_box=clip.face_box, mouth_box=clip.mouth_box)
  return model.heard(model.embed_sound(clip.waveform)), lips


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """Measurements of a stretch with its own sound, with partly replaced sound, and with the sound of another clip."""

  lag: int
  own: Evidence
  mixed: Evidence
  stranger: Evidence


def _pairs(cases: Iterable[Case]) -> list[tuple[Evidence, int]]:
  return [(evidence, case.lag) for case in cases for evidence in (case.own, case.mixed)]


def _stretches(clips: Sequence[tuple[int, np.ndarray, np.ndarray]], rng: np.random.Generator) -> Iterator[Case]:
  """Stretches of every length of every clip, given as (lag, audio, lips).

  Lip tokens depend on single frames: moving them against the audio tokens is equivalent to moving the picture.
  """
  for index, (own_lag, audio, lips) in enumerate(clips):
    for length in LENGTHS:
      lag = int(rng.integers(-MAX_SHIFT, MAX_SHIFT + 1))
      late = lag - own_lag  # number of frames by which the lips begin before the audio
      first, last = max(0, late), len(audio) - length + min(0, late)
      stranger = clips[(index + 1 + int(rng.integers(len(clips) - 1))) % len(clips)][1]
      if last < first or len(stranger) < length:
        continue
      start = int(rng.integers(first, last + 1))
      own, seen = audio[start:][:length], lips[start - late :][:length]
      other = stranger[int(rng.integers(len(stranger) - length + 1)) :][:length]
      exchanged = int(rng.uniform(0.3, 1.0) * length)
      mixed = np.concatenate([other[:exchanged], own[exchanged:]])
      yield Case(lag=lag, **{
        name: _evidence(heard, seen) for name, heard in (("own", own), ("mixed", mixed), ("stranger", other))
      })  # fmt: skip


def _evidence(audio: np.ndarray, vocal: np.ndarray) -> Evidence:
  scorer = LagScorer()
  scorer.push(audio, vocal)
  return evidence_of(scorer.finish())


def _by_length(calibration: Calibration, cases: Sequence[Case]) -> list[dict]:
  """By length: how often the lag is right within a frame and in the interval; recall and precision of no lag."""
  rows = []
  for length in sorted({case.own.frames for case in cases}):
    chosen = [case for case in cases if case.own.frames == length]
    refused = np.array([
      [calibration.probabilities(evidence)[1] < 0.5 for evidence in (case.own, case.stranger)] for case in chosen
    ])  # fmt: skip
    bounds = [calibration.interval(case.own) for case in chosen]
    rows.append({
      "seconds": length / FPS,
      "stretches": len(chosen),
      "right": float(np.mean([abs(int(LAGS[case.own.best]) - case.lag) <= TOLERANCE for case in chosen])),
      "interval_covers": float(np.mean([low <= c.lag <= high for c, (low, high) in zip(chosen, bounds, strict=True)])),
      "not_synchronizable_recall": float(refused[:, 1].mean()),
      "not_synchronizable_precision": float(refused[:, 1].sum() / refused.sum()) if refused.any() else None,
    })  # fmt: skip
  return rows


def _write(directory, out, calibration: Calibration, summary: dict) -> None:
  step = checkpoints.resolve_step(directory)
  meta = checkpoints.load_meta(step)
  names = checkpoints.list_items(step)
  items = {name: checkpoints.load_item(step, name) for name in (*ITEMS, "speech_encoder") if name in names}
  kept = {name: meta[name] for name in META if name in meta}
  checkpoints.save_items(out, items, {**kept, "calibration": calibration.to_json(), "measured": summary["by_length"]})


def _report(summary: dict) -> str:
  lines = [
    f"{summary['checkpoint']}: calibrated on {summary['fitted_on']};",
    f"expected calibration error on the other half {summary['calibration_error']:.3f}",
    "",
    "| seconds | stretches | lag within 1 frame | in the interval | not synchronizable: recall | precision |",
    "|---:|---:|---:|---:|---:|---:|",
  ]
  for row in summary["by_length"]:
    precision = row["not_synchronizable_precision"]
    lines.append(
      f"| {row['seconds']:.1f} | {row['stretches']} | {row['right']:.3f} | {row['interval_covers']:.3f} |"
      f" {row['not_synchronizable_recall']:.3f} | {'-' if precision is None else f'{precision:.3f}'} |"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main())
