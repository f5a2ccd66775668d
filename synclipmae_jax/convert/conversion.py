"""Converts a donor's file to a checkpoint, verifies the result, and exports a checkpoint to the donor's naming."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tqdm import tqdm

from synclipmae_jax import checkpoints
from synclipmae_jax.convert import donor as donors
from synclipmae_jax.convert.destination import refuse_existing, whole_or_nothing
from synclipmae_jax.convert.donor import Donor, Match, Naming
from synclipmae_jax.convert.rules import invert
from synclipmae_jax.convert.source import Source, open_source
from synclipmae_jax.models.position import resize_position
from synclipmae_jax.sharding import tree_paths
from synclipmae_jax.types import InputError, Params

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
  """Description of a conversion: the entry `conversion` of the checkpoint's meta.json, and what the command prints.

  `source`: sha256 by file name. `dropped`: keys of the file that are not used; `skipped`: entries that are not
  weights -> reason. `lossy`: what cannot be restored bit for bit. `optional`: regular expression of leaves that a model
  may initialise itself -> reason.
  """

  donor: str
  naming: str
  licence: str
  source: Mapping[str, str]
  container: str
  dtype: str
  items: Mapping[str, int]  # parameters by item
  sizes: Mapping[str, Any]
  dropped: tuple[str, ...]
  skipped: Mapping[str, str]
  lossy: tuple[str, ...]
  optional: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """Wall time and peak anonymous memory (None where the system does not report it).

  Memory-mapped files are not counted: the system may drop their pages.
  """

  seconds: float
  peak_gib: float | None
  result_gib: float


def convert(
  name: str,
  *,
  src: str | Path,
  dst: str | Path,
  dtype: str = "float32",
  image_size: int | None = None,
  verify: bool = False,
  progress: bool = False,
) -> tuple[Conversion, Cost]:
  """Converts the weights in `src` to a checkpoint at `dst`, with one item for each part of the model that they fill.

  `image_size`: resize the positional tables to the grid of images of this size (pixels); by default they are kept, and
  a model that loads them resizes them. `verify`: read the result back and compare every tensor with the file.
  Raises InputError, and leaves nothing at `dst`, for a file of another donor, an incomplete one, and NaN or infinity.
  """
  donor, dst = donors.load(name), Path(dst)
  if dtype not in DTYPES:
    raise InputError(f"unknown dtype {dtype!r}: {' or '.join(DTYPES)}")
  refuse_existing(dst)
  with PeakMemory() as memory, open_source(src, folders=donor.folders, file=donor.file) as source:
    match = recognise(donor, source)
    sizes = donors.check(match, _name(source))
    result_bytes = sum(int(np.prod(shape)) for shape in match.plan.targets.values()) * DTYPES[dtype].itemsize
    _check_room(dst, result_bytes)
    with whole_or_nothing(dst) as place:
      hashes = _hash(source, progress)
      leaves = _fill(match, source, DTYPES[dtype], progress)
      resized = _resize_positions(leaves, sizes, image_size) if image_size is not None else {}
      items = _items(leaves | resized)
      done = Conversion(
        donor=donor.name,
        naming=match.naming.name,
        licence=donor.licence,
        source=hashes,
        container=source.container,
        dtype=dtype,
        items={item: sum(leaf.size for _, leaf in tree_paths(tree)) for item, tree in items.items()},
        sizes=sizes | ({"image_size": image_size} if resized else {}),
        dropped=match.dropped,
        skipped=dict(source.skipped),
        lossy=_losses(match, source, dtype, resized),
        optional=dict(donor.optional),
      )
      with _writing(place, result_bytes, progress):
        try:
          checkpoints.save_items(place, items, {"conversion": dataclasses.asdict(done)})
        except Exception as error:  # Orbax passes on file system errors of many types
          raise InputError(f"{dst} could not be written: {_reason(error)}") from error
      if verify:
        del items, leaves
        _verify(place, match, source, DTYPES[dtype], set(resized), progress)
  return done, Cost(seconds=memory.seconds, peak_gib=memory.peak_gib, result_gib=result_bytes / GIB)


def export(
  name: str, *, src: str | Path, dst: str | Path, dtype: str | None = None
) -> tuple[dict[str, int], tuple[str, ...], Cost]:
  """Writes items of a checkpoint (a step, a workdir, a converted donor) as safetensors in the donor's naming.

  Returns the number of parameters by item and the leaves that are left out because the donor has no name for them.
  Raises InputError if the checkpoint holds none of the donor's items, or an item of another kind of model.
  """
  from safetensors.numpy import save_file

  donor, dst = donors.load(name), Path(dst)
  if dst.suffix != ".safetensors":
    raise InputError(f"the destination of an export is a file name that ends in .safetensors, not {dst}")
  refuse_existing(dst)
  with PeakMemory() as memory:
    names = {target.partition("/")[0] for naming in donor.namings for rule in naming.rules for target in rule.targets}
    held = sorted(names & set(checkpoints.list_items(src)))
    if not held:
      raise InputError(f"{src} holds none of the items of {donor.title} ({', '.join(sorted(names))})")
    leaves = {path: leaf for item in held for path, leaf in tree_paths({item: checkpoints.load_item(src, item)})}
    naming = _exporting(donor, leaves, checkpoints.load_meta(src), src)
    tensors = invert(naming.rules, leaves)
    covered = {target for rule in naming.rules for target in rule.targets}
    left_out = tuple(sorted(set(leaves) - covered))
    cast = (lambda x: x.astype(DTYPES[dtype])) if dtype else (lambda x: x)
    values = {key: np.ascontiguousarray(cast(make())) for key, make in tensors.items()}
    result_bytes = sum(value.nbytes for value in values.values())
    _check_room(dst, result_bytes)
    with whole_or_nothing(dst) as place:
      save_file(values, place, metadata={"format": "pt", "licence": donor.licence, "naming": naming.name})
  counts = {item: sum(leaf.size for path, leaf in leaves.items() if path.startswith(f"{item}/")) for item in held}
  return counts, left_out, Cost(seconds=memory.seconds, peak_gib=memory.peak_gib, result_gib=result_bytes / GIB)


def recognise(donor: Donor, source: Source) -> Match:
  """The donor's naming that fits the file best. Raises InputError if the file fits another donor completely."""
  match = donors.match([donor], source.shapes)
  if match.plan.distance:
    other = donors.match([donors.load(name) for name in donors.NAMES], source.shapes)
    if other.donor is not donor and not other.plan.missing and other.plan.targets:
      raise InputError(
        f"{_name(source)} is not a {donor.title} checkpoint: its keys are those of {other.donor.title} "
        f"({other.naming.name}), use `convert {other.donor.name}`"
      )
  return match


