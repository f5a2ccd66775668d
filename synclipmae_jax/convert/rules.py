"""Rules: which tensors of a donor fill which leaf of a model, and in which layout.

A rule names its source keys, its target leaves and a layout. `{i}` in a source key is the block number: all blocks fill
one leaf, stacked on its first axis. A layout is a pair of inverse functions on the tensors of one block; a lossy layout
describes what it loses. Layouts only rearrange values (and fold a weight norm), so they run on any dtype. Run on
broadcast tensors without memory, the same functions compute the shapes that a file gives and the shapes it should have.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

Shape = tuple[int, ...]
Tensors = tuple[np.ndarray, ...]
MAX_BLOCKS = 1024  # a larger number in a key is not a block number


@dataclasses.dataclass(frozen=True)
class Layout:
  """`forward(*source tensors) -> target tensors` of one block, and its `inverse`. `lossy` describes a loss, else ''."""

  forward: Callable[..., Tensors]
  inverse: Callable[..., Tensors]
  lossy: str = ""


SAME = Layout(lambda x: (x,), lambda x: (x,))


@dataclasses.dataclass(frozen=True)
class Rule:
  """`source` keys -> `target` leaves (paths `item/module/.../leaf`). The keys of an `optional` rule may be absent."""

  source: str | tuple[str, ...]
  target: str | tuple[str, ...]
  layout: Layout = SAME
  optional: bool = False

  @property
  def sources(self) -> tuple[str, ...]:
    return (self.source,) if isinstance(self.source, str) else self.source

  @property
  def targets(self) -> tuple[str, ...]:
    return (self.target,) if isinstance(self.target, str) else self.target

  @property
  def stacked(self) -> bool:
    return "{i}" in self.sources[0]


# Layouts


def _transpose(*axes: int) -> Layout:
  back = tuple(int(axis) for axis in np.argsort(axes))
  return Layout(lambda x: (x.transpose(axes),), lambda x: (x.transpose(back),))


LINEAR = _transpose(1, 0)  # (out, in) -> (in, out)
CONV1D = _transpose(2, 1, 0)  # (out, in, k) -> (k, in, out)
CONV2D = _transpose(2, 3, 1, 0)
CONV3D = _transpose(2, 3, 4, 1, 0)


def fused(count: int) -> Layout:
  """`count` dense weights (out, in) side by side in one kernel (in, count * out), in the order of the rule."""
  return Layout(
    lambda *weights: (np.concatenate([weight.T for weight in weights], axis=1),),
    lambda kernel: tuple(part.T for part in np.split(kernel, count, axis=1)),
  )


def fused_bias(count: int) -> Layout:
  """`count` biases (out,), concatenated."""
  return Layout(
    lambda *biases: (np.concatenate(biases),),
    lambda bias: tuple(np.split(bias, count)),
  )


def ones(*, before: int = 0, after: int = 0) -> Layout:
  """Removes axes of length 1, `before` at the front and `after` at the end: with before=2, (1, 1, d) -> (d)."""

  def drop(x: np.ndarray) -> Tensors:
    kept = x.shape[before : x.ndim - after]
    if x.ndim < before + after or math.prod(x.shape) != math.prod(kept):
      raise ValueError(f"expected {before} axes of length 1 at the front and {after} at the end")
    return (x.reshape(kept),)

  return Layout(drop, lambda x: (x.reshape((1,) * before + x.shape + (1,) * after),))


def patch_kernel(*, size: Shape, channels: int) -> Layout:
  """A convolution whose stride is its kernel `size`, as a dense kernel on flattened patches: (out, c, *size) ->
  (prod(size) * c, out), the channel fastest."""
  axes = (*range(2, 2 + len(size)), 1, 0)

  def forward(x: np.ndarray) -> Tensors:
    if x.shape[1:] != (channels, *size):
      raise ValueError(f"expected a kernel of {channels} channels and {' x '.join(map(str, size))}")
    return (x.transpose(axes).reshape(-1, x.shape[0]),)

  def inverse(x: np.ndarray) -> Tensors:
    return (x.reshape(*size, channels, x.shape[1]).transpose(np.argsort(axes)),)

  return Layout(forward, inverse)


def _square_patch(kernel: np.ndarray) -> Tensors:
  side = math.isqrt(kernel.shape[0] // 3)
  return patch_kernel(size=(side, side), channels=3).inverse(kernel)


# (out, 3, p, p) -> (p * p * 3, out): rows, columns, channels. The patch size comes from the shapes.
IMAGE_PATCHES = Layout(lambda x: patch_kernel(size=2 * x.shape[-1:], channels=3).forward(x), _square_patch)


# A naming of a donor, applied to the keys of one file


@dataclasses.dataclass(frozen=True)
class Misfit:
  """A source key whose shape does not fit the model that the other shapes describe."""

  key: str
  found: Shape
  expected: Shape | str  # a sentence if no shape can be given
  like: str = ""  # the same tensor of another block, which has the expected shape


class Plan:
  """Assignment of the keys of a file to rules, from the keys and shapes alone.

  Attributes:
    missing: keys that a rule needs and the file lacks. unused: keys of the file that no rule takes.
    targets: shape of every target leaf, by path. misfits: keys whose shapes differ from those of the other blocks.
  """

  def __init__(self, rules: Sequence[Rule], shapes: Mapping[str, Shape]):
    self._shapes = shapes
    depths = _depths(rules, shapes)
    self.steps: list[tuple[Rule, int | None]] = []
    wanted: dict[str, None] = {}  # ordered, as the rules are
    for rule in rules:
      depth = max(depths[_stem(rule.sources[0])], 1) if rule.stacked else None
      keys = list(_keys(rule, depth))
      if rule.optional and not any(key in shapes for key in keys):
        continue
      self.steps.append((rule, depth))
      wanted |= dict.fromkeys(keys)
    self.missing = tuple(key for key in wanted if key not in shapes)
    self.unused = tuple(key for key in shapes if key not in wanted)
    self.targets: dict[str, Shape] = {}
    self.misfits: list[Misfit] = []
    for rule, depth in self.steps:
      self._lay(rule, depth)

  @property
  def distance(self) -> int:
    """Number of missing and unused keys: 0 for a file of this naming."""
    return len(self.missing) + len(self.unused)

  def _lay(self, rule: Rule, depth: int | None) -> None:
    blocks = [_at(rule.sources, i) for i in range(depth or 1)]
    blocks = [keys for keys in blocks if all(key in self._shapes for key in keys)]
    if not blocks:
      return
    shapes = [tuple(self._shapes[key] for key in keys) for keys in blocks]
    [(usual, _)] = collections.Counter(shapes).most_common(1)
    example = blocks[shapes.index(usual)]
    misfits = [
      Misfit(key, found, wanted, like)
      for keys, block in zip(blocks, shapes, strict=True)
      for key, found, wanted, like in zip(keys, block, usual, example, strict=True)
    ]
    back: list[Shape | str]
    try:
      leaves = rule.layout.forward(*map(_nothing, usual))
      back = [x.shape for x in rule.layout.inverse(*leaves)]  # differs if numpy broadcast or cut something off
    except (ValueError, IndexError) as error:
      leaves, back = None, [f"another shape ({error})"] * len(usual)
    misfits += [Misfit(key, found, wanted) for key, found, wanted in zip(example, usual, back, strict=True)]
    self.misfits += [misfit for misfit in misfits if misfit.found != misfit.expected]
    stack = () if depth is None else (depth,)
    if leaves is not None:
      self.targets |= {target: stack + leaf.shape for target, leaf in zip(rule.targets, leaves, strict=True)}

  def against(self, expected: Mapping[str, Shape]) -> list[Misfit]:
    """Source keys whose shapes do not lead to the `expected` target shapes."""
    misfits = []
    for rule, depth in self.steps:
      if all(self.targets.get(target) == expected.get(target) for target in rule.targets):
        continue
      wanted: Sequence[Shape | str]
      if any(target not in expected for target in rule.targets):
        wanted = ["the model has no place for it"] * len(rule.sources)
      else:
        leaves = [expected[target] if depth is None else expected[target][1:] for target in rule.targets]
        try:
          wanted = [x.shape for x in rule.layout.inverse(*map(_nothing, leaves))]
        except (ValueError, IndexError):
          wanted = [f"something that becomes {' and '.join(str(list(leaf)) for leaf in leaves)}"] * len(rule.sources)
      keys = _at(rule.sources, 0)
      misfits += [
        Misfit(key, self._shapes[key], want)
        for key, want in zip(keys, wanted, strict=True)
        if self._shapes.get(key) != want
      ]
    return misfits

  def fill(
    self,
    read: Callable[[str], np.ndarray],
    dtype: np.dtype,
    *,
    taken: Callable[[str, np.ndarray], None] = lambda key, tensor: None,
    laid: Callable[[Sequence[str], np.ndarray], None] = lambda keys, value: None,
  ) -> dict[str, np.ndarray]:
    """The target leaves by path. Tensors are read one at a time.

    `taken(key, tensor)` is called for every source tensor before it is used, and `laid(keys, value)` for every value,
    in its final dtype, that the tensors `keys` were converted to.
    """
    leaves = {target: np.empty(shape, dtype) for target, shape in self.targets.items()}
    for rule, i in self.blocks():
      tensors, keys = [], _at(rule.sources, i)
      for key in keys:
        tensors.append(read(key))
        taken(key, tensors[-1])
      for target, value in zip(rule.targets, rule.layout.forward(*tensors), strict=True):
        place = leaves[target][... if i is None else i]
        place[...] = value
        laid(keys, place)
    return leaves

  def blocks(self) -> Iterator[tuple[Rule, int | None]]:
    """Every rule; a stacked rule once for each of its blocks."""
    for rule, depth in self.steps:
      for i in [None] if depth is None else range(depth):
        yield rule, i


def invert(rules: Iterable[Rule], leaves: Mapping[str, np.ndarray]) -> dict[str, Callable[[], np.ndarray]]:
  """Functions that compute the donor's tensors, by key. Rules whose leaves are absent are skipped."""
  tensors: dict[str, Callable[[], np.ndarray]] = {}
  for rule in rules:
    if any(target not in leaves for target in rule.targets):
      continue
    values = [leaves[target] for target in rule.targets]
    for i in range(len(values[0]) if rule.stacked else 1):
      block = [value[i] for value in values] if rule.stacked else values
      for n, key in enumerate(_at(rule.sources, i)):
        tensors[key] = functools.partial(_inverse, rule.layout, block, n)
  return tensors


