"""Footage and clips in object storage: gs://, s3://, and whatever else fsspec opens.

Corpora and `data.prepare` read folders. Of a URL they get a mirror: a local folder in which small files have their
content, and every other file has only its size. Its modification time is a hash of what the store says of the object,
so that a replaced object is noticed as a changed file is. A worker fetches the files of one item into a temporary
folder, and sends the clips.

An object store has no rename. A folder is therefore sent in an order: its old content is removed, the files follow, and
the file that says that it is whole (`done.json`, `features.json`) is the last. A folder without it does not count. Two
runs at once in one folder are not noticed; they do the same work twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from synclipmae_jax.data.corpora import SourceItem
from synclipmae_jax.types import InputError

# What corpora read when they list their files.
TABLES = (".json", ".txt", ".tsv", ".csv", ".pkl", ".align", ".truth.npz")
_VERSION = ("generation", "etag", "md5", "crc32c", "mtime", "updated", "lastmodified", "last_modified", "created")
_FILES = ("path", "sound_path", "faces_path", "truth_path")  # of a SourceItem


def is_url(path: str | os.PathLike) -> bool:
  return "://" in os.fspath(path)


@contextlib.contextmanager
def mirror(url: str, *, read: tuple[str, ...]) -> Iterator[Path]:
  """A mirror of `url` while the block lasts, with the content of files whose names end with one of `read`.

  Raises InputError if the store cannot be read. Errors of the block that name the mirror name the URL instead.
  """
  with tempfile.TemporaryDirectory(prefix="synclipmae-") as temporary:
    with _told(url, "read"):
      files, root = _open(url)
      folder = Path(temporary, PurePosixPath(root).name or "root")
      folder.mkdir()
      if files.isfile(root):
        raise InputError(f"{url} is not a folder")
      wanted = []
      for name, facts in sorted(files.find(root, detail=True).items()):
        below = PurePosixPath(name[len(root) :].lstrip("/"))
        if below.name == "" or ".." in below.parts or name.endswith("/"):
          continue
        path = folder / below
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
          file.truncate(facts["size"])
        os.utime(path, ns=(0, _version(facts)))
        if name.endswith(read):
          wanted.append((name, path))
      times = [path.stat().st_mtime_ns for _, path in wanted]
      if wanted:  # many at once, where the store's client can
        files.get([name for name, _ in wanted], [os.fspath(path) for _, path in wanted])
      for (_, path), time in zip(wanted, times, strict=True):
        os.utime(path, ns=(0, time))
    try:
      yield folder
    except InputError as error:
      raise InputError(str(error).replace(os.fspath(folder), url.rstrip("/"))) from error


def _version(facts: Mapping[str, Any]) -> int:
  """A number of nanoseconds that changes with the object."""
  known = {key.lower(): str(value) for key, value in facts.items()}
  known = {key: value for key, value in known.items() if key.startswith(_VERSION)}
  return int(hashlib.sha256(repr(sorted(known.items())).encode()).hexdigest()[:12], 16)


@contextlib.contextmanager
def places(raw: str | os.PathLike, out: str | os.PathLike, *, one_process: bool) -> Iterator[Places]:
  """The places of a run while the block lasts. Raises InputError if a store cannot be read."""
  raw_url, out_url = (os.fspath(each).rstrip("/") if is_url(each) else "" for each in (raw, out))
  if not one_process and "memory" in (raw_url.partition(":")[0], out_url.partition(":")[0]):
    raise InputError("memory:// is the memory of one process: use the local engine with one worker")
  with contextlib.ExitStack() as stack:
    # Path.resolve raises RuntimeError for a loop of links
    read = stack.enter_context(mirror(raw_url, read=TABLES)) if raw_url else Path(os.path.realpath(raw))
    made = stack.enter_context(mirror(out_url, read=(".json", ".jsonl"))) if out_url else Path(out)
    inside = Path(os.path.realpath(made))
    if raw_url and out_url.startswith(f"{raw_url}/"):
      inside = read / out_url.removeprefix(f"{raw_url}/")
    yield Places(raw=read, out=made, raw_url=raw_url, out_url=out_url, out_in_raw=inside)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
  """Where footage is read and clips go. Of a URL the path is its mirror, which exists on one machine only."""

  raw: Path
  out: Path
  out_in_raw: Path  # `out`, where a listing of `raw` would find it
  raw_url: str = ""
  out_url: str = ""

  def times(self, item: SourceItem) -> dict[str, int]:
    """The files that an item has, by the name of its field, with their modification times in nanoseconds."""
    found = {}
    for name in _FILES if self.raw_url else ():
      with contextlib.suppress(OSError, TypeError):
        found[name] = os.stat(getattr(item, name)).st_mtime_ns
    return found

  @contextlib.contextmanager
  def at_hand(self, item: SourceItem, times: Mapping[str, int]) -> Iterator[tuple[SourceItem, Path]]:
    """An item with its files on this machine, and the folder whose `clips` are then kept. `times`: see `times`.

    Raises InputError if the store cannot be read or written, and for a folder that this machine does not have.
    """
    if not self.raw_url and not self.out_url:
      if not self.raw.is_dir() or not (self.out / "clips").is_dir():
        raise InputError(
          f"a machine has no {self.raw if not self.raw.is_dir() else self.out}: on a cluster both folders must be in"
          " object storage, or on a disk that all machines share"
        )
      yield item, self.out
      return
    with tempfile.TemporaryDirectory(prefix="synclipmae-") as temporary:
      raw, out = Path(temporary, "raw"), Path(temporary, "out")
      if self.raw_url:
        paths = {name: raw / path.relative_to(self.raw) for name in _FILES if (path := getattr(item, name))}
        for name, time in times.items():
          if fetch(f"{self.raw_url}/{paths[name].relative_to(raw).as_posix()}", paths[name]):
            os.utime(paths[name], ns=(0, time))
        item = dataclasses.replace(item, **paths)
      if not self.out_url:
        yield item, self.out
        return
      (out / "clips").mkdir(parents=True)
      yield item, out
      for folder in (out / "clips").iterdir():
        send(folder, f"{self.out_url}/clips/{folder.name}", last="done.json")

  @contextlib.contextmanager
  def kept(self, name: str, made: str) -> Iterator[Path]:
    """The folder `name` below `out` with its content, on this machine; a file `made` in it meanwhile is kept."""
    if not self.out_url:
      yield self.out / name
      return
    with fetched(f"{self.out_url}/{name}") as folder:
      (folder / made).unlink(missing_ok=True)
      yield folder
      if (folder / made).exists():
        send(folder / made, f"{self.out_url}/{name}/{made}")

  def read(self, name: str) -> bytes:
    """The content of a file below `out`. Raises OSError if there is none, InputError if the store cannot be read."""
    if not self.out_url:
      return (self.out / name).read_bytes()
    with tempfile.TemporaryDirectory(prefix="synclipmae-") as temporary:
      path = Path(temporary, PurePosixPath(name).name)
      if not fetch(f"{self.out_url}/{name}", path):
        raise FileNotFoundError(f"{self.out_url}/{name}")
      return path.read_bytes()

  def send_files(self, *names: str) -> None:
    """Sends files that were made in the mirror of `out` itself."""
    for name in names if self.out_url else ():
      send(self.out / name, f"{self.out_url}/{name}")


def fetch(url: str, path: Path) -> bool:
  """Copies one object to `path`; False if there is none. Raises InputError if it cannot be read."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with _told(url, "read"):
    files, name = _open(url)
    try:
      files.get_file(name, os.fspath(path))
    except FileNotFoundError:
      path.unlink(missing_ok=True)
      return False
  return True


