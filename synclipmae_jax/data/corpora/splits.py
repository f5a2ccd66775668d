"""Which split a file is in. No group (a speaker, a source video) stands on two sides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from synclipmae_jax.types import InputError

RULES = ("hash", "random100")
OVERLAP = "overlap"  # files for training, and for validation, of a group that the official test set (or `val`) holds
_HELD_OUT = 100  # files of the validation and of the test split in the paper


def assign(files: Sequence[tuple[str, str]], *, rule: str = "hash") -> list[str]:
  """The split of every file, given as (group, official split), where "" is: the corpus has none.

  Official splits stand unless one divides a group. Of such a group only the files of `test`, or else of `val`, keep
  theirs, so that published test sets stay whole. The others are in the split `OVERLAP`, which nothing reads.
  Without an official split the rule is `hash` (`by_hash`, a tenth each) or `random100` (`by_count`).
  """
  if rule not in RULES:
    raise InputError(f"unknown rule for splits {rule!r}: choose one of {', '.join(RULES)}")
  held: dict[str, str] = {}
  for split in ("train", "val", "test"):
    held |= {group: split for group, official in files if official == split}
  free = [group for group, official in files if not official]
  drawn = by_count(free) if rule == "random100" and free else by_hash(free, test=0.1, val=0.1)
  drawn |= held  # a file without an official split stays with its group
  return [
    drawn[group] if not official else OVERLAP if held.get(group, official) != official else official
    for group, official in files
  ]


def by_hash(groups: Iterable[str], *, test: float, val: float) -> dict[str, str]:
  """Group -> "train", "val" or "test", in shares of about `test` and `val`. New files move no old group.

  Only where chance leaves a split empty (a handful of groups) does the group with the outermost hash fill it.
  """
  draw = _drawn(groups)
  order = sorted(draw, key=draw.__getitem__)
  tests = sum(value < test for value in draw.values())
  vals = sum(value < test + val for value in draw.values()) - tests
  if test and len(order) > 1:
    tests = min(max(tests, 1), len(order) - 1)
  vals = vals if len(order) > 2 else 0  # of two groups one is for training
  if val and len(order) > 2:
    tests = min(tests, len(order) - 2)
    vals = min(max(vals, 1), len(order) - 1 - tests)
  return {group: "test" if i < tests else "val" if i < tests + vals else "train" for i, group in enumerate(order)}


def by_count(files: Iterable[str]) -> dict[str, str]:
  """Group -> split by the paper's rule, "randomly sample 100 val + 100 test", of whole groups.

  `files` names the group of every file. In the order of their hash, groups fill the test split until it has 100 files,
  then the validation split; with large groups they have more. Raises InputError if nothing is left for training.
  """
  sizes = Counter(files)
  draw = _drawn(sizes)
  splits, waiting = {}, ["test", "val"]
  room = _HELD_OUT
  for group in sorted(draw, key=draw.__getitem__):
    splits[group] = waiting[0] if waiting else "train"
    room -= sizes[group]
    if waiting and room <= 0:
      waiting, room = waiting[1:], _HELD_OUT
  if "train" not in splits.values():
    raise InputError(
      f"random100 holds out 100 files for validation and 100 for testing: {sizes.total()} files of {len(sizes)} groups"
      " leave none for training"
    )
  return splits


def _drawn(groups: Iterable[str]) -> dict[str, float]:
  """Group -> a number in [0, 1) that depends on nothing but its name."""
  return {group: int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32 for group in groups}