def _exporting(donor: Donor, leaves: Mapping[str, np.ndarray], meta: Mapping[str, Any], src: str | Path) -> Naming:
  """The first naming whose leaves are all there; the rules of the original conversion are tried first."""
  held = {path.partition("/")[0] for path in leaves}
  came_in = meta.get("conversion", {}).get("naming")
  came_by = [naming.rules for naming in donor.namings if naming.name == came_in]
  lacking = {}
  for naming in sorted(donor.namings, key=lambda naming: naming.rules not in came_by):
    wanted = [target for rule in naming.rules if not rule.optional for target in rule.targets]
    lacking[naming.name] = [t for t in wanted if t.partition("/")[0] in held and t not in leaves]
    if not lacking[naming.name]:
      return naming
  fewest = min(lacking.values(), key=len)
  raise InputError(f"{src} is not {donor.title}: it has no {', '.join(fewest[:6])}{', ...' if len(fewest) > 6 else ''}")


# The steps of a conversion


def _hash(source: Source, progress: bool) -> dict[str, str]:
  total = sum(file.stat().st_size for file in source.files)
  with _bar("hashing", total, progress) as bar:
    return source.sha256(progress=bar.update)


def _fill(match: Match, source: Source, dtype: np.dtype, progress: bool) -> dict[str, np.ndarray]:
  total = sum(tensor_bytes(source, key) for key in match.keys.values())
  with _bar("converting", total, progress) as bar:

    def finite(key: str, tensor: np.ndarray) -> None:
      if not np.isfinite(tensor).all():
        raise InputError(f"{match.keys[key]} in {_name(source)} holds NaN or infinity: the file is damaged")
      bar.update(tensor.nbytes)

    def still_finite(keys: Sequence[str], value: np.ndarray) -> None:
      if not np.isfinite(value).all():
        names = ", ".join(match.keys[key] for key in keys)
        raise InputError(f"{names} in {_name(source)} would hold NaN or infinity as {dtype.name}")

    with np.errstate(over="ignore"):
      return match.plan.fill(lambda key: source.read(match.keys[key]), dtype, taken=finite, laid=still_finite)


def _resize_positions(
  leaves: Mapping[str, np.ndarray], sizes: Mapping[str, Any], image_size: int
) -> dict[str, np.ndarray]:
  tables = {path: table for path, table in leaves.items() if path.endswith("/position")}
  if not tables:
    raise InputError("--image-size is for donors with a positional table")
  if image_size < 1 or image_size % sizes["patch"]:
    raise InputError(f"the image size must be a multiple of the patch size {sizes['patch']}, not {image_size}")
  grid = image_size // sizes["patch"]
  return {
    path: resize_position(np.asarray(table, np.float32), grid).astype(table.dtype)
    for path, table in tables.items()
    if len(table) != grid * grid
  }


