"""Cost of one step of a compiled program on one chip, from its optimised HLO text.

XLA's own cost analysis counts the body of a loop once. This module multiplies every instruction by the trip counts of
its loops (`known_trip_count`), so a scanned and an unrolled stack of blocks give the same result.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
# Instructions that move no data themselves; the instructions in their bodies are counted.
FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
  "opt-barrier", "partition-id", "replica-id", "iota", "async-start", "async-update", "async-done", "add-dependency",
}  # fmt: skip
SLICES = ("dynamic-slice", "slice", "gather")  # they read as much as they return
_FLASH_PRODUCTS = {"flash_mha_bwd_dkv": 4, "flash_mha_bwd_dq": 3}  # matrix products of queries and keys, each head
_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")


class UnknownTripCount(ValueError):
  """The compiler does not know the trip count of a loop, so its cost is unknown."""


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a type. `layout` is the text in braces: minor dimensions first, then tiles and memory space."""

  dtype: str
  dims: tuple[int, ...]
  layout: str

  @property
  def elements(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    return self.elements * self._bits // 8

  @property
  def hbm_bytes(self) -> int:
    """Bytes with padding to whole tiles; 0 if the compiler keeps the array in on-chip memory, S(1)."""
    if "S(" in self.layout:
      return 0
    order, _, tiling = self.layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", tiling)
    sizes = [self.dims[int(n)] for n in order.split(",") if n] or list(self.dims)
    for i, size in enumerate(reversed(tile[1].split(",")) if tile else ()):
      sizes[i : i + 1] = [-(-n // int(size)) * int(size) for n in sizes[i : i + 1]]
    return math.prod(sizes) * self._bits // 8

  @property
  def _bits(self) -> int:
    return _BITS.get(self.dtype) or int(re.search(r"\d+|$", self.dtype).group() or 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str
  opcode: str
  arrays: tuple[Array, ...]  # of its result, tuples flattened
  operands: tuple[str, ...]
  inside: str  # the text between its parentheses
  attributes: str
  is_root: bool


@dataclasses.dataclass
class Collective:
  """All collectives of one kind: their number and bytes per step.

  `bytes`: of the whole array on one chip (the result of a gather, the operand of a scatter).
  `sent`: bytes that one chip sends in a ring algorithm.
  """

  count: int = 0
  bytes: float = 0.0
  sent: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """Cost of one step on one chip."""

  flops: float  # dots and convolutions, two per multiply-add
  hbm_bytes: float  # operands and results of the instructions, without padding; values inside a fusion are free
  collectives: Mapping[str, Collective]
  dcn_bytes: float  # what the chip sends to other slices over the network of the data centre
  # Where in the model it arises -> (flops, hbm_bytes): the `op_name` of the compiler, or where it keeps none, which is
  # so for copies and collectives that it adds, the name of the instruction without its number.
  by_name: Mapping[str, tuple[float, float]]


def read_cost(text: str) -> Cost:
  """The cost of a compiled module, `jax.stages.Compiled.as_text()`. Raises UnknownTripCount."""
  module = _parse(text)
  by_name: dict[str, tuple[float, float]] = {}
  collectives: dict[str, Collective] = {}
  dcn_bytes = 0.0
  seen = set()
  for instruction, name, times, fused in _executed(module):
    computation = module.computations[name]
    flops = 0.0
    if instruction.opcode == "dot":
      flops = _dot_flops(instruction, computation)
    elif instruction.opcode == "convolution":
      flops = _convolution_flops(instruction, computation)
    elif instruction.opcode == "custom-call":
      flops = _kernel_flops(instruction, computation)
    moved = 0 if fused else _traffic(instruction, computation, module)
    if instruction.opcode == "send" and "_xla_megascale_transfer_type" in instruction.attributes:
      dcn_bytes += times * computation[instruction.operands[0]].arrays[0].bytes
    if flops or moved:
      place = re.search(r'op_name="([^"]*)"', instruction.attributes)
      key = place[1] if place else re.sub(r"[.\d]+$", "", instruction.name)
      before = by_name.get(key, (0.0, 0.0))
      by_name[key] = before[0] + times * flops, before[1] + times * moved
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES and (found := _identity(instruction)) not in seen:
      seen.add(found)
      if name.startswith("all-reduce-scatter"):  # the TPU compiler writes it as an all-reduce and a slice
        kind = "reduce-scatter"
      total = collectives.setdefault(kind, Collective())
      size, share = _collective_bytes(instruction, kind, computation), _ring_share(instruction, kind)
      total.count += times
      total.bytes += times * size
      total.sent += times * size * share
  flops, hbm_bytes = (sum(each[i] for each in by_name.values()) for i in (0, 1))
  collectives = dict(sorted(collectives.items()))
  return Cost(flops=flops, hbm_bytes=hbm_bytes, collectives=collectives, dcn_bytes=dcn_bytes, by_name=by_name)


@dataclasses.dataclass(frozen=True)
class _Module:
  computations: Mapping[str, Mapping[str, Instruction]]
  entry: str


def _parse(text: str) -> _Module:
  computations, entry, current = {}, "", {}
  for line in text.splitlines():
    if line.endswith("{") and not line.startswith(" ") and (head := re.match(r"(ENTRY )?%?([\w.\-]+) ", line)):
      current = computations[head[2]] = {}
      entry = head[2] if head[1] else entry
    elif found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", line):
      instruction = _instruction(*found.groups())
      current[instruction.name] = instruction
  return _Module(computations, entry)


def _instruction(root: str | None, name: str, rest: str) -> Instruction:
  end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  opcode, start = rest[end:].split("(", 1)[0].strip(), rest.index("(", end)
  stop = _closing(rest, start)
  inside = re.sub(r"/\*.*?\*/", "", rest[start + 1 : stop])
  # Names in a program that is not compiled have no %.
  names = re.findall(r"%([\w.\-]+)" if "%" in inside else r"(?<![\w.\-])([A-Za-z_][\w.\-]*)", inside)
  return Instruction(
    name=name,
    opcode=opcode,
    arrays=tuple(
      Array(dtype, tuple(int(n) for n in dims.split(",") if n), layout)
      for dtype, dims, layout in _SHAPE.findall(rest[:end])
    ),
    operands=() if opcode in ("constant", "parameter") else tuple(names),
    inside=inside,
    attributes=rest[stop + 1 :],
    is_root=bool(root),
  )


def _closing(text: str, start: int) -> int:
  """Position of the parenthesis that closes the one at `start`."""
  depth = 0
  for match in re.compile(r"[()]").finditer(text, start):
    depth += 1 if match[0] == "(" else -1
    if depth == 0:
      return match.start()
  raise ValueError(f"unbalanced parentheses: {text[:80]}")


def _executed(module: _Module) -> Iterator[tuple[Instruction, str, int, bool]]:
  """Yields (instruction, name of its computation, number of runs, whether inside a fusion)."""
  stack = [(module.entry, 1, False)]
  while stack:
    name, times, fused = stack.pop()
    computation = module.computations[name]
    for instruction in computation.values():
      yield instruction, name, times, fused
      turns = 1
      if instruction.opcode == "while":
        turns = _turns(instruction, computation, module)
      for called in _called(instruction):
        stack.append((called, times * turns, fused or instruction.opcode in ("fusion", "custom-call")))


def _turns(loop: Instruction, computation: Mapping[str, Instruction], module: _Module) -> int:
  """Trip count of a loop.

  It is taken from the compiler's annotation (CPU), else from `i < bound` with a constant bound and i counting up from a
  constant (a scan on TPU). Raises UnknownTripCount.
  """
  if known := _numbers(r"known_trip_count\W+n\W+(\d+)", loop.attributes):
    return known[0]
  condition = module.computations[re.search(r"condition=%?([\w.\-]+)", loop.attributes)[1]]
  test = next(i for i in condition.values() if i.is_root)
  if test.opcode == "compare" and "direction=LT" in test.attributes:
    counter, bound = (condition[name] for name in test.operands)
    index = _numbers(r"index=(\d+)", counter.attributes)
    start = computation[computation[loop.operands[0]].operands[index[0]]] if index else counter
    while start.opcode in ("copy", "bitcast"):
      start = computation[start.operands[0]]
    if start.opcode == bound.opcode == "constant":
      return int(bound.inside) - int(start.inside)
  raise UnknownTripCount(f"the trip count of the loop {loop.name} is unknown")


def _called(instruction: Instruction) -> list[str]:
  """Computations that an instruction runs as a whole, not per element; all branches of a conditional."""
  match instruction.opcode:
    case "while":
      names = r"body=%?([\w.\-]+)"
    case "fusion" | "async-start" | "custom-call":
      names = r"(?:calls|called_computations)=\{?%?([\w.\-]+)"
    case "call":
      names = r"to_apply=%?([\w.\-]+)"
    case "conditional":
      return re.findall(r"%([\w.\-]+)", re.search(r"(branch|true)_computation.*", instruction.attributes)[0])
    case _:
      return []
  return re.findall(names, instruction.attributes)


def _numbers(pattern: str, text: str, default: str = "") -> list[int]:
  found = re.search(pattern, text)
  return [int(n) for n in re.findall(r"-?\d+", found[1] if found else default)]


def _dot_flops(instruction: Instruction, computation: Mapping[str, Instruction]) -> float:
  left = computation[instruction.operands[0]].arrays[0]
  contracted = _numbers(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
  return 2.0 * instruction.arrays[0].elements * math.prod(left.dims[i] for i in contracted)


def _convolution_flops(instruction: Instruction, computation: Mapping[str, Instruction]) -> float:
  """FLOPs without the multiply-adds on padding and on the zeros of a dilation.

  The TPU compiler writes batched matrix products as convolutions that consist mostly of such zeros.
  """
  attributes, out = instruction.attributes, instruction.arrays[0]
  left, kernel = (computation[name].arrays[0] for name in instruction.operands[:2])
  left_labels, kernel_labels, out_labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes).groups()
  window = re.search(r"window=\{([^}]*)\}", attributes)
  fields = dict(field.split("=") for field in window[1].split()) if window else {}
  spatial = [label for label in out_labels if label.isdigit()]
  each = lambda key, default: fields[key].split("x") if key in fields else [default] * len(spatial)
  valid = 1
  for label, stride, pad, left_dilate, kernel_dilate in zip(
    spatial, each("stride", "1"), each("pad", "0_0"), each("lhs_dilate", "1"), each("rhs_dilate", "1"), strict=True
  ):
    size, taps, outputs = (
      array.dims[labels.index(label)]
      for array, labels in ((left, left_labels), (kernel, kernel_labels), (out, out_labels))
    )
    valid *= _meetings(size, taps, outputs, int(stride), int(pad.split("_")[0]), int(left_dilate), int(kernel_dilate))
  # The kernel's input features are those of one feature group.
  features = kernel.dims[kernel_labels.index("i")] * out.dims[out_labels.index("f")]
  batch = out.dims[out_labels.index("b")]
  return 2.0 * valid * features * batch


def _kernel_flops(instruction: Instruction, computation: Mapping[str, Instruction]) -> float:
  """What a kernel of Pallas says that it computes. JAX's flash attention says nothing of its gradients."""
  if stated := _numbers(r'"cost_estimate":\{[^}]*?"flops":"?(\d+)', instruction.attributes):
    return float(stated[0])
  products = next((n for name, n in _FLASH_PRODUCTS.items() if name in instruction.attributes), 0)
  if not products:
    return 0.0
  queries, keys = (computation[name].arrays[0] for name in instruction.operands[:2])
  return 2.0 * products * queries.elements * keys.dims[-2]


@functools.cache
def _meetings(size: int, taps: int, outputs: int, stride: int, pad: int, left_dilate: int, kernel_dilate: int) -> int:
  """Number of (output, tap) pairs that hit an input element, along one dimension."""
  rows, columns = np.arange(outputs) * stride, np.arange(taps) * kernel_dilate - pad
  rows, columns = (rows, columns) if len(rows) < len(columns) else (columns, rows)
  at = (row + columns for row in rows)  # one row at a time, because a waveform is long
  return sum(int(((x >= 0) & (x <= (size - 1) * left_dilate) & (x % left_dilate == 0)).sum()) for x in at)


def _identity(instruction: Instruction) -> tuple:
  """Key that identifies a collective.

  An asynchronous collective appears in several fusions: at its start, at its end and in all fusions in between.
  """
  channel = _numbers(r"channel_id=(\d+)", instruction.attributes) or instruction.name
  return instruction.opcode, str(channel), tuple((array.dtype, array.dims) for array in instruction.arrays)


def _collective_bytes(instruction: Instruction, kind: str, computation: Mapping[str, Instruction]) -> int:
  taken = sum(array.bytes for name in instruction.operands for array in computation[name].arrays)
  returned = sum(array.bytes for array in instruction.arrays)
  if kind == "collective-permute":
    return taken
  if instruction.opcode.endswith("-start") and kind != "all-reduce":
    returned -= taken  # its result includes the operands
  return max(taken, returned)


def _ring_share(instruction: Instruction, kind: str) -> float:
  """Bytes sent by one chip of a ring, as a fraction of the bytes of the whole array."""
  if kind == "collective-permute":
    return 1.0
  members = _group_size(instruction.attributes)
  return (2 if kind == "all-reduce" else 1) * (members - 1) / members


def _group_size(attributes: str) -> int:
  """Number of participants, from any of the HLO notations."""
  groups = re.search(r"replica_groups=(.*)", attributes)[1]
  if groups.startswith("mesh["):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups[: groups.index("]")]))
    axes = re.search(r"\{('[^}]*)\}", groups)[1]
    return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes))
  if groups.startswith("["):
    return _numbers(r"^\[([\d,]+)\]", groups)[-1]
  return len(_numbers(r"^\{\{([\d,]*)\}", groups))


