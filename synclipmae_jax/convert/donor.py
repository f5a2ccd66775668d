"""Donors: sources of pretrained weights, the namings of their released files, and the checkpoint items they fill."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from synclipmae_jax.convert.rules import Misfit, Plan, Rule, Shape
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.sharding import tree_paths
from synclipmae_jax.types import InputError

NAMES = (
  "sapiens", "wav2vec2", "vit_mae", "wan_vace", "wan_vae", "syncnet", "stable_syncnet", "vocalist", "auto_avsr",
  "av_hubert", "videomae", "marlin", "inception", "i3d",
)  # fmt: skip
_SHOWN = 6  # keys of each side of a difference


@dataclasses.dataclass(frozen=True)
class Naming:
  """One way in which the tensors of a donor are named in released files.

  `rename`: pairs of a regular expression and its replacement, applied in order, from a file's key to the key that the
  rules use. `drop`: regular expressions of (renamed) keys that are known and not used.
  """

  name: str
  rules: tuple[Rule, ...]
  rename: tuple[tuple[str, str], ...] = ()
  drop: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Donor:
  """One source of weights.

  `sizes`: shapes of the target leaves -> keyword arguments of the modules; `modules`: these arguments -> the module of
  each item, which the leaves must fill. `optional`: regular expression of leaves `item/...` -> the reason why a model
  may initialise them itself or leave them out. `folders`, `file`: location of the weights in a released repository (see
  `open_source`).
  """

  name: str
  title: str
  licence: str
  origin: str
  namings: tuple[Naming, ...]
  sizes: Callable[[Mapping[str, Shape]], dict[str, Any]]
  modules: Callable[..., dict[str, Functional]]
  optional: Mapping[str, str] = dataclasses.field(default_factory=dict)
  folders: tuple[str, ...] = ()
  file: str = ""

  def is_optional(self, leaf: str) -> bool:
    return any(re.fullmatch(pattern, leaf) for pattern in self.optional)


@dataclasses.dataclass(frozen=True)
class Match:
  """A naming applied to the keys of a file. `keys`: key of the rules -> key of the file; `dropped`: unused keys."""

  donor: Donor
  naming: Naming
  keys: Mapping[str, str]
  dropped: tuple[str, ...]
  plan: Plan


def load(name: str) -> Donor:
  """The donor of this name. Raises InputError for an unknown one."""
  if name not in NAMES:
    raise InputError(f"unknown donor {name!r}: one of {', '.join(NAMES)}")
  return importlib.import_module(f"synclipmae_jax.convert.{name}").DONOR


def match(donors: Iterable[Donor], shapes: Mapping[str, Shape]) -> Match:
  """The naming with the fewest missing and unused keys; the match may be incomplete."""
  matches = [_lay(donor, naming, shapes) for donor in donors for naming in donor.namings]
  return min(matches, key=lambda match: match.plan.distance)


def _lay(donor: Donor, naming: Naming, shapes: Mapping[str, Shape]) -> Match:
  keys: dict[str, str] = {}
  dropped = []
  for key in shapes:
    ours = key
    for pattern, replacement in naming.rename:
      ours = re.sub(pattern, replacement, ours)
    if any(re.fullmatch(pattern, ours) for pattern in naming.drop):
      dropped.append(key)
    elif ours in keys:
      keys[f"{key}, a second time"] = key  # a duplicate stays unused and is reported as such
    else:
      keys[ours] = key
  plan = Plan(naming.rules, {ours: shapes[key] for ours, key in keys.items()})
  return Match(donor, naming, keys, tuple(dropped), plan)


def check(match: Match, file: str) -> dict[str, Any]:
  """Sizes of the model in the file. Raises InputError, with both sides of the difference, if it does not fit."""
  plan, donor = match.plan, match.donor
  misfits = list(plan.misfits)
  sizes: dict[str, Any] = {}
  if not plan.missing and not misfits:
    try:
      sizes = donor.sizes(plan.targets)
      expected = abstract_shapes(donor.modules(**sizes))
    except (ValueError, TypeError, LookupError, ArithmeticError, InputError) as error:
      raise InputError(f"{file} has the keys of {donor.title}, but its shapes do not fit: {error}") from error
    items = {target.partition("/")[0] for target in plan.targets}
    expected = {leaf: shape for leaf, shape in expected.items() if leaf.partition("/")[0] in items}
    misfits = plan.against(expected)
    unfilled = [leaf for leaf in expected if leaf not in plan.targets and not donor.is_optional(leaf)]
    if unfilled and not misfits:
      raise InputError(f"{file} ({donor.title}, {match.naming.name}) has no weights for {', '.join(unfilled[:_SHOWN])}")
  if plan.missing or plan.unused or misfits:
    raise InputError(f"{file} is not {donor.title} ({match.naming.name}):\n{_difference(match, misfits)}")
  return sizes


def abstract_shapes(modules: Mapping[str, Functional]) -> dict[str, Shape]:
  """Shape of every leaf `item/...` of these modules."""
  return {path: leaf.shape for path, leaf in tree_paths({item: m.abstract for item, m in modules.items()})}


def _difference(match: Match, misfits: list[Misfit]) -> str:
  named = lambda key: match.keys.get(key, key)
  shape = lambda shape: shape if isinstance(shape, str) else str(list(shape))
  sides = {
    "missing in the file": [named(key) for key in match.plan.missing],
    "only in the file": [named(key) for key in match.plan.unused],
    "with another shape": [
      f"{named(misfit.key)}: {shape(misfit.found)} in the file, expected {shape(misfit.expected)}"
      + (f" as in {named(misfit.like)}" if misfit.like else "")
      for misfit in misfits
    ],
  }
  lines = []
  for title, entries in sides.items():
    if entries:
      lines.append(f"  {title} ({len(entries)}):")
      lines += [f"    {entry}" for entry in entries[:_SHOWN]] + (["    ..."] if len(entries) > _SHOWN else [])
  return "\n".join(lines)


def root(count: int, what: str) -> int:
  """The integer square root of `count`. Raises InputError if `count` is not a square."""
  side = math.isqrt(count)
  if side * side != count:
    raise InputError(f"{what} has {count} entries, which is not a square number")
  return side