def _losses(match: Match, source: Source, dtype: str, resized: Mapping[str, Any]) -> tuple[str, ...]:
  losses = [rule.layout.lossy for rule, _ in match.plan.steps if rule.layout.lossy]
  losses += [f"{path} resized" for path in resized]
  types = {source.dtypes[key] for key in match.keys.values()}
  if wider := sorted(kind for kind in types if not np.can_cast(np.dtype(kind), DTYPES[dtype])):
    losses.append(f"{', '.join(wider)} rounded to {dtype}")
  return tuple(losses)


def _verify(place: Path, match: Match, source: Source, dtype: np.dtype, resized: set[str], progress: bool) -> None:
  """Reads the result back and compares it with the file bit for bit. Raises InputError for a difference.

  The rules are inverted; lossy rules are applied forward to the file instead.
  """
  leaves = {
    path: leaf
    for item in {target.partition("/")[0] for target in match.plan.targets}
    for path, leaf in tree_paths({item: checkpoints.load_item(place, item)})
  }
  with _bar("verifying", sum(tensor_bytes(source, key) for key in match.keys.values()), progress) as bar:
    for rule, i in match.plan.blocks():
      if resized & set(rule.targets):
        continue
      keys = [match.keys[key.replace("{i}", str(i))] for key in rule.sources]
      tensors = [source.read(key) for key in keys]
      got: Sequence[Any] = [leaves[target] if i is None else leaves[target][i] for target in rule.targets]
      want: Sequence[np.ndarray] = tensors
      if rule.layout.lossy:
        want = rule.layout.forward(*tensors)
      else:
        got = rule.layout.inverse(*got)
      if not all(np.array_equal(a, b.astype(dtype)) for a, b in zip(got, want, strict=True)):
        raise InputError(f"verification failed for {', '.join(keys)}: the result was removed")
      bar.update(sum(tensor.nbytes for tensor in tensors))


def _check_room(dst: Path, needed: int) -> None:
  place = next(parent for parent in dst.absolute().parents if parent.exists())
  free = shutil.disk_usage(place).free
  if free < needed * 1.02 + 2**20:  # random weights do not compress
    raise InputError(f"no space for {dst}: it needs {needed / GIB:.2f} GiB, and {place} has {free / GIB:.2f} GiB left")


def _items(leaves: Mapping[str, np.ndarray]) -> dict[str, Params]:
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, last = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def tensor_bytes(source: Source, key: str) -> int:
  return int(np.prod(source.shapes[key])) * np.dtype(source.dtypes[key]).itemsize


def _name(source: Source) -> str:
  return source.files[0].name if len(source.files) == 1 else str(source.files[0].parent)


def _reason(error: BaseException) -> str:
  while error.__cause__ is not None:
    error = error.__cause__
  reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
  full = os.strerror(errno.ENOSPC)  # tensorstore puts it between five paths
  return full if full in reason else reason


# Progress and memory


@contextlib.contextmanager
def _bar(what: str, total: int, progress: bool) -> Iterator[tqdm]:
  with tqdm(desc=what, total=total, unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
    yield bar


@contextlib.contextmanager
def _writing(place: Path, total: int, progress: bool) -> Iterator[None]:
  """Progress bar over the bytes written so far."""
  written = lambda: sum(path.stat().st_size for path in place.parent.rglob("*") if path.is_file())
  with _bar("writing", total, progress) as bar:

    def update() -> None:
      with contextlib.suppress(OSError):  # a file was renamed between listing and stat
        bar.update(min(written(), total) - bar.n)

    with _every(0.5, update) if progress else contextlib.nullcontext():
      yield


@contextlib.contextmanager
def _every(seconds: float, do: Callable[[], None]) -> Iterator[None]:
  done = threading.Event()

  def loop() -> None:
    while not done.wait(seconds):
      do()

  thread = threading.Thread(target=loop, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()


class PeakMemory:
  """Wall time and sampled peak anonymous memory of this process inside the block; None on systems other than Linux."""

  def __enter__(self) -> PeakMemory:
    self.peak_gib: float | None = None
    self.seconds = 0.0
    self._stack = contextlib.ExitStack()
    self._started = time.perf_counter()
    self._sample()
    self._stack.enter_context(_every(0.02, self._sample))
    return self

  def __exit__(self, *_: object) -> None:
    self._stack.close()
    self._sample()
    self.seconds = time.perf_counter() - self._started

  def _sample(self) -> None:
    with contextlib.suppress(OSError, StopIteration):
      with open("/proc/self/status") as status:
        kib = int(next(line for line in status if line.startswith("RssAnon")).split()[1])
      self.peak_gib = max(self.peak_gib or 0.0, kib * 1024 / GIB)