def _traffic(instruction: Instruction, computation: Mapping[str, Instruction], module: _Module) -> int:
  """Bytes that one run of an instruction moves between HBM and the chip."""
  free = instruction.opcode in FREE or instruction.opcode.endswith("-done")
  if free or '"AllocateBuffer"' in instruction.attributes:
    return 0
  written = instruction.arrays
  if instruction.opcode == "copy-start":  # (result, operand, context)
    written = written[:1]
  elif instruction.opcode == "fusion":
    fused = module.computations[_called(instruction)[0]]
    return _fusion_traffic(instruction, computation, fused, module)
  elif instruction.opcode in SLICES:
    return 2 * _hbm(written)
  elif instruction.opcode == "dynamic-update-slice":
    return 2 * _hbm(computation[instruction.operands[1]].arrays)
  return _hbm(written) + sum(_hbm(computation[name].arrays) for name in instruction.operands)


def _fusion_traffic(instruction, computation, fused, module: _Module) -> int:
  parameters = {int(i.inside): i.name for i in fused.values() if i.opcode == "parameter" and i.inside.isdecimal()}
  moved = 0
  for index, operand in enumerate(instruction.operands):
    arrays = computation[operand].arrays
    if _hbm(arrays):
      moved += min(_hbm(arrays), _read(fused, parameters[index], module))
  root = next(i for i in fused.values() if i.is_root)
  results = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
  for array, result in zip(instruction.arrays, results, strict=False):
    while result.opcode == "bitcast":
      result = fused[result.operands[0]]
    if result.opcode == "dynamic-update-slice":  # in place
      moved += min(array.hbm_bytes, fused[result.operands[1]].arrays[0].hbm_bytes)
    else:
      moved += array.hbm_bytes
  return moved


def _read(fused: Mapping[str, Instruction], name: str, module: _Module) -> int:
  """Bytes of the parameter `name` that a fused computation reads."""
  total = 0
  for user in (i for i in fused.values() if name in i.operands):
    if user.opcode == "bitcast":
      total += _read(fused, user.name, module)
    elif user.opcode in SLICES and user.operands[0] == name:
      total += _hbm(user.arrays)
    elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
      continue
    elif user.opcode == "fusion":
      inner = module.computations[_called(user)[0]]
      parameter = next(
        i.name for i in inner.values() if i.opcode == "parameter" and int(i.inside) == user.operands.index(name)
      )
      total += _read(inner, parameter, module)
    else:
      total += _hbm(fused[name].arrays)
  return total


def _hbm(arrays: Sequence[Array]) -> int:
  return sum(array.hbm_bytes for array in arrays)
