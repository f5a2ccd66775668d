"""MARLIN (Cai et al. 2023): VideoMAE's network, pretrained on faces; names of its package marlin-pytorch."""

from __future__ import annotations

import numpy as np

from synclipmae_jax.convert.donor import Donor, Naming
from synclipmae_jax.convert.rules import LINEAR, Layout, Rule, ones
from synclipmae_jax.convert.videomae import (
  DECODER,
  ENCODER,
  ORIGINAL,
  TUBES,
  block,
  dense,
  norm,
  video_modules,
  video_sizes,
)

_NAMES = ORIGINAL | {"up": "mlp.layers.0.linear", "down": "mlp.layers.1.linear"}
# Its decoder restores a tube by channel, frame, row, column; ours has the channel fastest.
_swap = lambda x, a, b: x.reshape(a, b, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
_PIXELS = Layout(
  lambda weight: (np.ascontiguousarray(_swap(weight, 3, -1).T),),
  lambda kernel: (_swap(kernel.T, -1, 3),),
)
_PIXEL_BIAS = Layout(lambda bias: (_swap(bias, 3, -1),), lambda bias: (_swap(bias, -1, 3),))

_ENCODER = (
  *dense("encoder.patch_embedding.projection", f"{ENCODER}/patch_embedding", TUBES),
  Rule("encoder.pos_embedding.emb", f"{ENCODER}/position", ones(before=1)),
  *block("encoder.blocks.{i}", ENCODER, _NAMES),
  *norm("encoder.norm", f"{ENCODER}/norm"),
)
_DECODER = (
  Rule("enc_dec_proj.weight", f"{DECODER}/embed_tokens/kernel", LINEAR),
  Rule("decoder.mask_token", f"{DECODER}/mask_token", ones(before=1)),
  Rule("decoder.pos_embedding.emb", f"{DECODER}/position", ones(before=1)),
  *block("decoder.blocks.{i}", DECODER, _NAMES),
  *norm("decoder.norm", f"{DECODER}/norm"),
  Rule("decoder.head.weight", f"{DECODER}/to_pixels/kernel", _PIXELS),
  Rule("decoder.head.bias", f"{DECODER}/to_pixels/bias", _PIXEL_BIAS),
)
# The files on the Hugging Face hub have a prefix, those of a training run the critic.
_RENAME = ((r"^marlin\.", ""),)
_DROP = (r"discriminator\..*",)

DONOR = Donor(
  name="marlin",
  title="MARLIN",
  licence="CC-BY-NC-4.0",
  origin="marlin_vit_base_ytf.encoder.pt or .full.pt (small, large) of ControlNet/MARLIN; model.safetensors of "
  "ControlNet/marlin_vit_base_ytf",
  namings=(
    Naming("MARLIN", (*_ENCODER, *_DECODER), _RENAME, _DROP),
    Naming("MARLIN, encoder only", _ENCODER, _RENAME, _DROP),
  ),
  sizes=lambda leaves: video_sizes(leaves, epsilon=1e-5, normalise=False),
  modules=video_modules,
)
