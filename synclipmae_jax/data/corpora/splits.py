"""Splits by a hash of the group: new files move no old one, and no group stands on two sides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def by_hash(groups: Iterable[str], *, test: float, val: float) -> dict[str, str]:
  """Group -> "train", "val" or "test", in shares of about `test` and `val`.

  Only where chance leaves a split empty (a handful of groups) does the group with the outermost hash fill it.
  """
  draw = {group: int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32 for group in groups}
  order = sorted(draw, key=draw.__getitem__)
  tests = sum(value < test for value in draw.values())
  vals = sum(value < test + val for value in draw.values()) - tests
  if len(order) > 1:
    tests = min(max(tests, 1), len(order) - 1)
  vals = vals if len(order) > 2 else 0  # of two groups one is for training
  if val and len(order) > 2:
    tests = min(tests, len(order) - 2)
    vals = min(max(vals, 1), len(order) - 1 - tests)
  return {group: "test" if i < tests else "val" if i < tests + vals else "train" for i, group in enumerate(order)}
