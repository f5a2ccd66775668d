"""Raw footage -> clean clips, a manifest that names every file with its outcome and reason, and records.

`data.clips` processes one file; this module processes many, each once. The folder with the clips of a file appears in
one rename. Its `done.json` holds the fingerprint of file and settings: a stopped run continues, and a changed file or
setting is processed again.

  OUT/clips/<file>/NN.{mp4,flac,npz}   OUT/manifest.jsonl   OUT/records/
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from synclipmae_jax.data import corpora, labels, records
from synclipmae_jax.data.clips import CLIP_FILES, VERSION, Settings, backend_of, cut_file
from synclipmae_jax.data.corpora import SourceItem
from synclipmae_jax.data.faces.sources import detector
from synclipmae_jax.data.media import watchdog
from synclipmae_jax.types import FPS, InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """The outcome of every file: `entries` as in manifest.jsonl, and the records of accepted files."""

  entries: Sequence[dict[str, Any]]
  records: Path | None
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
      "reasons": {entry["file"]: entry["reason"] for entry in self.entries if entry["outcome"] == "rejected"},
      "records": str(self.records) if self.records else None,
      "notes": list(self.notes),
    }


def prepare(
  raw: str | os.PathLike, out: str | os.PathLike, *, corpus: str = "auto", faces: str = "auto", size: int = 256,
  min_seconds: float = 1.6, max_seconds: float = 10.0, audio_track: int | None = None, split: str = "hash",
  workers: int = 1, progress: bool = True,
) -> Manifest:  # fmt: skip
  """Prepares every file below `raw` into `out`, as described above. May be interrupted and repeated.

  Raises InputError for a wrong argument or a folder without files. A bad file becomes an entry of the manifest.
  """
  settings = Settings(size=size, faces=faces, min_seconds=min_seconds, max_seconds=max_seconds, audio_track=audio_track)
  raw, out = Path(os.path.realpath(raw)), Path(out)  # Path.resolve raises RuntimeError for a loop of links
  if not raw.is_dir():
    raise InputError(f"{raw} is not a folder")
  if workers < 1:
    raise InputError(f"the number of workers must be at least 1, not {workers}")
  made = ("clips", "records", "manifest.jsonl")  # excluded from the search: `out` may lie inside `raw`
  ours = {Path(os.path.realpath(out)) / name for name in made}
  items = [item for item in corpora.load(corpus, split=split)(raw) if ours.isdisjoint((item.path, *item.path.parents))]
  if not items:
    raise InputError(f"there is no file in {raw}")
  (out / "clips").mkdir(parents=True, exist_ok=True)
  with _alone(out):
    return _prepare_items(items, settings, out, workers=workers, progress=progress)


def _prepare_items(
  items: Sequence[SourceItem], settings: Settings, out: Path, *, workers: int, progress: bool
) -> Manifest:
  _refuse_other_size(out, settings.size)
  done = {item.key: entry for item in items if (entry := _finished(item, settings, out))}
  with tqdm(total=len(items), initial=len(done), desc="prepare", unit="file", disable=not progress) as bar:
    for entry in _run([item for item in items if item.key not in done], settings, out, workers):
      done[entry["file"]] = entry
      bar.update()

  entries = [_manifest_line(item, done[item.key]) for item in items]
  lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in entries)
  _write_atomically(out / "manifest.jsonl", lines)
  accepted = any(entry["outcome"] == "accepted" for entry in entries)
  written = records.write_records(out, stamp=settings.stamp) if accepted else None
  looked_for = settings.faces == "auto" and any(backend_of(item, settings) != "precomputed" for item in items)
  return Manifest(entries=entries, records=written, notes=detector()[1] if looked_for else ())


def _manifest_line(item: SourceItem, entry: dict[str, Any]) -> dict[str, Any]:
  names = ("corpus", "split", "identity", "split_group", "lag", *labels.OF_FILE)
  known = {name: getattr(item, name) for name in names}
  known["vocabularies"] = dict(item.vocabularies)
  known["provenance"] = {**item.provenance, "file": item.key}
  return {key: entry[key] for key in ("file", "outcome", "reason", "source", "clips", "folder")} | known


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


# -- which files, in which processes --


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
  return {"files": files, "settings": dataclasses.asdict(settings), "version": VERSION}


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


def _run(items: Sequence[SourceItem], settings: Settings, out: Path, workers: int) -> Iterator[dict[str, Any]]:
  """Yields the entry of every item when it is finished.

  A file that ends its process, or whose decoder does not return, is tried once more, alone, and then refused. Other
  files are not affected. With one worker there is no other process.
  """
  if workers == 1 or len(items) <= 1:
    for item in items:
      yield _prepare_file(item, settings, out)
    return
  context = multiprocessing.get_context("spawn")
  stop = context.Event()
  waiting, alone = list(reversed(items)), []
  while waiting or alone:
    limit = 1 if alone else workers
    queue = alone if alone else waiting
    with concurrent.futures.ProcessPoolExecutor(limit, context, _start_worker, (stop,)) as pool:
      running: dict[concurrent.futures.Future, SourceItem] = {}
      try:
        while queue or running:
          while queue and len(running) < 2 * limit and not (queue is alone and running):
            running[pool.submit(_prepare_file, queue[-1], settings, out)] = queue[-1]
            queue.pop()  # not earlier: a pool that broke meanwhile accepts nothing
          finished, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
          for future in finished:
            entry = future.result()  # BrokenProcessPool: the item stays a suspect
            running.pop(future)
            yield entry
      except BrokenProcessPool:
        if queue is alone:
          for item in running.values():
            reason = f"reading it ended the process that read it ({watchdog.REASONS})"
            yield _refuse(item, out, reason)
        else:
          alone.extend(running.values())
      except BaseException:  # Ctrl-C, or the consumer has stopped
        stop.set()
        pool.shutdown(cancel_futures=True)
        raise


_stop = None  # in a worker: set by the parent to stop the current file


def _start_worker(stop) -> None:
  global _stop
  _stop = stop
  threading.Thread(target=_end_with_parent, daemon=True).start()
  watchdog.end_process_after(watchdog.NO_END)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which sets `stop`
  os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is one process a core


def _end_with_parent() -> None:
  """Ends this worker if its parent was killed: a killed parent sets no event, and the worker would wait forever."""
  multiprocessing.parent_process().join()
  os._exit(1)


class _Stopped(BaseException):
  """Stops a worker. Not an Exception: the file is not refused."""


def _check() -> None:
  if _stop is not None and _stop.is_set():
    raise _Stopped


# -- one file and its folder --


def _prepare_file(item: SourceItem, settings: Settings, out: Path) -> dict[str, Any]:
  """Makes the clips of one file, or its refusal; the folder appears in one rename."""
  fingerprint = _fingerprint(item, settings)
  unfinished = _empty_folder(item, out)
  try:
    cut = cut_file(item, settings, unfinished, check=_check)
  except InputError as error:
    return _refuse(item, out, str(error), fingerprint=fingerprint)
  except OSError:  # a full disk is not an error of the file
    shutil.rmtree(unfinished, ignore_errors=True)
    raise
  except Exception as error:  # an unforeseen error affects one file, which is tried again in the next run
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
  folder = _folder(item, out)
  unfinished = folder.with_name(f".{folder.name}")
  shutil.rmtree(unfinished, ignore_errors=True)
  unfinished.mkdir()
  return unfinished


def _finish(item: SourceItem, out: Path, unfinished: Path, entry: dict[str, Any]) -> dict[str, Any]:
  folder = _folder(item, out)
  entry |= {"file": item.key, "folder": folder.name}
  (unfinished / "done.json").write_text(json.dumps(entry))
  shutil.rmtree(folder, ignore_errors=True)
  unfinished.rename(folder)
  return entry


def _write_atomically(path: Path, text: str) -> None:
  unfinished = path.with_name(f".{path.name}")
  unfinished.write_text(text)
  unfinished.rename(path)
