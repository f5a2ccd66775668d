"""`sync` on the files of a folder, as people have them, with injected lags (configs/sync.py:real)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from synclipmae_jax.data.clips import FACES
from synclipmae_jax.data.corpora import file_key
from synclipmae_jax.data.media.containers import SUFFIXES, videos_below
from synclipmae_jax.evaluation.report import write_json, write_text
from synclipmae_jax.evaluation.table import markdown
from synclipmae_jax.inference.stream import Block, TokenStream
from synclipmae_jax.pretrained import SyncLipMAE
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.run.workdir import write_config
from synclipmae_jax.sync import injection
from synclipmae_jax.types import InputError
from synclipmae_jax.web_page import printable


def run(config: ConfigDict, workdir: Path, *, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Writes WORKDIR/real.json and real.md, prints the table, and returns what real.json holds.

  A file that cannot be read is counted, with its sentence. Raises InputError, before anything is written, for a
  setting out of range and where there is no checkpoint or no video.
  """
  clock, started = Clock(), time.perf_counter()
  videos = _check(config)
  with clock("loading"):
    model = SyncLipMAE.load(config.checkpoint)
  write_config(config, workdir, dict(overrides or {}))
  with clock("files"):
    measured = tqdm(_rows(model, videos, config), total=len(videos), unit="file", desc="real", disable=None)
    rows = sorted(measured, key=lambda row: row.file)
  report = {
    "checkpoint": model.name,
    "raw": config.data.raw,
    "known_lag": config.known_lag,
    **totals(rows, known=config.known_lag is not None),
    "rows": [row.to_json() for row in rows],
  }
  write_json(workdir / "real.json", report)
  write_text(workdir / "real.md", f"# Real faces\n\n{text(report)}\n")
  print(f"\n{text(report)}\n\n{clock.table(time.perf_counter() - started)}")
  print(f"Results: real.json and real.md in {workdir}")
  return report


def _check(config: ConfigDict) -> list[str]:
  """The files of the folder. Raises InputError."""
  if not config.data.raw:
    raise InputError("name the folder of videos: --config.data.raw=FOLDER")
  if not 1 <= config.shifts <= 2 * injection.MAX_SHIFT:
    raise InputError(f"the number of shifts of a file must be 1 to {2 * injection.MAX_SHIFT}, not {config.shifts}")
  if config.seed < 0:
    raise InputError(f"the seed must be 0 or more, not {config.seed}")
  if config.faces not in FACES:
    raise InputError(f"unknown faces {config.faces!r}: one of {', '.join(FACES)}")
  if not Path(config.data.raw).is_dir():
    raise InputError(f"there is no folder {config.data.raw}")
  videos = videos_below(config.data.raw)
  if not videos:
    raise InputError(f"there is no video ({', '.join(SUFFIXES)}) in {config.data.raw}")
  return videos


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """The measurements of one file."""

  file: str
  error: str = ""  # one sentence: why it cannot be read
  frames: int = 0
  face_frames: int = 0  # with any face
  verdict: str = ""  # of the file as it is
  reason: str = ""
  cases: tuple[injection.Case, ...] = ()  # the first is the file as it is
  foreign: tuple[injection.Case, ...] = ()  # the same with the sound of another file

  def to_json(self) -> dict[str, Any]:
    if self.error:
      return {"file": self.file, "error": self.error}
    return {name: value for name, value in dataclasses.asdict(self).items() if name != "error"}


def _rows(model: SyncLipMAE, videos: Sequence[str], config: ConfigDict) -> Iterator[Row]:
  """A row for each file. The foreign sound is that of the file read before, for the first file that of the last.

  The tokens of three files are held at a time.
  """
  first: tuple[Row, Block] | None = None
  before: Block | None = None
  for path in videos:
    name = file_key(Path(path).relative_to(config.data.raw))
    try:
      whole = injection.join_blocks(list(TokenStream(model.embedder, path, faces=config.faces)))
      row = _judge(model, name, whole, before, config)
    except Exception as error:  # an unforeseen error affects one file only
      sentence = str(error) if isinstance(error, InputError) else f"unexpected {type(error).__name__}: {error}"
      yield Row(file=name, error=sentence)
      continue
    if first is None:
      first = row, whole
    else:
      yield row
    before = whole
  if first is not None:
    row, whole = first
    yield row if before is whole else _judge(model, row.file, whole, before, config)


