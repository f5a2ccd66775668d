"""The factor report of a trained model (configs/probe.py:factors)."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from synclipmae_jax import sharding
from synclipmae_jax.baselines.bare_picture import fit_components
from synclipmae_jax.data.clips import FACES
from synclipmae_jax.data.faces import pose
from synclipmae_jax.data.faces.facial_motion import NAMES as MOTION
from synclipmae_jax.data.faces.facial_motion import facial_motion
from synclipmae_jax.data.prepare import prepare
from synclipmae_jax.data.records import open_records
from synclipmae_jax.data.synthtalk.swaps import render_swaps
from synclipmae_jax.evaluation import factor_pictures, token_sheet
from synclipmae_jax.evaluation.factor_page import write_page
from synclipmae_jax.evaluation.factors import TOKENS, FactorEvaluator, spread
from synclipmae_jax.evaluation.report import write_entries
from synclipmae_jax.evaluation.swaps import Portrait, SwapReport, measure_swaps, swap_factors
from synclipmae_jax.evaluation.tokens import HeldOutTokens
from synclipmae_jax.metrics.factors import ClipFactors, FactorState
from synclipmae_jax.metrics.sync import MIN_FRAMES
from synclipmae_jax.models.editing import caveats
from synclipmae_jax.pretrained import SyncLipMAE
from synclipmae_jax.run import sources
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.run.workdir import write_config
from synclipmae_jax.types import EvalClip, HeldOut, InputError

COLUMNS = 8  # frames in a strip
QUERIES = 6  # frames whose neighbours are shown


def run(config: ConfigDict, workdir: Path, *, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Writes WORKDIR/eval.json, report.html and pictures, prints the tables, and returns the entries of eval.json.

  Raises InputError, before anything is made, where a setting is out of range, the checkpoint is missing, has no decoder
  or does not fit this version; and where no clip can be measured on.
  """
  clock, started = Clock(), time.perf_counter()
  _check(config)
  with clock("loading"):
    model = SyncLipMAE.load(config.checkpoint, decoder=True)
  config.data.image_size = model.image_size
  data, places, notes = _open(config, workdir, clock)
  if not any(len(clip.frames) >= MIN_FRAMES for clip in data.test.clips):
    raise InputError(f"there is no clip of {MIN_FRAMES} frames to measure on")
  write_config(config, workdir, dict(overrides or {}))
  mesh = sharding.make_mesh((("data", -1),), jax.devices()[:1])
  tokens, params = HeldOutTokens(model.embedder.model, mesh=mesh), model.embedder.params
  sheet = _Sheet(tokens(params, params, data.test.clips), data.test.clips)
  pictures: dict[str, np.ndarray] = {}

  with clock("factors"):
    report = None
    if any(clip.truth is not None for clip in sheet.clips):
      judge = FactorEvaluator(tokens, data, workdir=workdir, ceiling_steps=config.evaluation.factor_ceiling_steps)
      judge(params, params, step=0, final=True)
      report = judge.report
      if report:
        pictures["factors"] = np.asarray(Image.open(workdir / "factors.png").convert("RGB"))
    else:
      write_entries(workdir, {"factors": None})
  with clock("people, motion, neighbours"):
    people = {name: token_sheet.People.of(name, sheet.state) for name in token_sheet.FEATURES}
    motion = sheet.with_motion(_landmarks(places, {clip.key for clip in sheet.clips}))
    measured = token_sheet.measure_motion(motion, MOTION) if motion.clips else None
    correlation = token_sheet.Correlation.of(sheet.state)
    near = token_sheet.find_neighbours(sheet.state, sheet.names)
    judged = near if sheet.names or not motion.clips else token_sheet.find_neighbours(motion, MOTION)
    pictures |= dict(_draw(workdir, people, correlation, near, sheet))
  with clock("strips"):
    pictures |= _strips(model, sheet, workdir)
  swaps = None
  if config.swaps.count:
    with clock("swaps"):
      swaps = _swaps(model, config)
      pictures["swaps"] = factor_pictures.strip(workdir / "swaps.png", swaps.shown)
  entries = {
    "checkpoint": model.name,
    "data": config.data.raw or ("SynthTalk" if not config.data.sources else [str(place) for place, _ in places]),
    "split": data.test.split,
    "clips": len(sheet.clips),
    "people": len(sheet.state.people),
    "verification": {name: each.to_json() for name, each in people.items()},
    "measured": measured and measured.to_json(),
    "correlation": correlation.to_json(),
    "neighbours": judged and judged.to_json(),
    "swaps": swaps and swaps.to_json(),
    "notes": [*model.notes, *caveats(model.embedder.model), *notes],
  }
  write_entries(workdir, entries)
  tables = {
    "What the tokens hold": report.table() if report else "",
    "What the landmarks of the face mesh confirm": measured.table() if measured else "",
    "Who is who": token_sheet.people_table(people),
    "Faces decoded from several people": swaps.table() if swaps else "",
    "What goes together": correlation.table(),
    "What lies near": judged.table() if judged else "",
  }
  intro = (
    f"{model.name}; {entries['data']}, split {data.test.split}: {len(sheet.clips)} clips, {entries['people']} people"
  )
  write_page(workdir, intro=intro, tables=tables, pictures=pictures, notes=entries["notes"])
  text = "\n\n".join(f"{heading}\n\n{table}" for heading, table in tables.items() if table)
  print(f"\n{intro}\n\n{text}\n\n{clock.table(time.perf_counter() - started)}")
  print(f"Results: eval.json, report.html and pictures in {workdir}")
  return entries


