"""The autoencoders of dubbing by the names of their kinds."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.wan.conditioning import VideoAutoencoder
from synclipmae_jax.models.wan.space_to_depth import SpaceToDepth
from synclipmae_jax.models.wan.vae import Vae
from synclipmae_jax.types import InputError, Params

KINDS = ("wan", "space_to_depth")


def make_autoencoder(kind: str, params: Params | None = None, **sizes: Any) -> VideoAutoencoder:
  """The autoencoder of a kind: the Wan VAE with its parameters, or the stand-in, which has none.

  Without `params` a Wan VAE knows its sizes only. Raises InputError for another kind.
  """
  if kind == "space_to_depth":
    return SpaceToDepth(**sizes)
  if kind != "wan":
    raise InputError(f"unknown autoencoder {kind!r}: {' or '.join(KINDS)}")
  functional = wan_functional(**sizes)
  return functional.bind(functional.abstract if params is None else params)


def wan_functional(**sizes: Any) -> Functional:
  """The Wan VAE as pure functions; `sizes` are arguments of `Vae`."""

  def make(rngs: nnx.Rngs) -> Vae:
    return Vae(**sizes, rngs=rngs)

  return Functional(make)


class CompiledAutoencoder:
  """An autoencoder with its parameters, compiled for every shape that it is given; see `make_autoencoder`."""

  def __init__(self, kind: str, params: Params | None = None, **sizes: Any):
    sized = make_autoencoder(kind, **sizes)
    self.latent, self.space_stride, self.time_stride = sized.latent, sized.space_stride, sized.time_stride
    self._params = params
    # The parameters are an argument: 0.5 GB of constants would be compiled for minutes.
    self._encode = jax.jit(lambda params, video: make_autoencoder(kind, params, **sizes).encode(video))
    self._decode = jax.jit(lambda params, latents: make_autoencoder(kind, params, **sizes).decode(latents))

  def encode(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b s h2 w2 z"]:
    """See `Vae.encode`."""
    return self._encode(self._params, video)

  def decode(self, latents: Float[Array, "b s h2 w2 z"]) -> Float[Array, "b t h w 3"]:
    """See `Vae.decode`."""
    return self._decode(self._params, latents)
