"""The autoencoders of dubbing by the names of their kinds."""

from __future__ import annotations

from typing import Any

from flax import nnx

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
