"""Dubbing: flow matching of Wan2.1-VACE with control by audio tokens or vocal-motion tokens (paper section 4.4).

The Wan blocks are frozen, so they have no optimiser state; gradients pass through them to the hints of the VACE path,
which learns together with the AudioPack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.wan import conditioning, flow_matching
from synclipmae_jax.models.wan.audio_pack import AudioPack
from synclipmae_jax.models.wan.autoencoder import make_autoencoder
from synclipmae_jax.models.wan.conditioning import REFERENCES, VideoAutoencoder
from synclipmae_jax.models.wan.dit import PATCH, Dit
from synclipmae_jax.models.wan.dubbing import PREDICTS, DubbingModel, output_channels
from synclipmae_jax.models.wan.samplers import make_sampler, sample
from synclipmae_jax.models.wan.vace import Vace
from synclipmae_jax.sharding import RULES, Rules
from synclipmae_jax.types import Batch, InputError, Params, Task

DIT = "dit"
SAMPLING = ("sampler", "steps", "shift")  # settings of a sampler


class Dubbing(Task):
  """The training of a dubbing model (`types.Task`). Items: `dit`, `vace`, `audio_pack`.

  `modules`: item -> its constructor; `frozen`: whether `dit` is; `predicts`: what the output is. `side`: pixels of a
  picture; `segment`: frames; `drops`: probabilities of `history`, `text` and `control` to be left out of an example.
  With `loss_on_references` the loss counts the latent frames of the references too, except a history that was left out.
  `outside`: what a place outside of the mask counts, beside 1 within; `motion`: what changes within a segment, beside 1
  of what stays.
  """

  name = "dub"
  rules: Rules = RULES
  item = "frames"

  def __init__(
    self,
    modules: Mapping[str, Functional],
    *,
    frozen: bool,
    predicts: str,
    autoencoder: VideoAutoencoder,
    side: int,
    segment: int,
    text_shape: tuple[int, int],
    token_width: int,
    grid: flow_matching.TrainingGrid,
    drops: Mapping[str, float],
    loss_on_references: bool,
    outside: float = 1.0,
    motion: float = 1.0,
  ):
    unit = PATCH * autoencoder.space_stride
    if side < unit or side % unit or segment % autoencoder.time_stride != 1:
      raise InputError(
        f"pictures have a multiple of {unit} pixels and segments 1 + {autoencoder.time_stride} n frames, not {side} and"
        f" {segment}"
      )
    if not all(0 <= drops[name] < 1 for name in ("history", "text", "control")):
      raise InputError(f"history, text and control are dropped with probabilities in [0, 1), not {dict(drops)}")
    if predicts not in PREDICTS:
      raise InputError(f"unknown model.predicts {predicts!r}: {' or '.join(PREDICTS)}")
    if not 0 <= outside <= 1 or not motion > 0:
      raise InputError(f"loss.outside is in [0, 1] and loss.motion positive, not {outside} and {motion}")
    self.modules, self.frozen, self.predicts, self.autoencoder = modules, frozen, predicts, autoencoder
    self.side, self.segment, self.text_shape, self.token_width = side, segment, text_shape, token_width
    self.grid, self.drops = grid, drops
    self.loss_on_references, self.outside, self.motion = loss_on_references, outside, motion

  def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
    keys = dict(zip(self.modules, jax.random.split(key, len(self.modules)), strict=True))
    items = {name: module.init(keys[name]) for name, module in self.modules.items()}
    frozen = {DIT: items.pop(DIT)} if self.frozen else {}
    return items, frozen

  def bind(self, trainable: Params, frozen: Params) -> DubbingModel:
    """The model with these parameters."""
    params = {**trainable, **frozen}
    bound = {name: module.bind(params[name]) for name, module in self.modules.items()}
    return DubbingModel(**bound, predicts=self.predicts)

  def inputs(
    self, batch: Batch, *, history: Bool[Array, " b"]
  ) -> tuple[Float[Array, "b s h w z"], Float[Array, "b s h w c"]]:
    """(clean latents, context) of a batch, the references first. Where `history` is false, its latents are zero."""
    f32 = lambda name: jnp.asarray(batch[name], jnp.float32)
    kept = jnp.stack([jnp.ones_like(history), history], axis=1)[:, :, None, None, None]
    references = jnp.where(kept, f32("references"), 0.0)
    context = conditioning.context(f32("inactive"), f32("reactive"), jnp.asarray(batch["mask"]))
    clean = conditioning.with_references(f32("target"), references)
    return clean, conditioning.with_references(context, references)

  def loss(
    self, trainable: Params, frozen: Params, batch: Batch, key: Key[Array, ""]
  ) -> tuple[Float[Array, ""], Mapping[str, Array]]:
    """The weighted error of the velocity; the unweighted errors by drive, and without control."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
    level_keys, noise_keys, drive_keys, *drop_keys = jax.vmap(lambda k: jax.random.split(k, 6), out_axes=1)(keys)
    draw = jax.vmap(jax.random.uniform)
    kept = {
      name: draw(k) >= self.drops[name] for name, k in zip(("history", "text", "control"), drop_keys, strict=True)
    }
    by_audio = draw(drive_keys) < 0.5
    level = jax.vmap(lambda k: jax.random.randint(k, (), 0, len(self.grid.sigma)))(level_keys)
    sigma = jnp.asarray(self.grid.sigma)[level]

    clean, context = self.inputs(batch, history=kept["history"])
    noise = jax.vmap(lambda k: jax.random.normal(k, clean.shape[1:]))(noise_keys)
    velocity = self.bind(trainable, frozen).velocity(
      flow_matching.add_noise(clean, noise, sigma),
      context,
      jnp.where(kept["text"][:, None, None], jnp.asarray(batch["text"], jnp.float32), 0.0),
      flow_matching.TIMES * sigma,
      jnp.where(by_audio[:, None, None], batch["audio"], batch["video"]).astype(jnp.float32),
      driven=kept["control"],
    )
    if self.motion != 1:
      velocity = flow_matching.with_motion_weighted(
        velocity, clean, noise, references=len(REFERENCES), weight=self.motion
      )
    error = flow_matching.velocity_error(velocity, clean, noise, weight=self._weight(batch["mask"], clean.shape[2]))
    counted = jnp.ones_like(error)
    if self.loss_on_references:
      counted = counted.at[:, REFERENCES.index("history")].set(kept["history"])
    else:
      counted = counted.at[:, : len(REFERENCES)].set(0.0)
    error = (error * counted).sum(axis=1) / counted.sum(axis=1)
    loss = (error * jnp.asarray(self.grid.weight)[level]).mean()
    groups = {
      "by_audio": kept["control"] & by_audio,
      "by_video": kept["control"] & ~by_audio,
      "undriven": ~kept["control"],
    }
    mean = lambda chosen: jnp.stack([(error * chosen).sum(), chosen.sum(dtype=jnp.float32)])
    return loss, {"loss": loss, **{f"error_{name}": mean(chosen) for name, chosen in groups.items()}}

  def _weight(self, mask: Bool[Array, "b h w"], rows: int) -> Float[Array, "b h2 w2"]:
    """What each of `rows` x `rows` latents counts: 1 in the mask, `outside` beside it."""
    size = mask.shape[1] // rows
    within = jnp.asarray(mask, jnp.float32).reshape(len(mask), rows, size, rows, size).mean(axis=(2, 4))
    return self.outside + (1 - self.outside) * within

  def abstract_batches(self, batch_size: int) -> list[Batch]:
    vae = self.autoencoder
    place = (self.side // vae.space_stride, self.side // vae.space_stride, vae.latent)
    latents, tokens = (self.latent_frames, *place), (self.segment, self.token_width)
    shapes = {
      **dict.fromkeys(("target", "inactive", "reactive"), (latents, jnp.float16)),
      "references": ((len(REFERENCES), *place), jnp.float16),
      "mask": ((self.side, self.side), jnp.bool_),
      "text": (self.text_shape, jnp.float16),
      **dict.fromkeys(("audio", "video"), (tokens, jnp.float16)),
      "index": ((), jnp.uint32),
    }
    return [{name: jax.ShapeDtypeStruct((batch_size, *shape), dtype) for name, (shape, dtype) in shapes.items()}]

  @property
  def latent_frames(self) -> int:
    """Of a segment, without references."""
    return 1 + (self.segment - 1) // self.autoencoder.time_stride

  def count_items(self, batch: Batch) -> int:
    """Number of frames to generate."""
    return batch["index"].shape[0] * self.segment

  def model_flops(self, batch: Batch) -> float:
    """FLOPs of one training step. A frozen backbone passes gradients on but has none of its own: twice its forward."""
    frames = self.latent_frames + len(REFERENCES)
    tokens = frames * (self.side // self.autoencoder.space_stride // PATCH) ** 2
    model = self.bind({name: module.abstract for name, module in self.modules.items()}, {})
    learnt = model.vace.flops(tokens, text_length=model.dit.text_length) + model.audio_pack.flops(self.latent_frames)
    backbone = model.dit.flops(tokens)
    return float(batch["index"].shape[0] * (3 * learnt + (2 if self.frozen else 3) * backbone))


class Generator:
  """Generates segments by a task's model.

  `settings`: `evaluation` of configs/dub.py. Raises InputError for a wrong sampler.
  """

  def __init__(self, task: Dubbing, settings: Mapping[str, Any]):
    self._task = task
    self._sampler = make_sampler(settings["sampler"], steps=settings["steps"], shift=settings["shift"])
    self._text, self._control = settings["text_guidance"], settings["control_guidance"]
    self.velocity = jax.jit(self._velocity_of, static_argnames=("texted", "driven"))

  @property
  def steps(self) -> int:
    """Of the sampler."""
    return len(self._sampler)

  def __call__(
    self,
    trainable: Params,
    frozen: Params,
    noise,
    context,
    text,
    tokens,
    *,
    controlled: bool = True,
    progress: Callable[[int, int], None] | None = None,
  ) -> Float[Array, "b s h w z"]:
    """Clean latents [B, S, H, W, Z], with the references first. Without `controlled` the tokens are not used.

    `noise`: [B, S, H, W, Z]; the rest as in `DubbingModel.velocity`.
    """

    def velocity(latents, t):
      told = lambda texted, driven: self.velocity(
        trainable, frozen, latents, context, text, t, tokens, texted=texted, driven=driven and controlled
      )
      return flow_matching.guided(told, text=self._text, control=self._control if controlled else 1.0)

    return sample(velocity, noise, self._sampler, progress=progress)

  def at_once(self, trainable: Params, frozen: Params, noise, context, text, tokens) -> Float[Array, "b s h w z"]:
    """What a call gives with one step of Euler's and without guidance: about the mean of all that the tokens allow."""
    t = jnp.full(len(noise), float(flow_matching.TIMES))
    return noise - self.velocity(trainable, frozen, noise, context, text, t, tokens, texted=True, driven=True)

  def memory(self, trainable: Params, frozen: Params, *inputs: Any) -> int:
    """Bytes of one evaluation of the model beside its parameters and inputs. `inputs`: as for a call, from noise on."""
    noise, context, text, tokens = inputs
    times = jnp.zeros(len(noise))
    given = (trainable, frozen, noise, context, text, times, tokens)
    used = self.velocity.lower(*given, texted=True, driven=True).compile().memory_analysis()
    return 0 if used is None else used.temp_size_in_bytes + used.output_size_in_bytes

  def _velocity_of(self, trainable, frozen, latents, context, text, t, tokens, *, texted: bool, driven: bool):
    text = jnp.asarray(text, jnp.float32) if texted else jnp.zeros(text.shape)
    return self._task.bind(trainable, frozen).velocity(
      latents, context, text, t, jnp.asarray(tokens, jnp.float32), driven=jnp.full(len(latents), driven)
    )


def from_config(config: Mapping[str, Any]) -> Dubbing:
  """Builds the task of a configuration (configs/dub.py), given as nested dicts."""
  data, model, loss = config["data"], config["model"], config["loss"]
  autoencoder = make_autoencoder(**model["autoencoder"])
  compute = {name: model[name] for name in ("unroll", "remat")} | {"compute_dtype": jnp.dtype(model["compute_dtype"])}
  block = {name: model[DIT][name] for name in ("width", "heads", "mlp_width")}
  channels = 2 * autoencoder.latent + autoencoder.space_stride**2
  out_channels = output_channels(model["predicts"], autoencoder.latent)
  dit = {**model[DIT], "in_channels": autoencoder.latent, "out_channels": out_channels}
  pack = {**model["audio_pack"], "token_width": data["token_width"], "width": block["width"]}
  modules = {
    DIT: Functional(lambda rngs: Dit(**dit, **compute, rngs=rngs)),
    "vace": Functional(lambda rngs: Vace(**block, **model["vace"], context_channels=channels, **compute, rngs=rngs)),
    "audio_pack": Functional(
      lambda rngs: AudioPack(**pack, group=autoencoder.time_stride, compute_dtype=compute["compute_dtype"], rngs=rngs)
    ),
  }
  return Dubbing(
    modules,
    frozen=model["frozen_backbone"],
    predicts=model["predicts"],
    autoencoder=autoencoder,
    side=data["image_size"],
    segment=data["segment_frames"],
    text_shape=(data["text_tokens"], dit["text_width"]),
    token_width=data["token_width"],
    grid=flow_matching.training_grid(shift=loss["shift"], weights=loss["weights"]),
    drops=loss["drops"],
    loss_on_references=loss["on_references"],
    outside=loss["outside"],
    motion=loss["motion"],
  )