def _check(config: ConfigDict) -> None:
  """Raises InputError."""
  if jax.process_count() > 1:
    raise InputError("the factor report is made by one process: start it without --distributed")
  if config.swaps.count < 0 or config.swaps.frames < 1 or config.swaps.seed < 0:
    raise InputError("swaps.count and swaps.seed must be 0 or more and swaps.frames at least 1")
  if config.data.raw and config.data.sources:
    raise InputError("give either data.raw, a folder of videos, or data.sources, records of them, not both")
  if config.data.raw and not Path(config.data.raw).is_dir():
    raise InputError(f"there is no folder {config.data.raw}")
  if config.data.faces not in FACES:
    raise InputError(f"unknown faces {config.data.faces!r}: one of {', '.join(FACES)}")


def _open(config: ConfigDict, workdir: Path, clock: Clock) -> tuple[Any, sources.Places, list[str]]:
  """(a `types.ClipData`, where its held-out clips lie, remarks)."""
  if not config.data.raw:
    data = sources.open_clips(config, workdir, clock)
    return data, sources.evaluation_splits(config, data.sources)[0], [data.test.remark] * bool(data.test.remark)
  directory = workdir / "data" / "prepared"
  with clock("preparing"):
    manifest = prepare(
      config.data.raw, directory, faces=config.data.faces, size=config.data.image_size, workers=os.cpu_count() or 1,
      progress=sys.stderr.isatty(),
    )  # fmt: skip
  summary = manifest.summary()
  splits = list(dict.fromkeys(entry["split"] for entry in manifest.entries if entry["outcome"] == "accepted"))
  if not splits:
    file, reason = next(iter(summary["reasons"].items()))
    raise InputError(f"no video of {config.data.raw} yields a clip ({file}: {reason})")
  places: sources.Places = [(directory, split) for split in splits]
  clips = list(sources.read_clips(config, places))
  refused = summary["rejected"]
  notes = [f"{refused} of {summary['files']} files were refused, see data/prepared/manifest.jsonl"] * bool(refused)
  held_out = HeldOut(split=", ".join(splits), clips=clips)
  return SimpleNamespace(val=held_out, test=held_out, train_clips=lambda: iter(())), places, notes


class _Sheet:
  """The chosen frames of the clips that are long enough, and their tokens."""

  def __init__(self, tokens: Mapping[str, Any], clips: Sequence[EvalClip]):
    self.clips = sorted((clip for clip in clips if clip.key in tokens), key=lambda clip: clip.key)
    names = {tuple(clip.truth_names) for clip in self.clips if clip.truth is not None}
    self.names = names.pop() if len(names) == 1 and all(clip.truth is not None for clip in self.clips) else ()
    frames = [spread(clip.frames) for clip in self.clips]
    self.frames = np.concatenate(frames)
    components = fit_components(self.frames, tokens[self.clips[0].key].vocal.shape[1])
    self.state = FactorState.of(
      ClipFactors(
        key=clip.key,
        identity=clip.identity,
        features={name: spread(getattr(tokens[clip.key], name)) for name in TOKENS} | {"picture": components(shown)},
        truth=spread(clip.truth) if self.names else np.zeros((len(shown), 0)),
      )
      for clip, shown in zip(self.clips, frames, strict=True)
    )

  def with_motion(self, landmarks: Mapping[str, np.ndarray]) -> FactorState:
    """The frames whose motion is known from landmarks, with it as the truth."""
    known = (
      token_sheet.without_unknown(clip, facial_motion(spread(landmarks[clip.key])))
      for clip in self.state.clips
      if clip.key in landmarks
    )
    return FactorState.of(clip for clip in known if clip is not None)


