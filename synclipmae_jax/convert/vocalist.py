"""VocaLiST (vskadandale/vocalist), which scores audio-visual pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synclipmae_jax.baselines.vocalist import AUDIO_PRENET, VIDEO_PRENET, WIDTHS, Vocalist
from synclipmae_jax.convert.donor import Donor, Naming
from synclipmae_jax.convert.rules import CONV2D, CONV3D, LINEAR, SAME, Layout, Rule, Shape
from synclipmae_jax.models.functional import Functional


def _layer(source: str, target: str, layout: Layout) -> tuple[Rule, Rule]:
  return (
    Rule(f"{source}.weight", f"vocalist/{target}/kernel", layout),
    Rule(f"{source}.bias", f"vocalist/{target}/bias"),
  )


def _norm(source: str, target: str) -> tuple[Rule, Rule]:
  return (
    Rule(f"{source}.weight", f"vocalist/{target}/scale", SAME),
    Rule(f"{source}.bias", f"vocalist/{target}/bias"),
  )


def _prenet(source: str, target: str, depth: int, layout: Layout) -> Iterator[Rule]:
  for i in range(depth):
    theirs, ours = f"{source}.{i}.conv_block", f"{target}/block_{i}"
    yield from _layer(f"{theirs}.0", f"{ours}/conv", layout)
    yield from _norm(f"{theirs}.1", f"{ours}/norm")
    yield Rule(f"{theirs}.1.running_mean", f"vocalist/{ours}/norm/mean")
    yield Rule(f"{theirs}.1.running_var", f"vocalist/{ours}/norm/var")


def _transformer(source: str, target: str) -> Iterator[Rule]:
  theirs, ours = f"{source}.layers.{{i}}", f"{target}/blocks"
  yield Rule(f"{theirs}.self_attn.in_proj_weight", f"vocalist/{ours}/attention/qkv/kernel", LINEAR)
  yield Rule(f"{theirs}.self_attn.in_proj_bias", f"vocalist/{ours}/attention/qkv/bias")
  yield from _layer(f"{theirs}.self_attn.out_proj", f"{ours}/attention/out", LINEAR)
  yield from _layer(f"{theirs}.fc1", f"{ours}/up", LINEAR)
  yield from _layer(f"{theirs}.fc2", f"{ours}/down", LINEAR)
  yield from _norm(f"{theirs}.layer_norms.0", f"{ours}/norm_attention")
  yield from _norm(f"{theirs}.layer_norms.1", f"{ours}/norm_mlp")
  yield from _norm(f"{source}.layer_norm", f"{target}/norm")


_RULES = (
  *_prenet("vid_prenet", "video_prenet", len(VIDEO_PRENET), CONV3D),
  *_prenet("aud_prenet", "audio_prenet", len(AUDIO_PRENET), CONV2D),
  *_transformer("av_transformer", "audio_to_video"),
  *_transformer("va_transformer", "video_to_audio"),
  *_transformer("mem_transformer", "memory"),
  *_layer("fc", "fc", LINEAR),
  *_layer("classifier", "classifier", LINEAR),
)


def _sizes(leaves: Mapping[str, Shape]) -> dict[str, Any]:
  first = [next(i for i, layer in enumerate(AUDIO_PRENET) if layer[0] == n) for n in range(len(WIDTHS))]
  return {
    "widths": tuple(leaves[f"vocalist/audio_prenet/block_{i}/conv/bias"][0] for i in first),
    "depth": leaves["vocalist/memory/blocks/attention/qkv/bias"][0],
  }


def _modules(**sizes: Any) -> dict[str, Functional]:
  return {"vocalist": Functional(lambda rngs: Vocalist(**sizes, rngs=rngs))}


DONOR = Donor(
  name="vocalist",
  title="VocaLiST",
  licence="CC-BY-NC-4.0",
  origin="vocalist_5f_lrs2.pth of vskadandale/vocalist",
  namings=(
    Naming(
      "VocaLiST",
      _RULES,
      # fairseq stores a version number and an empty tensor that marks the device. The counters are not weights.
      drop=(r"\w+_transformer\.(version|embed_positions\._float_tensor)", r".*\.num_batches_tracked"),
    ),
  ),
  sizes=_sizes,
  modules=_modules,
)