def _inverse(layout: Layout, leaves: Sequence[np.ndarray], n: int) -> np.ndarray:
  return layout.inverse(*leaves)[n]


def _nothing(shape: Shape) -> np.ndarray:
  """A tensor of this shape that takes no memory."""
  return np.broadcast_to(np.zeros((), np.float32), shape)


def _at(patterns: Sequence[str], i: int | None) -> list[str]:
  return [pattern.replace("{i}", str(i)) for pattern in patterns]


def _keys(rule: Rule, depth: int | None) -> Iterable[str]:
  for i in range(depth or 1):
    yield from _at(rule.sources, i)


def _stem(pattern: str) -> str:
  return pattern.partition("{i}")[0]


def _depths(rules: Sequence[Rule], shapes: Mapping[str, Shape]) -> dict[str, int]:
  """Number of blocks by the part of the key before the block number."""
  depths = {_stem(rule.sources[0]): 0 for rule in rules if rule.stacked}
  for stem in depths:
    of_stem = [re.escape(s) for rule in rules for s in rule.sources if "{i}" in s and _stem(s) == stem]
    pattern = re.compile("|".join(s.replace(r"\{i\}", r"(\d{1,6})") for s in of_stem))
    numbers = [
      int(next(filter(None, match.groups())))
      for key in shapes
      if key.startswith(stem) and (match := pattern.fullmatch(key))
    ]
    depths[stem] = 1 + max((number for number in numbers if number < MAX_BLOCKS), default=-1)
  return depths
