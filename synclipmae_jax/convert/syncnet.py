"""SyncNet v2 (joonson/syncnet_python, `S(1024)`): a flat state dict with the running statistics of its batch norms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synclipmae_jax.baselines.syncnet import AUDIO, CONTEXT, IMAGE_SIZE, LIPS, SyncNet
from synclipmae_jax.convert.donor import Donor, Naming
from synclipmae_jax.convert.rules import CONV2D, LINEAR, Layout, Rule, Shape
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.types import InputError

# Indices of the convolutions in the original's Sequentials, which also count activations and poolings.
_CONVS = (0, 4, 8, 11, 14, 18)


def _spanning(frames: int) -> Layout:
  """A convolution over all `frames`: (out, c, frames, rows, columns) -> (rows, columns, frames * c, out), the
  channel fastest."""

  def forward(x):
    if x.shape[2:3] != (frames,):
      raise ValueError(f"expected a kernel over {frames} frames")
    kernel = x.transpose(3, 4, 2, 1, 0)
    return (kernel.reshape(*kernel.shape[:2], -1, x.shape[0]),)

  def inverse(kernel):
    kernel = kernel.reshape(*kernel.shape[:2], frames, -1, kernel.shape[-1])
    return (kernel.transpose(4, 3, 2, 0, 1),)

  return Layout(forward, inverse)


def _layer(source: str, target: str, layout: Layout) -> Iterator[Rule]:
  yield Rule(f"{source}.weight", f"syncnet/{target}/kernel", layout)
  yield Rule(f"{source}.bias", f"syncnet/{target}/bias")


def _norm(source: str, target: str) -> Iterator[Rule]:
  for theirs, ours in (("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "var")):
    yield Rule(f"{source}.{theirs}", f"syncnet/{target}/{ours}")


def _tower(source: str, target: str, first: Layout, layout: Layout) -> Iterator[Rule]:
  for i, place in enumerate(_CONVS):
    yield from _layer(f"netcnn{source}.{place}", f"{target}/conv_{i}", layout if i else first)
    yield from _norm(f"netcnn{source}.{place + 1}", f"{target}/norm_{i}")
  yield from _layer(f"netfc{source}.0", f"{target}/hidden", LINEAR)
  yield from _norm(f"netfc{source}.1", f"{target}/norm_hidden")
  yield from _layer(f"netfc{source}.3", f"{target}/out", LINEAR)


def _sizes(leaves: Mapping[str, Shape]) -> dict[str, Any]:
  """Several image sizes give the same last kernel: the released size is used if it fits, else the smallest."""
  scale = leaves["syncnet/lips/conv_0/bias"][0] / LIPS[0][0]
  if (channels := leaves["syncnet/audio/conv_0/bias"][0]) != round(scale * AUDIO[0][0]):
    raise InputError(f"{channels} audio channels do not match a lip tower scaled by {scale:g}")
  side = leaves["syncnet/lips/conv_5/kernel"][0]
  image_size = IMAGE_SIZE if side == 6 else 19 + 32 * side  # the first row takes 51 pixels, every further row 32
  return {"image_size": image_size, "scale": scale, "width": leaves["syncnet/lips/out/bias"][0]}


def _modules(**sizes: Any) -> dict[str, Functional]:
  return {"syncnet": Functional(lambda rngs: SyncNet(rngs=rngs, **sizes))}


DONOR = Donor(
  name="syncnet",
  title="SyncNet v2",
  licence="MIT-style (joonson/syncnet_python)",
  origin="syncnet_v2.model of joonson/syncnet_python (download_model.sh)",
  namings=(
    Naming(
      "syncnet_python",
      (*_tower("lip", "lips", _spanning(CONTEXT), _spanning(1)), *_tower("aud", "audio", CONV2D, CONV2D)),
    ),
  ),
  sizes=_sizes,
  modules=_modules,
)
