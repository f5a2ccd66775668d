"""Raw footage -> clean clips, a manifest that names every file with its outcome and reason, and records.

`data.clips` processes one file; this module processes many, each once. The folder with the clips of a file appears in
one rename. Its `done.json` holds the fingerprint of file and settings: a stopped run continues, and a changed file or
setting is processed again. `data.offsets` then measures how far picture and sound are apart, and `data.quality` says
which clips are kept.

  OUT/clips/<file>/NN.{mp4,flac,npz}, offsets.json   OUT/manifest.jsonl   OUT/records/

`data.engines` says in which processes, `data.storage` what is different in object storage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from synclipmae_jax.data import corpora, engines, labels, offsets, quality, records, storage
from synclipmae_jax.data.clips import CLIP_FILES, VERSION, Settings, backend_of, cut_file
from synclipmae_jax.data.corpora import SourceItem
from synclipmae_jax.data.engines.local import check
from synclipmae_jax.data.faces.sources import detector
from synclipmae_jax.data.offsets import OffsetModel
from synclipmae_jax.data.quality import Gates
from synclipmae_jax.types import FPS, InputError

MADE = ("clips", "records", "manifest.jsonl", "report.html")  # in `out`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """The outcome of every file: `entries` as in manifest.jsonl, and the records of accepted files."""

  entries: Sequence[dict[str, Any]]
  records: Path | str | None  # a URL if `out` is one
  notes: tuple[str, ...] = ()  # for the user

  def summary(self) -> dict[str, Any]:
    accepted = [entry for entry in self.entries if entry["outcome"] == "accepted"]
    clips = [clip for entry in accepted for clip in entry["clips"]]
    return {
      "files": len(self.entries),
      "accepted": len(accepted),
      "rejected": len(self.entries) - len(accepted),
      "clips": len(clips),
      "seconds": round(sum(clip["frames"] for clip in clips) / FPS, 2),
      "labelled": {name: sum(bool(entry[name]) for entry in accepted) for name in labels.OF_FILE},
      "upscaled_clips": sum(clip["upscale"] > 1 for clip in clips),
      "refused_clips": sum(len(entry["refused"]) for entry in self.entries),
      "corrected_clips": sum("offset" in clip for clip in clips),
      "reasons": {entry["file"]: entry["reason"] for entry in self.entries if entry["outcome"] == "rejected"},
      "records": str(self.records) if self.records else None,
      "notes": list(self.notes),
    }


# (the outcome, what returns the content of a file of `out` or raises OSError) -> content
Report = Callable[[Manifest, Callable[[str], bytes]], bytes]


def prepare(
  raw: str | os.PathLike, out: str | os.PathLike, *, corpus: str = "auto", faces: str = "auto", size: int = 256,
  min_seconds: float = 1.6, max_seconds: float = 10.0, audio_track: int | None = None, split: str = "hash",
  engine: str = "local", ray_address: str | None = None, workers: int | None = None, progress: bool = True,
  gates: Gates | None = None, offset_model: Callable[[], OffsetModel] | None = None, report: Report | None = None,
) -> Manifest:  # fmt: skip
  """Prepares every file below `raw` into `out`, as described above. May be interrupted and repeated.

  `raw` and `out` are folders, or URLs that fsspec opens. `engine`, `workers`, `ray_address`: see `data.engines.engine`;
  they do not change the output. Clips beyond the `gates` are refused. `offset_model` is called before the first file is
  read; its model measures, in this process, the offset of picture and sound of every clip, which is then corrected or
  refused. `report` makes the content of OUT/report.html.

  Raises InputError for a wrong argument or a folder without files, and if the engine or the storage fails. A bad file
  becomes an entry of the manifest.
  """
  settings = Settings(size=size, faces=faces, min_seconds=min_seconds, max_seconds=max_seconds, audio_track=audio_track)
  chosen = engines.engine(engine, workers=workers, ray_address=ray_address)
  with contextlib.ExitStack() as stack:
    places = stack.enter_context(storage.places(raw, out, one_process=engine == "local" and workers in (None, 1)))
    if not places.raw.is_dir():
      raise InputError(f"{places.raw} is not a folder")
    ours = {places.out_in_raw / name for name in MADE}  # `out` may lie inside `raw`
    items = list(corpora.load(corpus, split=split, without=ours)(places.raw))
    if not items:
      raise InputError(f"there is no file in {places.raw}")
    model = offset_model() if offset_model else None
    (places.out / "clips").mkdir(parents=True, exist_ok=True)
    stack.enter_context(_alone(places.out))
    stack.enter_context(_without_leftovers(places.out))
    run = stack.enter_context(chosen)
    return _prepare_items(items, settings, places, run=run, progress=progress, gates=gates, model=model, report=report)


def _prepare_items(
  items: Sequence[SourceItem], settings: Settings, places: storage.Places, *, run: engines.Engine, progress: bool,
  gates: Gates | None = None, model: OffsetModel | None = None, report: Report | None = None,
) -> Manifest:  # fmt: skip
  out = places.out
  _refuse_other_size(out, settings.size)
  done = {item.key: entry for item in items if (entry := _finished(item, settings, out))}
  with tqdm(total=len(items), initial=len(done), desc="prepare", unit="file", disable=not progress) as bar:
    for entry in _run([item for item in items if item.key not in done], settings, places, run):
      done[entry["file"]] = entry
      bar.update()

  if model:
    done |= _measured(done, model, places, progress=progress)
  shortest = round(settings.min_seconds * FPS)
  entries = [
    _manifest_line(
      item, quality.gated(done[item.key], gates or Gates(), shortest=shortest, known_lag=item.lag is not None)
    )
    for item in items
  ]
  lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in entries)
  _write_atomically(out / "manifest.jsonl", lines.encode())
  accepted = any(entry["outcome"] == "accepted" for entry in entries)
  written = records.write_records(out, stamp=settings.stamp, url=places.out_url, run=run) if accepted else None
  looked_for = settings.faces == "auto" and any(backend_of(item, settings) != "precomputed" for item in items)
  manifest = Manifest(entries=entries, records=written, notes=detector()[1] if looked_for else ())
  if report:
    _write_atomically(out / "report.html", report(manifest, places.read))
  places.send_files("manifest.jsonl", *(["report.html"] if report else []))
  return manifest


def _manifest_line(item: SourceItem, entry: dict[str, Any]) -> dict[str, Any]:
  names = ("corpus", "split", "identity", "split_group", "lag", *labels.OF_FILE)
  known = {name: getattr(item, name) for name in names}
  known["vocabularies"] = dict(item.vocabularies)
  known["provenance"] = {**item.provenance, "file": item.key}
  return {key: entry[key] for key in ("file", "outcome", "reason", "source", "clips", "refused", "folder")} | known


def _measured(
  done: Mapping[str, dict[str, Any]], model: OffsetModel, places: storage.Places, *, progress: bool
) -> dict[str, dict[str, Any]]:
  """The entries that have clips, with the offset of every clip."""
  cut = {key: entry for key, entry in done.items() if entry["clips"]}
  bar = tqdm(cut.items(), desc="offsets", unit="file", disable=not progress)
  return {key: _measured_file(entry, model, places) for key, entry in bar}


def _measured_file(entry: dict[str, Any], model: OffsetModel, places: storage.Places) -> dict[str, Any]:
  name = f"clips/{entry['folder']}"
  if known := offsets.known(entry, places.out / name, model):
    return known
  with places.kept(name, offsets.ANSWERS) as folder:
    return offsets.measured(entry, folder, model)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
  """Prevents two runs in one folder. The system releases the lock of a killed run."""
  with (out / ".lock").open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise InputError(f"another run is preparing {out}: wait for it, or name another folder") from None
    except OSError:
      pass  # a file system without locks
    yield


@contextlib.contextmanager
def _without_leftovers(out: Path) -> Iterator[None]:
  """Removes unfinished folders, at the beginning those of a killed run, at the end those of killed workers."""

  def remove() -> None:
    for folder in (out / "clips").glob(".*"):
      shutil.rmtree(folder, ignore_errors=True)

  remove()
  try:
    yield
  finally:
    remove()


# -- which files --


def _refuse_other_size(out: Path, size: int) -> None:
  """Raises InputError if `out` holds clips of another size, whose work would be lost."""
  for path in (out / "clips").glob("*/done.json"):
    try:
      known = json.loads(path.read_text())["fingerprint"]["settings"]["size"]
    except (OSError, ValueError, LookupError, TypeError):  # also a refusal that held for its run only
      continue
    if known != size:
      raise InputError(f"{out} holds clips of {known} pixels, not {size}: name another folder, or delete it first")
    return


def _folder(item: SourceItem, out: Path) -> Path:
  name = re.sub(r"[^\w.-]+", "_", item.key, flags=re.ASCII)[-80:]
  return out / "clips" / f"{name}-{hashlib.sha256(item.key.encode()).hexdigest()[:8]}"


def _fingerprint(item: SourceItem, settings: Settings) -> dict[str, Any]:
  """Fingerprint of the file, the files beside it and the settings."""

  def state(path: Path | None) -> list[int] | None:
    try:
      stat = path.stat() if path else None
    except OSError:
      return None
    return [stat.st_size, stat.st_mtime_ns] if stat else None

  beside = (item.faces_path, item.truth_path, *filter(None, [item.sound_path]))
  files = [state(path) for path in (item.path, *beside)]
  if (backend := backend_of(item, settings)) != "precomputed":  # the meaning of `auto` depends on the machine
    settings = dataclasses.replace(settings, faces=backend)
  return {"files": files, "settings": dataclasses.asdict(settings), "version": VERSION, "quality": quality.VERSION}


def _finished(item: SourceItem, settings: Settings, out: Path) -> dict[str, Any] | None:
  """The entry of an earlier run if its fingerprint is unchanged, else None."""
  folder = _folder(item, out)
  try:
    entry = json.loads((folder / "done.json").read_text())
  except (OSError, ValueError):
    return None
  if entry.get("fingerprint") != _fingerprint(item, settings):
    return None
  files = [folder / f"{number:02d}{end}" for number in range(len(entry["clips"])) for end in CLIP_FILES]
  return entry if all(file.exists() for file in files) else None


def _run(
  items: Sequence[SourceItem], settings: Settings, places: storage.Places, run: engines.Engine
) -> Iterator[dict[str, Any]]:
  """Yields the entry of every item when it is finished. A file that ends its process again and again is refused."""
  work = functools.partial(_prepare_unit, settings=settings, places=places)
  yield from run(work, [(item, places.times(item)) for item in items], lost=functools.partial(_lost, places=places))


_Unit = tuple[SourceItem, Mapping[str, int]]


def _prepare_unit(unit: _Unit, *, settings: Settings, places: storage.Places) -> dict[str, Any]:
  with places.at_hand(*unit) as (item, out):
    return _prepare_file(item, settings, out)


def _lost(unit: _Unit, reason: str, *, places: storage.Places) -> dict[str, Any]:
  with places.at_hand(unit[0], {}) as (item, out):
    return _refuse(item, out, f"reading it ended the process that read it ({reason})")


# -- one file and its folder --


def _prepare_file(item: SourceItem, settings: Settings, out: Path) -> dict[str, Any]:
  """Makes the clips of one file, or its refusal; the folder appears in one rename."""
  if entry := _finished(item, settings, out):
    return entry  # by a worker that was lost before it could say so
  fingerprint = _fingerprint(item, settings)
  unfinished = _empty_folder(item, out)
  try:
    cut = cut_file(item, settings, unfinished, check=check)
  except InputError as error:
    shutil.rmtree(unfinished, ignore_errors=True)
    return _refuse(item, out, str(error), fingerprint=fingerprint)
  except OSError:  # a full disk is not an error of the file
    shutil.rmtree(unfinished, ignore_errors=True)
    raise
  except Exception as error:  # an unforeseen error affects one file, which is tried again in the next run
    shutil.rmtree(unfinished, ignore_errors=True)
    return _refuse(item, out, f"unexpected {type(error).__name__}: {error}")
  except BaseException:
    shutil.rmtree(unfinished, ignore_errors=True)
    raise
  entry = {"outcome": "accepted", "reason": "", "source": cut.source, "clips": cut.clips, "fingerprint": fingerprint}
  return _finish(item, out, unfinished, entry)


def _refuse(item: SourceItem, out: Path, reason: str, *, fingerprint: dict[str, Any] | None = None) -> dict[str, Any]:
  """The entry of a refused file. Without a fingerprint the refusal holds for this run only."""
  entry = {"outcome": "rejected", "reason": reason, "source": None, "clips": [], "fingerprint": fingerprint}
  return _finish(item, out, _empty_folder(item, out), entry)


def _empty_folder(item: SourceItem, out: Path) -> Path:
  """A new folder, that no other worker has: one that counts as lost may still be at work on the same file."""
  folder = _folder(item, out)
  unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
  unfinished.mkdir()
  return unfinished


def _finish(item: SourceItem, out: Path, unfinished: Path, entry: dict[str, Any]) -> dict[str, Any]:
  folder = _folder(item, out)
  entry |= {"file": item.key, "folder": folder.name}
  (unfinished / "done.json").write_text(json.dumps(entry))
  shutil.rmtree(folder, ignore_errors=True)
  unfinished.rename(folder)
  return entry


def _write_atomically(path: Path, content: bytes) -> None:
  unfinished = path.with_name(f".{path.name}")
  unfinished.write_bytes(content)
  unfinished.rename(path)