@contextlib.contextmanager
def fetched(folder: str | Path) -> Iterator[Path]:
  """A folder on this machine with the content of `folder`, which may be a URL."""
  if not is_url(folder):
    yield Path(folder)
    return
  with tempfile.TemporaryDirectory(prefix="synclipmae-") as temporary:
    with _told(str(folder), "read"):
      files, root = _open(str(folder))
      for name in files.find(root):
        files.get_file(name, os.path.join(temporary, PurePosixPath(name).name))
    yield Path(temporary)


def send(source: Path, url: str, *, last: str = "", replace: bool = True) -> None:
  """Sends a file, or the files of a folder, of which `last` is the last; `replace`: what the folder held is removed.

  Raises InputError if the store cannot be written.
  """
  with _told(url, "written"):
    files, root = _open(url)
    if source.is_file():
      files.put_file(os.fspath(source), root)
      return
    if replace and files.exists(root):
      with contextlib.suppress(FileNotFoundError):
        if files.cat_file(f"{root}/{last}") == (source / last).read_bytes():
          return  # sent by a worker that was lost before it could say so
        files.rm_file(f"{root}/{last}")
      files.rm(root, recursive=True)
    for path in sorted(source.iterdir(), key=lambda path: (path.name == last, path.name)):
      files.put_file(os.fspath(path), f"{root}/{path.name}")


def _open(url: str) -> tuple[Any, str]:
  """The file system of a URL, and the path in it without a slash at its end."""
  import fsspec

  folders = {"auto_mkdir": True} if url.startswith(("file:", "local:")) else {}  # object stores have none
  files, root = fsspec.core.url_to_fs(url, **folders)
  files.invalidate_cache()  # another process may have written meanwhile
  return files, root.rstrip("/")


@contextlib.contextmanager
def _told(url: str, done: str) -> Iterator[None]:
  """Turns what a client raises, which has no common kind, into one sentence."""
  try:
    yield
  except InputError:
    raise
  except ImportError as error:  # names the package that opens such URLs
    raise InputError(f"{url} cannot be {done} ({error})") from error
  except Exception as error:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    raise InputError(f"{url} cannot be {done} ({reason.strip().rstrip('.')})") from error