def _judge(model: SyncLipMAE, name: str, whole: Block, other: Block | None, config: ConfigDict) -> Row:
  """Raises InputError if the file is too short. Another's sound that is too short leaves no foreign case."""
  settings: dict[str, Any] = dict(hear=model.embedder.heard, calibration=model.calibration)
  draw = lambda frames: injection.draw_shifts(name, frames, number=config.shifts, seed=config.seed)
  result, cases = injection.judge(whole, whole, draw(whole.count), known_lag=config.known_lag, **settings)
  foreign: list[injection.Case] = []
  shortest = min(whole.count, other.count) if other else 0
  if shifts := draw(shortest):
    _, foreign = injection.judge(other, whole, shifts, **settings)
  seen = np.zeros(whole.count, bool)
  for face in whole.faces.values():
    seen |= np.isfinite(face.lips[:, 0])
  return Row(
    file=name, frames=whole.count, face_frames=int(seen.sum()), verdict=result.verdict, reason=result.reason,
    cases=tuple(cases), foreign=tuple(foreign),
  )  # fmt: skip


def totals(rows: Sequence[Row], *, known: bool) -> dict[str, Any]:
  """Shares are in 0 .. 1; None where nothing is counted. Files that cannot be read are in no share."""
  read = [row for row in rows if not row.error]
  share = lambda count, of: count / of if of else None
  own, foreign = ([getattr(row, name) for row in read] for name in ("cases", "foreign"))
  return {
    "files": len(rows),
    "unreadable": len(rows) - len(read),
    "files_with_a_face": share(sum(row.face_frames > 0 for row in read), len(read)),
    "frames_with_a_face": share(sum(row.face_frames for row in read), sum(row.frames for row in read)),
    "files_answered": share(sum(row.cases[0].lag is not None for row in read), len(read)),
    "injected": injection.summarise(own),
    "known": injection.summarise(own, known=True) if known else None,
    "foreign": injection.summarise(foreign),
  }


_ROWS = {"injected": "injected lags", "known": "known lag", "foreign": "another file's sound"}
_COLUMNS = {
  "answered": "answered", "right_of_answered": "of these right", "wrong": "wrong answers", "peaks_right": "peaks right",
}  # fmt: skip


def text(report: Mapping[str, Any]) -> str:
  """The table, and what its numbers mean."""
  percent = lambda value: "-" if value is None else f"{100 * value:.1f}"
  plain = lambda value: "-" if value is None else f"{value:.3f}"
  body = [
    [
      label,
      str(report[name]["cases"]),
      *(percent(report[name][column]) for column in _COLUMNS),
      plain(report[name]["calibration_error"]),
      plain(report[name]["calibration_error_by_chance"]),
    ]
    for name, label in _ROWS.items()
    if report[name]
  ]
  unreadable = [f"{row['file']} cannot be read: {row['error']}" for row in report["rows"] if "error" in row]
  return "\n".join([
    f"{report['checkpoint']} on {report['files']} files, {report['unreadable']} of which cannot be read. A face is"
    f" found in {percent(report['files_with_a_face'])} % of the files and {percent(report['frames_with_a_face'])} % of"
    f" the frames; {percent(report['files_answered'])} % of the files get an answer as they are.",
    "",
    *markdown(["%", "cases", *_COLUMNS.values(), "calibration error", "by chance"], body),
    "",
    "Right: within a frame of the file's own highest lag plus the injected lag (known lag: of the known lag plus it)."
    " A false peak moves with the picture, too: the row of another file's sound says how many are right by chance, and"
    " every answer in it is false. Calibration error by chance: of exact confidences with as few files.",
    *([""] if unreadable else []),
    *(f"- {printable(sentence)}" for sentence in unreadable),
  ])  # fmt: skip
