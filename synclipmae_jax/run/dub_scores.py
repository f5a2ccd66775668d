"""Scores of dubbed videos made by any system, in folders (configs/dub.py:evaluate)."""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from synclipmae_jax.data.clips import FACES, Settings
from synclipmae_jax.data.dubbing import SEGMENT
from synclipmae_jax.data.faces.face_mesh import find_points
from synclipmae_jax.data.faces.mediapipe import MediaPipe
from synclipmae_jax.data.faces.mouth_mask import mouth_region
from synclipmae_jax.data.faces.sources import SHORT_SIDE, dominant, open_faces
from synclipmae_jax.data.faces.track import crop_path
from synclipmae_jax.data.faces.window import Window
from synclipmae_jax.data.media import video
from synclipmae_jax.data.media.containers import videos_below
from synclipmae_jax.evaluation.report import write_json, write_text
from synclipmae_jax.evaluation.table import markdown, number_or_null
from synclipmae_jax.metrics import dubbing as scores
from synclipmae_jax.metrics.bootstrap import clip_bootstrap
from synclipmae_jax.metrics.image_quality import WHOLE, picture_scores
from synclipmae_jax.pretrained import SyncLipMAE
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.run.dub_features import HEADINGS, FeatureSets, Watch, add_sets, load_extractors, told_of_sets
from synclipmae_jax.run.file_clips import clips_of
from synclipmae_jax.run.workdir import write_config
from synclipmae_jax.types import InputError
from synclipmae_jax.web_page import printable

_SIZE = 224  # pixels of a crop in which pictures are compared
_ROOM = 1.5  # side of the window of the face mesh, relative to the longer side of the face
_IDENTITY_EVERY = 10  # frames
_LSE_SIZE = 224

# Column -> heading; the order of the table. Behind them stand the distances of sets (dub_features.HEADINGS).
COLUMNS = {
  "sync": "sync score",
  "in_sync": "in sync, %",
  "mouth_distance": "lips, % of eyes",
  "opening_r": "opening, r",
  "psnr_mouth": "PSNR mouth",
  "ssim_mouth": "SSIM mouth",
  "psnr_face": "PSNR face",
  "ssim_face": "SSIM face",
  "identity": "identity",
  "drift": "drift, of 255",
  "lse_c": "LSE-C",
  "lse_d": "LSE-D",
  "stable_lse_c": "stable LSE-C",
  "stable_lse_d": "stable LSE-D",
}
_PAIRED = ("mouth_distance", "opening_r", "psnr_mouth", "ssim_mouth", "psnr_face", "ssim_face")  # need the truth
Judge = Callable[[str], dict[str, float]]