def _landmarks(places: sources.Places, keys: set[str]) -> dict[str, np.ndarray]:
  """Key of an `EvalClip` -> landmarks [T, 68, 2] of the face mesh; nan where unknown."""
  found = {}
  for number, (directory, split) in enumerate(places):
    opened = open_records(directory, split=split)
    for row, key in enumerate(opened.keys):
      if (name := key if len(places) == 1 else f"{number}/{key}") in keys:
        record = opened[row]
        if record["landmark_schema"] == pose.SCHEMA and record["landmarks"].shape[1]:
          points = record["landmarks"]
          found[name] = np.where((points == -1).all(axis=(1, 2), keepdims=True), np.nan, points)
  return found


def _draw(workdir: Path, people, correlation, near, sheet: _Sheet) -> Iterator[tuple[str, np.ndarray]]:
  curves = {name: each.verification for name, each in people.items() if each.verification}
  if curves:
    yield "roc", factor_pictures.roc(workdir / "roc.png", curves)
  yield "correlation", factor_pictures.correlation(workdir / "correlation.png", correlation)
  if near:
    queries = np.linspace(0, len(sheet.frames) - 1, QUERIES + 2).round().astype(int)[1:-1].tolist()
    drawn = factor_pictures.neighbours(workdir / "neighbours.png", near, sheet.frames, queries=queries)
    yield "neighbours", drawn


def _strips(model: SyncLipMAE, sheet: _Sheet, workdir: Path) -> dict[str, np.ndarray]:
  """A face of one person; in each pair of rows one token comes from the frames above, the others and the surroundings
  stay."""
  decode = jax.jit(functools.partial(swap_factors, model.embedder.model))
  one_each = list({clip.identity: clip for clip in reversed(sheet.clips)}.values())[::-1]
  base = one_each[0]
  still = _portrait([(base, len(base.frames) // 2)] * COLUMNS)
  mover, turner = one_each[1 % len(one_each)], one_each[2 % len(one_each)]
  over_time = lambda clip: _portrait([(clip, t) for t in np.linspace(0, len(clip.frames) - 1, COLUMNS).astype(int)])
  others = [one_each[(i + 1) % len(one_each)] for i in range(COLUMNS)]
  faces = _portrait([(clip, len(clip.frames) // 2) for clip in others])
  changed = {"vocal": over_time(mover), "ambient": over_time(turner), "identity": faces}
  rows: dict[str, np.ndarray] = {"the face": still.frames, "its own\ntokens": _decoded(decode, model, still, {})}
  for token, source in changed.items():
    rows[f"{token} of"] = source.frames
    rows[f"only {token}\nchanges"] = _decoded(decode, model, still, {token: source})
  return {"strip": factor_pictures.strip(workdir / "strip.png", rows)}


def _decoded(decode, model: SyncLipMAE, still: Portrait, changed: Mapping[str, Portrait]) -> np.ndarray:
  parts = (changed.get(token, still) for token in ("identity", "vocal", "ambient"))
  return np.asarray(decode(model.embedder.params, *parts, still))


def _portrait(places: Sequence[tuple[EvalClip, int]]) -> Portrait:
  return Portrait(*(np.stack([getattr(clip, name)[t] for clip, t in places]) for name in Portrait._fields))


def _swaps(model: SyncLipMAE, config: ConfigDict) -> SwapReport:
  settings = dict(frames=config.swaps.frames, image_size=model.image_size, seed=config.swaps.seed)
  rendered = render_swaps(config.swaps.count, **settings)
  bar = tqdm(rendered, total=config.swaps.count, unit="swap", desc="rendering", disable=not sys.stderr.isatty())
  return measure_swaps(model.embedder.model, model.embedder.params, list(bar))
