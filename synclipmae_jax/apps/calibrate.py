"""`synclipmae calibrate WORKDIR --out DIR`: a trained model -> a checkpoint with calibrated confidences.

Measures the model on unseen clips of known lag, of one set or of several: `--records DIR:SPLIT` may be repeated, and
--synthtalk adds SynthTalk of another seed, which is the only set without --records. Each set has the same weight in
the fit, and the threshold of an answer comes from the real sets if there is any. Half of the clips of a set are used
for the fit; the reported numbers are measured on the other half.

Stretches of 1.4 to 10 s and the whole clip are cut from every clip, with an injected lag of -10 .. 10 frames. Each is
used with its own sound, with part of its sound replaced by that of another clip (doubtful cases), and with the sound of
another clip (no lag fits). The checkpoint has no optimizer state; `synclipmae sync --checkpoint DIR` reads it.
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
from synclipmae_jax.sync.calibration import Calibration, CaseSet, Evidence, fit, measure
from synclipmae_jax.sync.estimate import LagScorer, evidence_of
from synclipmae_jax.types import FPS, EvalClip, InputError

LENGTHS = (35, 50, 75, 110, 150, 250)  # frames; also the whole clip
DRAWS = 2  # stretches of each length of each clip
MAX_SHIFT = 10
ITEMS = ("visual_encoder", "audio_adapter", "decoder", "contrast")  # the frozen speech encoder if it has parameters
META = ("task", "config", "preprocessing", "revision", "donors", "step")
SYNTHTALK = dict(clips=120, seconds=10.0, size=160, seed=1)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser("synclipmae calibrate", description=__doc__.split("\n\n")[0])
  parser.add_argument("checkpoint", help="workdir of a run, or one of its steps")
  parser.add_argument("--out", required=True, help="folder of the new checkpoint; must not exist")
  parser.add_argument(
    "--records", action="append", default=[], metavar="DIR[:SPLIT]",
    help="output of `synclipmae prepare` of footage in sync; may be repeated (default: SynthTalk)",
  )  # fmt: skip
  parser.add_argument("--split", default="test", help="of records without :SPLIT (default test)")
  parser.add_argument("--synthtalk", action="store_true", help="SynthTalk beside the records")
  parser.add_argument("--seed", type=int, default=0, help="of the stretches and their lags")
  parser.add_argument("--json", action="store_true", help="print one JSON object, and no progress bar")
  args = parser.parse_args(argv)
  return exit_status("calibrate", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
  summary = calibrate(
    args.checkpoint, args.out, records=args.records, split=args.split, synthtalk=args.synthtalk, seed=args.seed,
    progress=not args.json,
  )  # fmt: skip
  print(json.dumps(summary) if args.json else _report(summary))
  return 0


def calibrate(
  directory: str | os.PathLike,
  out: str | os.PathLike,
  *,
  records: Sequence[str] = (),
  split: str = "test",
  synthtalk: bool = False,
  seed: int = 0,
  progress: bool = True,
) -> dict:
  """Writes the calibrated checkpoint to `out` and returns the measurements. Raises InputError.

  `records`: folders, each with `:SPLIT` or of the split `split`. SynthTalk is added by `synthtalk` and without records.
  """
  if os.path.lexists(out):
    raise InputError(f"{out} exists already")
  model = SyncLipMAE.load(directory)
  folders = [_folder_and_split(name, split) for name in records]
  named = [(f"{Path(folder).name}:{part}", folder, part) for folder, part in folders]
  rng = np.random.default_rng(seed)
  with tempfile.TemporaryDirectory() as scratch:
    if synthtalk or not records:
      _make_synthtalk(scratch, size=model.image_size, progress=progress)
      named.append((f"SynthTalk, seed {SYNTHTALK['seed']}", scratch, "test"))
    sets = [
      _open_set(name, pipeline.eval_clips(folder, split=part, image_size=model.image_size), model.embedder, rng,
                progress=progress)
      for name, folder, part in named
    ]  # fmt: skip
  fitted_on = " and ".join(f"{len(each.fitted)} stretches of {each.clips} clips of {each.name}" for each in sets)
  calibration = fit([each.cases(each.fitted) for each in sets], fitted_on=fitted_on)
  calibration = measure(calibration, [each.cases(each.held_out) for each in sets])
  summary = {
    "checkpoint": str(out),
    "fitted_on": fitted_on,
    "calibration_error": calibration.error,
    "sets": [_set_row(calibration, each) for each in sets],
    "by_length": _by_length(calibration, [case for each in sets for case in each.held_out]),
  }
  _write(directory, out, calibration, summary)
  return summary


def _folder_and_split(name: str | os.PathLike, split: str) -> tuple[str, str]:
  """DIR:SPLIT or DIR; a folder whose name has a colon is taken as it is."""
  folder, colon, part = os.fspath(name).rpartition(":")
  return (folder, part) if colon and not os.path.isdir(name) else (os.fspath(name), split)


def _make_synthtalk(scratch: str, *, size: int, progress: bool) -> None:
  raw = Path(scratch) / "synthtalk"
  settings: dict[str, Any] = {**SYNTHTALK, "clips": {"test": SYNTHTALK["clips"]}}
  write_corpus(raw, **settings, progress=progress)
  prepare(
    raw, scratch, corpus="synthtalk", faces="precomputed", size=size, workers=os.cpu_count() or 1, progress=progress
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """Measurements of a stretch with its own sound, with partly replaced sound, and with the sound of another clip."""

  lag: int
  own: Evidence
  mixed: Evidence
  stranger: Evidence


@dataclasses.dataclass(frozen=True, kw_only=True)
class StretchSet:
  """The cases of one set of clips, in two halves by clip."""

  name: str
  real: bool
  clips: int  # of the half that is fitted
  fitted: Sequence[Case]
  held_out: Sequence[Case]

  def cases(self, half: Sequence[Case]) -> CaseSet:
    pairs = [(evidence, case.lag) for case in half for evidence in (case.own, case.mixed)]
    return CaseSet(pairs=pairs, strangers=[case.stranger for case in half], real=self.real)


def _open_set(
  name: str, clips: Iterable[EvalClip], model: Embedder, rng: np.random.Generator, *, progress: bool
) -> StretchSet:
  """Embeds the clips and cuts them into cases. Raises InputError for too few or too short clips."""
  tokens, synthetic = [], True
  for clip in tqdm(clips, desc=f"embed {name}", unit="clip", disable=not progress):
    tokens.append((clip.lag or 0, *_tokens(model, clip)))
    synthetic &= clip.corpus == "synthtalk"
  if len(tokens) < 4:
    raise InputError(f"{len(tokens)} clips of {name} are too few to calibrate on: at least 4 are needed")
  fitted, held_out = (list(_stretches(half, rng)) for half in (tokens[::2], tokens[1::2]))
  if not fitted or not held_out:
    raise InputError(f"none of the {len(tokens)} clips of {name} is long enough to cut {LENGTHS[0]} frames out")
  return StretchSet(name=name, real=not synthetic, clips=len(tokens[::2]), fitted=fitted, held_out=held_out)


def _tokens(model: Embedder, clip: EvalClip) -> tuple[np.ndarray, np.ndarray]:
  _, lips = model.encode_frames(clip.frames, face_box=clip.face_box, mouth_box=clip.mouth_box)
  return model.heard(model.embed_sound(clip.waveform)), lips


def _stretches(clips: Sequence[tuple[int, np.ndarray, np.ndarray]], rng: np.random.Generator) -> Iterator[Case]:
  """Stretches of every length of every clip, given as (lag, audio, lips), and the whole clip less its lag.

  Lip tokens depend on single frames: moving them against the audio tokens is equivalent to moving the picture. Clips
  are not joined: a cut is not what a longer file looks like.
  """
  for index, (own_lag, audio, lips) in enumerate(clips):
    for length in (*LENGTHS, None) * DRAWS:
      lag = int(rng.integers(-MAX_SHIFT, MAX_SHIFT + 1))
      late = lag - own_lag  # number of frames by which the lips begin before the audio
      stranger = clips[(index + 1 + int(rng.integers(len(clips) - 1))) % len(clips)][1]
      size = length or min(len(audio) - abs(late), len(stranger))
      first, last = max(0, late), len(audio) - size + min(0, late)
      if last < first or not LENGTHS[0] <= size <= len(stranger):
        continue
      start = int(rng.integers(first, last + 1))
      own, seen = audio[start:][:size], lips[start - late :][:size]
      other = stranger[int(rng.integers(len(stranger) - size + 1)) :][:size]
      exchanged = int(rng.uniform(0.3, 1.0) * size)
      mixed = np.concatenate([other[:exchanged], own[exchanged:]])
      yield Case(lag=lag, **{
        name: _evidence(heard, seen) for name, heard in (("own", own), ("mixed", mixed), ("stranger", other))
      })  # fmt: skip


def _evidence(audio: np.ndarray, vocal: np.ndarray) -> Evidence:
  scorer = LagScorer()
  scorer.push(audio, vocal)
  return evidence_of(scorer.finish())


def _answered(calibration: Calibration, evidence: Evidence) -> bool:
  """Whether `sync` gives a lag."""
  return calibration.probabilities(evidence)[1] >= 0.5


def _is_right(case: Case) -> bool:
  return abs(int(LAGS[case.own.best]) - case.lag) <= TOLERANCE


def _set_row(calibration: Calibration, each: StretchSet) -> dict[str, Any]:
  """What the calibration is worth on the held-out half of one set."""
  answered = [case for case in each.held_out if _answered(calibration, case.own)]
  return {
    "name": each.name,
    "real": each.real,
    "stretches": len(each.held_out),
    "right": float(np.mean([_is_right(case) for case in each.held_out])),
    "answered": len(answered) / len(each.held_out),
    "right_of_answered": float(np.mean([_is_right(case) for case in answered])) if answered else None,
    "foreign_answered": float(np.mean([_answered(calibration, case.stranger) for case in each.held_out])),
    "calibration_error": measure(calibration, [each.cases(each.held_out)]).error,
  }


def _by_length(calibration: Calibration, cases: Sequence[Case]) -> list[dict]:
  """By length: how often the lag is right within a frame and in the interval; recall and precision of no lag.

  A whole clip counts to the nearest of LENGTHS.
  """
  nearest = lambda case: min(LENGTHS, key=lambda length: abs(np.log(length / case.own.frames)))
  rows = []
  for length in sorted({nearest(case) for case in cases}):
    chosen = [case for case in cases if nearest(case) == length]
    refused = np.array([
      [not _answered(calibration, evidence) for evidence in (case.own, case.stranger)] for case in chosen
    ])  # fmt: skip
    bounds = [calibration.interval(case.own) for case in chosen]
    rows.append({
      "seconds": length / FPS,
      "stretches": len(chosen),
      "right": float(np.mean([_is_right(case) for case in chosen])),
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
  measured = {name: summary[name] for name in ("sets", "by_length")}
  checkpoints.save_items(out, items, {**kept, "calibration": calibration.to_json(), "measured": measured})


def _report(summary: dict) -> str:
  percent = lambda value: "-" if value is None else f"{100 * value:.1f}"
  lines = [
    f"{summary['checkpoint']}: calibrated on {summary['fitted_on']};",
    f"expected calibration error on the other half {summary['calibration_error']:.3f}",
    "",
    "| set | stretches | peaks right, % | answered | of these right | foreign sound answered | calibration error |",
    "|---|---:|---:|---:|---:|---:|---:|",
  ]
  for row in summary["sets"]:
    cells = [percent(row[name]) for name in ("right", "answered", "right_of_answered", "foreign_answered")]
    lines.append(f"| {row['name']} | {row['stretches']} | {' | '.join(cells)} | {row['calibration_error']:.3f} |")
  lines += [
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
