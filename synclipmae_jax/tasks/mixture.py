"""The sources of a mixture by name, and the losses of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from synclipmae_jax.types import InputError


def given_sources(config: Mapping[str, Any]) -> list[tuple[str, float | None]]:
  """`data.sources` of a configuration as (directory, weight), where a weight may be None. Raises InputError."""
  sources = config["data"]["sources"] or ()
  try:
    return [(str(directory), None if weight is None else float(weight)) for directory, weight in sources]
  except (TypeError, ValueError):
    raise InputError(
      "data.sources is a tuple of (directory, weight), like (('DIR', 1.0),) or (('DIR', None),) for a weight by size,"
      f" not {sources!r}"
    ) from None


def source_names(config: Mapping[str, Any]) -> tuple[str, ...]:
  """The names of the sources in their order: of each directory as many of its last parts as tell it from the others.

  SynthTalk comes first where it is mixed with others, under its name.
  """
  corpus = config["data"].get("synthtalk")
  given = [PurePosixPath(directory).parts for directory, _ in given_sources(config)]
  first = ["synthtalk"] if corpus and (not given or corpus.get("weight") is not None) else []
  for count in range(1, max(map(len, given), default=0) + 1):
    names = [*first, *("/".join(parts[-count:]) for parts in given)]
    if len(set(names)) == len(names):
      return tuple(names)
  return (*first, *(f"{number}" for number in range(len(first), len(first) + len(given))))  # one directory twice


def by_source(
  names: Sequence[str], source: Int[Array, " b"], **terms: tuple[Float[Array, " b"], Float[Array, " b"]]
) -> dict[str, Float[Array, " 2"]]:
  """`TERM/NAME` and `share/NAME` for every source, as means with their weights (`types.Task.loss`).

  A term is (total, weight) of every clip: the term of a batch is sum total / sum weight, and that of a source is the
  same over its clips. Sums do not depend on devices, hosts or micro-batches. One source alone has no entries.
  """
  if len(names) < 2:
    return {}
  terms["share"] = jnp.ones(source.shape), jnp.ones(source.shape)
  own = source[:, None] == jnp.arange(len(names))  # [b, source]
  of_each = lambda values: jnp.where(own, values[:, None], 0.0).sum(axis=0)  # no matrix product: it would be rounded
  entries = {}
  for term, (total, weight) in terms.items():
    weights = jnp.full(len(names), weight.sum()) if term == "share" else of_each(weight)
    sums = jnp.stack([of_each(total), weights], axis=-1)  # [source, 2]
    entries |= {f"{term}/{name}": sums[number] for number, name in enumerate(names)}
  return entries
