"""Torch classes of the donors at any size with random weights by key, and the tensor names of released files.

The names are derived from the state dicts of transformers, in the direction opposite to the renaming of the converters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from convert.random_weights import random_weights

from synclipmae_jax import checkpoints
from synclipmae_jax.convert import donor
from synclipmae_jax.convert.conversion import Conversion, Cost, convert
from synclipmae_jax.models.decoder import Decoder
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.masking import patchify
from synclipmae_jax.sharding import tree_paths
from synclipmae_jax.train.initialisation import fill as fill_leaves

TOLERANCE = 1e-5
Tensors = dict[str, np.ndarray]


def relative_error(found: Any, expected: Any) -> float:
  """Largest difference divided by the largest expected value."""
  found, expected = np.asarray(found), np.asarray(expected)
  assert found.shape == expected.shape, (found.shape, expected.shape)
  return float(np.abs(found - expected).max() / np.abs(expected).max())


def fill(model: torch.nn.Module, tensors: Mapping[str, np.ndarray] | None = None) -> Tensors:
  """Loads these tensors, or random ones by key, and sets evaluation mode. Returns the tensors."""
  if tensors is None:
    tensors = random_weights({key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
  else:
    tensors = dict(tensors)
  model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}, assign=True)
  model.eval().requires_grad_(False)
  return tensors


def as_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
  return {key: torch.from_numpy(value) for key, value in tensors.items()}


def named(tensors: Mapping[str, Any], *renames: tuple[str, str]) -> dict[str, Any]:
  """The same tensors under other names: pairs of a regular expression and its replacement, in order."""
  renamed = {}
  for key, value in tensors.items():
    for pattern, replacement in renames:
      key = re.sub(pattern, replacement, key)
    renamed[key] = value
  return renamed


def converted(name: str, source: Path, **options: Any) -> tuple[dict[str, Any], Conversion, Cost]:
  """Converts a file or folder and reads the items from the checkpoint."""
  destination = source.parent / f"{source.name}.orbax"
  done, cost = convert(name, src=source, dst=destination, verify=True, **options)
  return {item: checkpoints.load_item(destination, item) for item in done.items}, done, cost


# Sapiens


class Attention(torch.nn.Module):
  def __init__(self, width: int, heads: int):
    super().__init__()
    self.heads, self.scale = heads, (width // heads) ** -0.5
    self.qkv = torch.nn.Linear(width, 3 * width)
    self.proj = torch.nn.Linear(width, width)

  def forward(self, x):
    q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
    attention = torch.softmax(q @ k.transpose(-1, -2) * self.scale, dim=-1)
    return self.proj((attention @ v).transpose(1, 2).flatten(2))


class FeedForward(torch.nn.Module):
  def __init__(self, width: int, hidden: int):
    super().__init__()
    up = torch.nn.Sequential(torch.nn.Linear(width, hidden), torch.nn.GELU(), torch.nn.Dropout(0.0))
    self.layers = torch.nn.Sequential(up, torch.nn.Linear(hidden, width), torch.nn.Dropout(0.0))

  def forward(self, x):
    return self.layers(x)


class Block(torch.nn.Module):
  def __init__(self, width: int, heads: int, hidden: int):
    super().__init__()
    self.ln1 = torch.nn.LayerNorm(width, eps=1e-6)
    self.attn = Attention(width, heads)
    self.ln2 = torch.nn.LayerNorm(width, eps=1e-6)
    self.ffn = FeedForward(width, hidden)

  def forward(self, x):
    x = x + self.attn(self.ln1(x))
    return x + self.ffn(self.ln2(x))


class Sapiens(torch.nn.Module):
  """Modules with the names of the Sapiens files (`MAEViT`). The output is the feature map, as in TorchScript files."""

  def __init__(self, *, image_size: int, patch: int, width: int, depth: int, heads: int, mlp_width: int):
    super().__init__()
    self.grid = image_size // patch
    self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, width))
    self.pos_embed = torch.nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
    self.patch_embed = torch.nn.Module()
    self.patch_embed.projection = torch.nn.Conv2d(3, width, patch, patch)
    self.layers = torch.nn.ModuleList(Block(width, heads, mlp_width) for _ in range(depth))
    self.ln1 = torch.nn.LayerNorm(width, eps=1e-6)

  def forward(self, image):
    x = self.patch_embed.projection(image).flatten(2).transpose(1, 2)
    x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
    for layer in self.layers:
      x = layer(x)
    return self.ln1(x)[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))


def sapiens_as_vit(tensors: Mapping[str, np.ndarray]) -> Tensors:
  """Sapiens' tensors under the names of transformers' ViT and ViTMAE in memory."""
  split = {}
  for key, value in tensors.items():
    if ".attn.qkv." in key:
      for name, part in zip("qkv", np.split(value, 3), strict=True):
        split[key.replace("attn.qkv", f"attention.{name}_proj")] = part
    else:
      split[key] = value
  return named(
    split,
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.", "embeddings.patch_embeddings."),
    (r"^ln1\.", "layernorm."),
    (r"\.ln1\.", ".layernorm_before."),
    (r"\.ln2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
  )


def _vit_sizes(*, image_size: int, patch: int, width: int, depth: int, heads: int, mlp_width: int) -> dict[str, Any]:
  # Sapiens and the original MAE have this epsilon; the default of transformers is 1e-12.
  return dict(
    image_size=image_size, patch_size=patch, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
    intermediate_size=mlp_width, layer_norm_eps=1e-6,
  )  # fmt: skip


def vit(**sizes: int) -> transformers.ViTModel:
  with torch.device("meta"):
    return transformers.ViTModel(transformers.ViTConfig(**_vit_sizes(**sizes)), add_pooling_layer=False)


# ViTMAE


def vit_mae(
  *, decoder: Mapping[str, int] | None = None, cls: type = transformers.ViTMAEForPreTraining, **sizes: int
) -> torch.nn.Module:
  decoder = {f"decoder_{key}": value for key, value in (decoder or {}).items()}
  return cls(transformers.ViTMAEConfig(**_vit_sizes(**sizes), **decoder, mask_ratio=0.75))


def hub_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """Names of ViTMAE in the memory of transformers 5 -> names in the files on the hub, written by version 4."""
  return named(
    tensors,
    (r"^(vit\.)?layers\.", r"\1encoder.layer."),
    (r"\.q_proj\.", ".attention.query."),
    (r"\.k_proj\.", ".attention.key."),
    (r"\.v_proj\.", ".attention.value."),
    (r"\.o_proj\.", ".output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
  )


def original_mae_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
  """Names of ViTMAE in the memory of transformers -> names of facebookresearch/mae, with fused query, key and value."""
  renamed = named(
    tensors,
    (r"^vit\.", ""),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^layers\.", "blocks."),
    (r"^decoder\.decoder_layers\.", "decoder_blocks."),
    (r"^decoder\.", ""),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.q_proj\.", ".attn.qkv."),
  )
  fused = {}
  for key, value in renamed.items():
    if ".attn.qkv." in key:
      others = [renamed[key.replace("attn.qkv", f"attention.{name}_proj")] for name in "kv"]
      fused[key] = np.concatenate([value, *others])
    elif not re.search(r"attention\.[kv]_proj", key):
      fused[key] = value
  return fused


# wav2vec 2.0


def wav2vec2_config(
  *, width: int, depth: int, heads: int, mlp_width: int, conv_width: int, pos_kernel: int, pos_groups: int
) -> transformers.Wav2Vec2Config:
  return transformers.Wav2Vec2Config(
    hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=mlp_width,
    conv_dim=(conv_width,) * 7, num_conv_pos_embeddings=pos_kernel, num_conv_pos_embedding_groups=pos_groups,
    codevector_dim=8, proj_codevector_dim=8, num_codevectors_per_group=4, vocab_size=11,
  )  # fmt: skip


def hub_weight_norm(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """Names of the weight norm in the memory of transformers -> names in the files on the hub."""
  return named(
    tensors, (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
  )  # fmt: skip


def parametrizations(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """Inverse of `hub_weight_norm`."""
  return named(
    tensors, (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
  )  # fmt: skip


# Our visual encoder and decoder, and those of Sapiens and ViTMAE


def pictures(count: int, size: int, seed: int = 0) -> np.ndarray:
  """Normalised pictures [count, size, size, 3]."""
  return np.random.RandomState(seed).standard_normal((count, size, size, 3)).astype(np.float32)


def channels_first(images: np.ndarray) -> torch.Tensor:
  return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def visual_encoder(name: str, sizes: Mapping[str, Any]) -> Callable[..., np.ndarray]:
  """f(params, images, indices=all, prompts=none) -> tokens [B, n, D] of our module, in the order of the sequence.

  Without prompts the arithmetic is that of the donor, class token included. With the three prompts the output of the
  class token is left out, because the module does not return it.
  """
  functional = donor.load(name).modules(**sizes)["visual_encoder"]

  @jax.jit
  def run(params, pixels, indices):
    tokens = functional.bind(params)(pixels, indices)
    return tokens.identity, tokens.vocal, tokens.ambient, tokens.patches

  def encode(params, images, indices=None, prompts=None):
    patches = np.asarray(patchify(jnp.asarray(images), sizes["patch"]))
    indices = np.tile(np.arange(patches.shape[1]), (len(patches), 1)) if indices is None else indices
    visible = np.take_along_axis(patches, indices[..., None], axis=1)
    none = np.zeros((0, sizes["width"]), np.float32)
    params = params | {"prompt_tokens": none if prompts is None else prompts}
    *prefix, encoded = (np.asarray(tokens[0]) for tokens in run(params, visible[None], indices[None]))
    # `identity`, `vocal` and `ambient` are the first three tokens of the sequence, also without prompts.
    prefix = prefix[: sizes["class_token"] if prompts is None else 3]
    return np.concatenate([*(token[:, None] for token in prefix), encoded], axis=1)

  return encode


def kept(noise: np.ndarray, ratio: float = 0.25) -> np.ndarray:
  """Indices of the patches that ViTMAE keeps for this noise, in the same order."""
  return np.argsort(noise, axis=1)[:, : int(noise.shape[1] * ratio)]


@torch.no_grad()
def through_layers(model: torch.nn.Module, embeddings: torch.Tensor) -> np.ndarray:
  """Applies the blocks and the last norm of ViTModel or ViTMAEModel."""
  for layer in model.layers:
    embeddings = layer(embeddings)
  return model.layernorm(embeddings).numpy()


def patch_decoder(**sizes: int) -> Callable[..., np.ndarray]:
  """f(params, tokens [B, k, D], indices) -> pixels [B, n, p] of our decoder.

  `params` are those of a donor. All others are zero, so the cross-attention adds zero.
  """
  functional = Functional(lambda rngs: Decoder(**sizes, rngs=rngs))
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), functional.abstract)

  @jax.jit
  def run(params, tokens, indices):
    prompt = tokens[None, :, 0]
    return functional.bind(params)(
      tokens[None], indices[None], identity=prompt, ambient=prompt, conditioning=prompt[:, :, None]
    )[0, :, 0]

  return lambda params, *args: np.asarray(run(fill_leaves(zeros, dict(tree_paths(params))), *args))


@torch.no_grad()
def decoded_patches(model: torch.nn.Module, tokens: torch.Tensor, ids_restore: torch.Tensor) -> np.ndarray:
  """The decoder of ViTMAEForPreTraining on the encoded patches, without the class token."""
  decoder = model.decoder
  x = decoder.decoder_embed(tokens)
  masked = decoder.mask_token.expand(len(x), ids_restore.shape[1] - x.shape[1], -1)
  x = torch.cat([x, masked], dim=1).gather(1, ids_restore[..., None].expand(-1, -1, x.shape[2]))
  x = x + decoder.decoder_pos_embed[:, 1:]
  for layer in decoder.decoder_layers:
    x = layer(x)
  return decoder.decoder_pred(decoder.decoder_norm(x)).numpy()