def run(config: ConfigDict, workdir: Path, *, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Writes WORKDIR/dub_scores.json and dub_scores.md, prints the table, and returns what the JSON holds.

  A video that cannot be read is counted, with its sentence. Raises InputError, before anything is written, for wrong
  settings, and where a folder has no video.
  """
  clock, started = Clock(), time.perf_counter()
  references, systems = _check(config)
  with clock("loading"):
    model = SyncLipMAE.load(config.checkpoint)
    judges: list[Judge] = [functools.partial(_in_sync, model, faces=config.faces), *_lse_judges(config)]
    sets = FeatureSets(load_extractors(config))
  write_config(config, workdir, dict(overrides or {}))
  paired, rows = bool(config.data.truth), []
  with clock("videos"):
    total = sum(len(found.keys() & references.keys()) for found in systems.values())
    with tqdm(total=total, unit="file", desc="scores", disable=None) as bar:
      for name, path in references.items():
        theirs = {system: found[name] for system, found in systems.items() if name in found}
        rows += _rows(model, judges, sets, name, path, theirs, config=config, paired=paired)
        bar.update(len(theirs))
  missing = {system: sorted(references.keys() - found.keys()) for system, found in systems.items()}
  names = _names(systems, paired)
  totals = {name: _totals([row for row in rows if row.system == name]) for name in names}
  with clock("sets"):
    refused = add_sets(totals, sets)
  report = {
    "checkpoint": model.name,
    "reference": names[0],
    "systems": totals,
    "refused": refused,
    "missing": {system: names for system, names in missing.items() if names},
    "rows": [dataclasses.asdict(row) for row in rows],
  }
  write_json(workdir / "dub_scores.json", report)
  write_text(workdir / "dub_scores.md", f"# Dubbing\n\n{text(report)}\n")
  print(f"\n{text(report)}\n\n{clock.table(time.perf_counter() - started)}")
  print(f"Results: dub_scores.json and dub_scores.md in {workdir}")
  return report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """The scores of one video by column; None where one is not defined."""

  system: str
  video: str
  frames: int = 0  # that were compared with the reference
  values: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
  error: str = ""  # one sentence: why it could not be measured


def _check(config: ConfigDict) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
  """(name -> reference video, system -> name -> video). Raises InputError."""
  data = config.data
  if not data.systems:
    raise InputError("name the folders to be scored: --config.data.systems=\"(('NAME', 'FOLDER'),)\"")
  if not (data.truth or data.source):
    raise InputError("name the folder of true or of undubbed videos: --config.data.truth or --config.data.source")
  if config.faces not in FACES:
    raise InputError(f"unknown faces {config.faces!r}: one of {', '.join(FACES)}")
  systems = {name: _videos(folder) for name, folder in data.systems}
  if len(systems) < len(data.systems) or {"truth", "source"} & systems.keys():
    raise InputError("every system needs a name of its own, which is neither truth nor source")
  if data.truth and data.source:
    systems["source"] = _videos(data.source)
  return _videos(data.truth or data.source), systems


def _videos(folder: str) -> dict[str, str]:
  if not Path(folder).is_dir():
    raise InputError(f"there is no folder {folder}")
  found = {Path(path).relative_to(folder).with_suffix("").as_posix(): path for path in videos_below(folder)}
  if not found:
    raise InputError(f"there is no video in {folder}")
  return found


def _names(systems: Mapping[str, Any], paired: bool) -> list[str]:
  return ["truth" if paired else "source", *systems]


def _lse_judges(config: ConfigDict) -> Iterator[Judge]:
  from synclipmae_jax.run.sync_models import load_model, lse_of

  for kind in ("syncnet", "stable_syncnet"):
    if not config[kind]:
      continue
    model = load_model(kind, config[kind])
    of = lse_of(kind, model)
    if of is None:
      raise InputError(f"{config[kind]} is a SyncNet that was trained here; LSE is of the released one")

    def judge(path: str, model=model, of=of) -> dict[str, float]:
      with tempfile.TemporaryDirectory() as folder:
        settings = Settings(size=_LSE_SIZE, faces=config.faces)
        states = [of(clip.key, *model.embed(clip)) for clip in clips_of(path, settings, Path(folder))]
      whole = functools.reduce(lambda a, b: a.merge(b), states)
      return {name: each.value for name, each in whole.compute().items() if name in COLUMNS}

    yield judge


def _in_sync(model: SyncLipMAE, path: str, *, faces: str) -> dict[str, float]:
  """The score of picture and sound as they are, at lag 0, and whether `sync` finds them in sync."""
  found = model.sync(path, faces=faces)
  score = found.curve[len(found.curve) // 2] if found.curve else math.nan
  return {"sync": score, "in_sync": float(found.verdict == "in_sync")}


def _rows(
  model: SyncLipMAE,
  judges: Sequence[Judge],
  sets: FeatureSets,
  name: str,
  path: str,
  systems: Mapping[str, str],
  *,
  config: ConfigDict,
  paired: bool,
) -> Iterator[Row]:
  """A row for the reference, with what needs no other video, and one for every system."""
  own = "truth" if paired else "source"
  try:
    reference = Reference(model, path, faces=config.faces, watch=sets.watch(own, name))
    yield Row(system=own, video=name, frames=reference.count, values=_judged(judges, path))
  except Exception as error:  # an unforeseen error affects one file only
    yield Row(system=own, video=name, error=_sentence(error))
    for system in systems:
      yield Row(system=system, video=name, error=f"its {own} could not be measured")
    return
  for system, theirs in systems.items():
    try:
      count, values = reference.compare(theirs, watch=sets.watch(system, name))
      kept = {column: value for column, value in values.items() if paired or column not in _PAIRED}
      whole = {column: number_or_null(value) for column, value in kept.items()} | _judged(judges, theirs)
      yield Row(system=system, video=name, frames=count, values=whole)
    except Exception as error:
      yield Row(system=system, video=name, error=_sentence(error))


def _judged(judges: Sequence[Judge], path: str) -> dict[str, float | None]:
  """What a video is worth by itself; what cannot be measured of it is left out."""
  values: dict[str, float | None] = {}
  for judge in judges:
    try:
      values |= {column: number_or_null(value) for column, value in judge(path).items()}
    except InputError:
      continue
  return values


def _sentence(error: Exception) -> str:
  return str(error) if isinstance(error, InputError) else f"unexpected {type(error).__name__}: {error}"


class Reference:
  """A true or undubbed video: the box in which all systems are measured, and what they are compared with."""

  def __init__(self, model: SyncLipMAE, path: str, *, faces: str, watch: Watch):
    self._model, self._path = model, path
    self._info = video.probe(path)
    source, _ = open_faces(path, faces, info=self._info)
    track = dominant(source, video.read_frames(path, short_side=max(SHORT_SIDE.values())))
    self._seen = track.track >= 0
    if not self._seen.any():
      raise InputError("no face is found in it")
    width, height = self._info.width, self._info.height
    box = track.box * np.tile([width, height], 2)
    crop = np.zeros((len(box), 3))
    crop[self._seen] = crop_path(box[self._seen], width=width, height=height).round()
    self._crop = crop.astype(int)
    self._box = (box - crop[:, [0, 1, 0, 1]]) / np.maximum(crop[:, 2:], 1)  # in fractions of the crop
    self._truth = self._look(path, watch)

  @property
  def count(self) -> int:
    """Frames with a face."""
    return int(self._seen.sum())

  def compare(self, path: str, *, watch: Watch) -> tuple[int, dict[str, float]]:
    """(number of frames that both have, scores by column). `watch` sees the crops. Raises InputError."""
    count, points, colours, identity = 0, [], [], []
    pictures: dict[str, list[tuple[float, float]]] = {"mouth": [], "face": []}
    rows = []
    for t, true, made in self._pairs(path):
      region = np.clip(mouth_region(self._box[t : t + 1]), 0, 1)
      watch.add(t, made)
      found = picture_scores(made / 255, true / 255, {"mouth": region, "face": WHOLE})
      for name in pictures:
        pictures[name].append(found[name])
      points.append(self._points(made, t))
      colours.append(made.mean(axis=(0, 1)) - true.mean(axis=(0, 1)))
      if count % _IDENTITY_EVERY == 0:
        identity.append(made)
      rows.append(t)
      count += 1
    if not count:
      raise InputError("it has no frame in which the reference shows a face")
    lips, true_lips = np.stack(points), self._truth.points[rows]
    values = {
      "mouth_distance": scores.mouth_distance(lips, true_lips),
      "opening_r": scores.opening_correlation(lips, true_lips),
      "identity": _alike(self._identity(identity), self._truth.identity),
      "drift": scores.drift(np.stack(colours), frames=SEGMENT),
    }
    for name, pairs in pictures.items():
      values[f"psnr_{name}"], values[f"ssim_{name}"] = (float(value) for value in np.nanmean(pairs, axis=0))
    watch.finish()
    return count, values

  def _pairs(self, path: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(frame, true crop, crop of the same place) of the frames that both have and that show a face."""
    size = self._info.height, self._info.width
    scaler = video.Scaler()
    for true, made in zip(video.read_frames(self._path), video.read_frames(path), strict=False):
      if true.index >= len(self._seen) or not self._seen[true.index]:
        continue
      image = made.image
      if image.shape[:2] != size:
        if abs(image.shape[1] / image.shape[0] * size[0] / size[1] - 1) > 0.02:
          raise InputError(f"its picture is {image.shape[1]} x {image.shape[0]}, that of the reference {size[::-1]}")
        whole = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        image = scaler(whole, width=size[1], height=size[0], pixels="rgb24").to_ndarray()
      yield true.index, self._cut(true.image, true.index), self._cut(image, true.index)

  def _cut(self, image: np.ndarray, t: int) -> np.ndarray:
    x, y, side = self._crop[t]
    part = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[y : y + side, x : x + side]), format="rgb24")
    return video.Scaler()(part, width=_SIZE, height=_SIZE, pixels="rgb24").to_ndarray()

  def _points(self, crop: np.ndarray, t: int) -> np.ndarray:
    """float [68, 2] in pixels of the crop, looked for where the reference has its face."""
    box = self._box[t] * _SIZE
    window = Window(centre=(box[:2] + box[2:]) / 2, side=_ROOM * float((box[2:] - box[:2]).max()))
    points, _ = find_points(crop, window)
    return points[list(MediaPipe.landmarks)]

  def _look(self, path: str, watch: Watch) -> _Seen:
    points, kept = np.full((len(self._seen), 68, 2), np.nan), []
    for frame in video.read_frames(path):
      if frame.index < len(self._seen) and self._seen[frame.index]:
        crop = self._cut(frame.image, frame.index)
        points[frame.index] = self._points(crop, frame.index)
        watch.add(frame.index, crop)
        if frame.index % _IDENTITY_EVERY == 0 or not kept:
          kept.append(crop)
    watch.finish()
    return _Seen(points=points, identity=self._identity(kept))

  def _identity(self, crops: Sequence[np.ndarray]) -> np.ndarray:
    """float [D]: the mean identity token of crops."""
    size, scaler = self._model.image_size, video.Scaler()
    small = [
      scaler(av.VideoFrame.from_ndarray(crop, format="rgb24"), width=size, height=size, pixels="rgb24").to_ndarray()
      for crop in crops
    ]
    tokens, _ = self._model.embedder.encode_frames(np.stack(small))
    return np.asarray(tokens.identity).mean(axis=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Seen:
  points: np.ndarray  # float [T, 68, 2], nan without a face
  identity: np.ndarray  # float [D]


def _alike(a: np.ndarray, b: np.ndarray) -> float:
  return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def _totals(rows: Sequence[Row]) -> dict[str, Any]:
  """Means over videos with 95 % intervals; a video without a value is left out of its column."""
  measured = [row for row in rows if not row.error]
  table = np.array([[_or_nan(row.values.get(column)) for column in COLUMNS] for row in measured]).reshape(
    len(measured), len(COLUMNS)
  )
  found = clip_bootstrap(table, ~np.isnan(table))
  return {
    "videos": len(measured),
    "failed": len(rows) - len(measured),
    "scores": {
      column: {"mean": number_or_null(each.value), "low": number_or_null(each.low), "high": number_or_null(each.high)}
      for column, each in zip(COLUMNS, found, strict=True)
    },
  }


def _or_nan(value: float | None) -> float:
  return math.nan if value is None else value


def text(report: Mapping[str, Any]) -> str:
  """The table, and what its numbers mean."""
  headings = COLUMNS | HEADINGS
  of = lambda each, column: each["scores"].get(column, {"mean": None})["mean"]
  shown = [c for c in headings if any(of(each, c) is not None for each in report["systems"].values())]

  def cell(column: str, mean: float | None) -> str:
    if mean is None:
      return "-"
    return f"{100 * mean:.0f}" if column == "in_sync" else f"{(1000 if column == 'kid' else 1) * mean:.3f}"

  body = [
    [name, str(each["videos"]), *(cell(column, of(each, column)) for column in shown)]
    for name, each in report["systems"].items()
  ]
  wrong = [f"{row['system']}/{row['video']}: {row['error']}" for row in report["rows"] if row["error"]]
  lacking = [f"{system} lacks {', '.join(names)}" for system, names in report["missing"].items()]
  return "\n".join([
    *markdown(["system", "videos", *(headings[column] for column in shown)], body),
    "",
    f"All are measured in the face box of the {report['reference']}. Sync score: cosine of audio and vocal tokens at"
    f" lag 0, by {report['checkpoint']}. Lips: distance of the points of the face mesh from the true ones. Identity:"
    " cosine of the identity tokens. Drift: of the mean colour, from the first to the last segment.",
    "",
    told_of_sets(report["systems"]),
    *([""] if wrong or lacking or report["refused"] else []),
    *(f"- {printable(sentence)}" for sentence in (*wrong, *lacking, *report["refused"])),
  ])  # fmt: skip
