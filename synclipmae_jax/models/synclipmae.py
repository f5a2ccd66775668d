"""The SyncLipMAE model (Figure 1 of the paper).

    frames ──┬─ uniform mask ──────────────┐                 ┌─ identity (shuffled) ─┐
             └─ face-preserving mask, jitter ┴─ visual encoder ┼─ vocal | ambient ─────┼─ decoder, twice ─ pixels
    sound ──── speech encoder (frozen) ─ audio adapter ────────── audio ──────────────┘

`init`, `apply` (training: masks, jitter, decoding) and `embed` (inference: fixed views, no jitter, no key) are pure
functions of plain nested dicts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8

from synclipmae_jax.models import augment, masking
from synclipmae_jax.models.audio_adapter import AudioAdapter
from synclipmae_jax.models.decoder import Decoder
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.layers import rematerialise
from synclipmae_jax.models.logmel import LogMel
from synclipmae_jax.models.speech_encoder import audio_windows, centre_tokens
from synclipmae_jax.models.visual_encoder import FrameTokens, VisualEncoder, normalise_pixels
from synclipmae_jax.models.wav2vec2 import Wav2Vec2
from synclipmae_jax.types import SAMPLES_PER_FRAME, Batch, InputError, Params, Tokens

VIEWS = ("two_bypass", "uniform", "face")  # the paper; ablation A1; ablation A2
# What `embed` sees: every patch; as many as in training, each token from the view it is trained from; the heaviest
# patches for all tokens, which older checkpoints name.
EMBED_VISIBLE = ("all", "as_trained", "face_topk")
SPEECH_ENCODERS = ("wav2vec2", "log_mel")
Frames = UInt8[Array, "b t s s 3"] | Float[Array, "b t s s 3"]  # RGB, 0..255 or in [0, 1]

jax.tree_util.register_dataclass(Tokens, ["identity", "vocal", "ambient", "audio"], [])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Outputs:
  """Outputs of one training forward pass. F of the T frames are decoded."""

  identity: Float[Array, "b f d"]  # before the shuffle
  vocal: Float[Array, "b t d"]
  ambient: Float[Array, "b t d"]
  context_vocal: Float[Array, "b f d"]  # of the context view, as the next
  context_ambient: Float[Array, "b f d"]
  audio: Float[Array, "b t d"]
  speech_features: Float[Array, "b t c"]  # frozen; the last layer of the speech encoder
  decoded: Int[Array, "b f"]  # indices of the decoded frames
  predicted: Float[Array, "b f q n p"]  # normalised pixels; q = video-driven, audio-driven
  target: Float[Array, "b f n p"]  # normalised pixels of the un-jittered frame
  masked: Float[Array, "b f n"]  # 1 where the decoder did not see the patch
  keypoints: Float[Array, "b t p 2"] | None  # of the batch, moved by the crop jitter
  motion: Float[Array, "b n"]  # how much each patch changes within the clip, relative to the other patches
  motion_view: Float[Array, "b f n p"]  # jittered input of the motion view, masked patches at 0; for pictures only


class SyncLipMAEModel:
  """The model as three pure functions. Its keyword arguments have the meaning that configs/pretrain.py documents.

  `visual_encoder`, `decoder` and `audio_adapter` are keyword arguments of those modules. `speech_encoder` has `kind`,
  one of SPEECH_ENCODERS, and the keyword arguments of that encoder under the name of the kind.
  Raises InputError for arguments that do not fit together.
  """

  def __init__(
    self,
    *,
    visual_encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    speech_encoder: Mapping[str, Any],
    audio_adapter: Mapping[str, Any],
    clip_frames: int,
    audio_frames: int,
    decode_frames: int,
    mask_ratio: float,
    face_weight: float,
    mouth_weight: float,
    views: str,
    jitter: Mapping[str, float] | None,
    crop_jitter: Mapping[str, float] | None = None,
    camera_jitter: Mapping[str, float] | None = None,
    box_jitter: float = 0.0,
    shuffle_probability: float,
    embed_visible: str,
    faceless_context: float = 0.0,
    compute_dtype=jnp.float32,
    unroll: bool | int = 1,
    remat: str = "none",
  ):
    if views not in VIEWS or embed_visible not in EMBED_VISIBLE:
      raise InputError(
        f"views is one of {VIEWS} and embed_visible one of {EMBED_VISIBLE}, got {views!r} and {embed_visible!r}"
      )
    rematerialise(lambda: None, remat)  # raises ValueError for an unknown policy
    if min(visual_encoder["depth"], decoder["depth"]) < 1:
      raise InputError("the visual encoder and the decoder must have at least one block each")
    if not 1 <= decode_frames <= clip_frames <= audio_frames or (audio_frames - clip_frames) % 2:
      raise InputError(
        f"need 1 <= decode_frames <= clip_frames <= audio_frames with an even difference of the last two, "
        f"got {decode_frames}, {clip_frames}, {audio_frames}"
      )
    self.clip_frames, self.audio_frames, self.decode_frames = clip_frames, audio_frames, decode_frames
    self.views, self.embed_visible = views, embed_visible
    self.jitter, self.crop_jitter, self.camera_jitter, self.box_jitter = jitter, crop_jitter, camera_jitter, box_jitter
    self.face_weight, self.mouth_weight = face_weight, mouth_weight
    self.shuffle_probability, self.faceless_context = shuffle_probability, faceless_context
    self.image_size, self.patch, self.width = (visual_encoder[k] for k in ("image_size", "patch", "width"))
    self.grid = self.image_size // self.patch
    self.patches = self.grid**2
    self.visible = round(self.patches * (1 - mask_ratio))
    if not 0 < self.visible < self.patches:
      raise InputError(f"mask ratio {mask_ratio} leaves {self.visible} of {self.patches} patches visible")

    common = dict(compute_dtype=compute_dtype, unroll=unroll)
    self._speech = Functional(lambda rngs: _speech_encoder(speech_encoder, **common, rngs=rngs))
    speech = self._speech.bind(self._speech.abstract)
    features = speech.width if audio_adapter["layers"] == "last" else speech.features
    self._visual = Functional(lambda rngs: VisualEncoder(**visual_encoder, **common, remat=remat, rngs=rngs))
    self._adapter = Functional(
      lambda rngs: AudioAdapter(
        **audio_adapter, in_features=features, width=self.width, compute_dtype=compute_dtype, rngs=rngs
      )
    )
    self._decoder = Functional(
      lambda rngs: Decoder(
        **decoder, grid=self.grid, patch=self.patch, token_width=self.width, **common, remat=remat, rngs=rngs
      )
    )

  def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
    """(trainable, frozen) parameters; their top-level keys are the checkpoint items."""
    visual, adapter, decoder, speech = jax.random.split(key, 4)
    trainable = {
      "visual_encoder": self._visual.init(visual),
      "audio_adapter": self._adapter.init(adapter),
      "decoder": self._decoder.init(decoder),
    }
    return trainable, {"speech_encoder": self._speech.init(speech)}

  def apply(self, trainable: Params, frozen: Params, batch: Batch, key: Key[Array, ""]) -> Outputs:
    """Training forward pass. The random choices of a clip depend on `key` and its stream index only."""
    frames = self.clip_frames
    keys = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(key, index), 9))(batch["index"])
    uniform_key, face_key, jitter_key, frame_key, shuffle_key, crop_key, faceless_key, camera_key, box_key = (
      keys[:, i] for i in range(9)
    )
    if self.crop_jitter is not None:
      batch = augment.crop_jitter_of_pairs(crop_key, batch, **self.crop_jitter)
    patches = masking.patchify(batch["frames"], self.patch)
    decoded = _choose_frames(frame_key, frames=frames, chosen=self.decode_frames)

    motion_indices = self._motion_mask(face_key, box_key, batch)
    motion_pixels = self._motion_pixels(jitter_key, camera_key, batch["frames"], motion_indices)

    encoder = self._visual.bind(trainable["visual_encoder"])
    target = _take_frames(patches, decoded)
    if self.views == "two_bypass":
      context_indices = masking.sample_visible(
        uniform_key, frames=self.decode_frames, patches=self.patches, visible=self.visible
      )
      context_pixels = normalise_pixels(_to_unit(masking.take_patches(target, context_indices)))
      # One encoder call for the context view of the decoded frames and the motion view of all frames. They are
      # concatenated on the frame axis, because the clip axis is sharded.
      tokens = encoder(
        jnp.concatenate([context_pixels, motion_pixels], axis=1),
        jnp.concatenate([context_indices, motion_indices], axis=1),
      )
      identity, context_vocal, context_ambient, visible = (
        x[:, : self.decode_frames] for x in (tokens.identity, tokens.vocal, tokens.ambient, tokens.patches)
      )
      vocal, ambient = tokens.vocal[:, self.decode_frames :], tokens.ambient[:, self.decode_frames :]
    else:
      tokens = encoder(motion_pixels, motion_indices)
      identity, visible, context_indices = (
        _take_frames(x, decoded) for x in (tokens.identity, tokens.patches, motion_indices)
      )
      vocal, ambient = tokens.vocal, tokens.ambient
      context_vocal, context_ambient = _take_frames(vocal, decoded), _take_frames(ambient, decoded)

    hidden = self._hidden_states(frozen, batch["waveform"])
    hidden = centre_tokens(hidden[:, None], clip_frames=frames, total_frames=frames)  # one window, as in `embed`
    audio = self._adapter.bind(trainable["audio_adapter"])(hidden)

    if self.faceless_context:
      faceless = jax.vmap(lambda k: jax.random.bernoulli(k, self.faceless_context, decoded.shape[1:]))(faceless_key)
      face_box = _take_frames(batch["face_box"], decoded)
      context_indices = masking.leave_out_face(context_indices, face_box, frames=faceless, grid=self.grid)
    predicted = self._decoder.bind(trainable["decoder"])(
      visible,
      context_indices,
      identity=self._shuffle(identity, shuffle_key),
      ambient=_take_frames(ambient, decoded),
      conditioning=jnp.stack([_take_frames(vocal, decoded), _take_frames(audio, decoded)], axis=2),
    )
    return Outputs(
      identity=identity,
      vocal=vocal,
      ambient=ambient,
      context_vocal=context_vocal,
      context_ambient=context_ambient,
      audio=audio,
      speech_features=hidden[:, :, -1],
      decoded=decoded,
      predicted=predicted,
      target=normalise_pixels(_to_unit(target)),
      masked=1 - masking.visibility(context_indices, self.patches),
      keypoints=batch.get("keypoints"),
      motion=masking.motion_of(patches),
      motion_view=_scatter(_take_frames(motion_pixels, decoded), _take_frames(motion_indices, decoded), self.patches),
    )

  def embed(
    self,
    trainable: Params,
    frozen: Params,
    frames: Frames,
    waveform: Float[Array, "b n"],
    *,
    face_box: Float[Array, "b t 4"] | None = None,
    mouth_box: Float[Array, "b t 4"] | None = None,
  ) -> Tokens:
    """Tokens of whole clips.

    `frames` are uint8 RGB; `waveform` is float32 [B, 640 * T] in [-1, 1] and covers the same time. Boxes, in fractions
    of the image, are not used with `embed_visible="all"`; missing boxes are replaced by `masking.FACE_PRIOR` and
    `masking.MOUTH_PRIOR`. Raises ValueError for a waveform of another shape.
    """
    clips, total = frames.shape[:2]
    if waveform.shape != (clips, SAMPLES_PER_FRAME * total):
      raise ValueError(f"{total} frames need a waveform of {(clips, SAMPLES_PER_FRAME * total)}, got {waveform.shape}")
    visual = self.embed_visual(trainable, frames, face_box=face_box, mouth_box=mouth_box)
    audio = self.embed_audio(trainable, frozen, waveform)
    return dataclasses.replace(visual, audio=audio)

  def embed_visual(self, trainable: Params, frames, *, face_box=None, mouth_box=None) -> Tokens:
    """The visual half of `embed`; `audio` is None."""
    context_indices, motion_indices = self._embed_indices(frames.shape[:2], face_box, mouth_box)
    encode = functools.partial(self.encode, trainable, frames, prompts_only=True)
    motion = encode(motion_indices)
    context = motion if context_indices is motion_indices else encode(context_indices)
    as_float = lambda x: x.astype(jnp.float32)
    return Tokens(
      identity=as_float(context.identity), vocal=as_float(motion.vocal), ambient=as_float(motion.ambient), audio=None
    )

  def _embed_indices(self, shape, face_box, mouth_box) -> tuple[Int[Array, "b t k"], Int[Array, "b t k"]]:
    """Patches of the view that identity is taken from, and of the view of the motion tokens; of two equal views, one.

    With `as_trained` they stand for the views of training: evenly spread patches for the uniform view, the heaviest
    for the face-preserving one. In ablation A1 both are the former, in A2 the latter.
    """
    if self.embed_visible == "all":
      every = jnp.broadcast_to(jnp.arange(self.patches), (*shape, self.patches))
      return every, every
    face_box = jnp.broadcast_to(jnp.asarray(masking.FACE_PRIOR), (*shape, 4)) if face_box is None else face_box
    mouth_box = jnp.full((*shape, 4), -1.0) if mouth_box is None else mouth_box
    weights = masking.keep_weights(face_box, mouth_box, grid=self.grid, face=self.face_weight, mouth=self.mouth_weight)
    heaviest = masking.top_weighted(weights, self.visible)
    if self.embed_visible == "face_topk" or self.views == "face":
      return heaviest, heaviest
    even = jnp.broadcast_to(masking.spread_evenly(self.grid, self.visible), (*shape, self.visible))
    return even, even if self.views == "uniform" else heaviest

  def embed_audio(self, trainable: Params, frozen: Params, waveform: Float[Array, "b n"]) -> Float[Array, "b t d"]:
    """Audio tokens of whole files, computed in windows of the same length as in training."""
    total = waveform.shape[1] // SAMPLES_PER_FRAME
    windows = audio_windows(waveform, audio_frames=self.audio_frames, clip_frames=self.clip_frames)
    hidden = self._hidden_states(frozen, rearrange(windows, "b w n -> (b w) n"))
    hidden = rearrange(hidden, "(b w) t l c -> b w t l c", b=len(waveform))
    hidden = centre_tokens(hidden, clip_frames=self.clip_frames, total_frames=total)
    return self._adapter.bind(trainable["audio_adapter"])(hidden).astype(jnp.float32)

  def encode(
    self, trainable: Params, frames: Frames, indices: Int[Array, "b t k"], *, prompts_only: bool = False
  ) -> FrameTokens:
    """Runs the visual encoder on the given patches of each frame."""
    pixels = normalise_pixels(_to_unit(masking.take_patches(masking.patchify(frames, self.patch), indices)))
    return self._visual.bind(trainable["visual_encoder"])(pixels, indices, prompts_only=prompts_only)

  def decode(self, trainable: Params, patches, indices, *, identity, ambient, conditioning):
    """Runs the decoder, for pictures and factor swaps; see `Decoder.__call__`."""
    return self._decoder.bind(trainable["decoder"])(
      patches, indices, identity=identity, ambient=ambient, conditioning=conditioning
    )

  def flops(self) -> int:
    """FLOPs of one clip's training pass without the losses. Trained modules count three times, frozen ones once."""
    visual, adapter, decoder, speech = (
      part.bind(part.abstract) for part in (self._visual, self._adapter, self._decoder, self._speech)
    )
    views = self.clip_frames + (self.decode_frames if self.views == "two_bypass" else 0)
    trained = (
      views * visual.flops(self.visible)
      + self.decode_frames * decoder.flops(self.visible)
      + adapter.flops(self.clip_frames)
    )
    return 3 * trained + speech.flops(self.audio_frames)

  @jax.named_scope("augmentation")
  def _motion_mask(self, keys: Key[Array, " b"], box_keys: Key[Array, " b"], batch: Batch) -> Int[Array, "b t k"]:
    """Visible patches of the motion view: face-preserving, or uniform in ablation A1."""
    weights = None
    if self.views != "uniform":
      face, mouth = batch["face_box"], batch["mouth_box"]
      if self.box_jitter:
        jitter = jax.vmap(lambda k, boxes: augment.box_jitter(k, boxes, amount=self.box_jitter))
        face, mouth = jitter(box_keys, jnp.stack([face, mouth], axis=1)).swapaxes(0, 1)
      weights = masking.keep_weights(face, mouth, grid=self.grid, face=self.face_weight, mouth=self.mouth_weight)
    return masking.sample_visible(
      keys, frames=self.clip_frames, patches=self.patches, visible=self.visible, weights=weights
    )

  @jax.named_scope("augmentation")
  def _motion_pixels(
    self, keys: Key[Array, " b"], camera_keys: Key[Array, " b"], frames: Frames, indices: Int[Array, "b t k"]
  ) -> Float[Array, "b t k p"]:
    """Jittered and normalised pixels of the motion view."""
    camera = self.camera_jitter
    if camera is not None:
      strengths = dict(blur=camera["blur"], light=camera["light"])
      frames = jax.vmap(lambda k, x: augment.blur_and_light(k, x, **strengths))(camera_keys, frames)
    pixels = _to_unit(masking.take_patches(masking.patchify(frames, self.patch), indices))
    if self.jitter is not None:
      mean_luma = augment.mean_luma(frames) / (255 if camera is None else 1)
      affine = jax.vmap(lambda k, m: augment.jitter_affine(k, m, **self.jitter))(keys, mean_luma)
      pixels = augment.apply_affine(pixels, *affine)
    if camera is not None:
      noisy = jax.vmap(lambda k, x: augment.noise(jax.random.fold_in(k, 0), x, amount=camera["noise"]))
      pixels = noisy(camera_keys, pixels)
    return normalise_pixels(pixels)

  def _hidden_states(self, frozen: Params, waveform: Float[Array, "b n"]) -> Float[Array, "b t l c"]:
    return self._speech.bind(frozen["speech_encoder"])(waveform)

  def _shuffle(self, identity: Float[Array, "b f d"], keys: Key[Array, " b"]) -> Float[Array, "b f d"]:
    """Permutes identity tokens among the frames of the two windows of a record, with probability `shuffle_probability`.

    The frames show the same subject in different motion. The permutation stays within a record, so that no data moves
    between devices; a permutation by subject over the batch compiled to two all-gathers.
    """
    frames = identity.shape[1]
    pairs = rearrange(identity, "(r w) f d -> r (w f) d", w=2)

    def permutation(key):
      coin, order = jax.random.split(key)
      stay = jnp.arange(2 * frames)
      moved = jax.random.permutation(order, 2 * frames)
      return jnp.where(jax.random.bernoulli(coin, self.shuffle_probability), moved, stay)

    order = jax.vmap(permutation)(rearrange(keys, "(r w) -> r w", w=2)[:, 0])
    return rearrange(masking.take_patches(pairs, order), "r (w f) d -> (r w) f d", w=2)


def _speech_encoder(
  sizes: Mapping[str, Any], *, compute_dtype, unroll: bool | int, rngs: nnx.Rngs
) -> Wav2Vec2 | LogMel:
  match sizes["kind"]:
    case "wav2vec2":
      return Wav2Vec2(**sizes["wav2vec2"], compute_dtype=compute_dtype, unroll=unroll, rngs=rngs)
    case "log_mel":
      return LogMel(**sizes["log_mel"], compute_dtype=compute_dtype)
  raise InputError(f"unknown speech encoder {sizes['kind']!r}: one of {', '.join(SPEECH_ENCODERS)}")


def _to_unit(pixels: Array) -> Float[Array, "*b p"]:
  """uint8 -> float in [0, 1]. Floats are in [0, 1] already and pass unchanged, with their gradients."""
  return pixels.astype(jnp.float32) / (255 if pixels.dtype == jnp.uint8 else 1)


def _choose_frames(keys: Key[Array, " b"], *, frames: int, chosen: int) -> Int[Array, "b f"]:
  """Indices of the decoded frames of each clip, in order of time."""
  if chosen == frames:
    return jnp.broadcast_to(jnp.arange(frames), (len(keys), frames))
  return jnp.sort(jax.vmap(lambda key: jax.random.permutation(key, frames)[:chosen])(keys), axis=1)


def _take_frames(x: Array, decoded: Int[Array, "b f"]) -> Array:
  """[B, T, ...] -> [B, F, ...], without a gather if every frame is decoded."""
  if decoded.shape[1] == x.shape[1]:
    return x
  return jax.vmap(lambda x, index: x[index])(x, decoded)


def _scatter(pixels: Float[Array, "b f k p"], indices: Int[Array, "b f k"], patches: int) -> Float[Array, "b f n p"]:
  place = jax.nn.one_hot(indices, patches, dtype=pixels.dtype)
  return jnp.einsum("bfkn,bfkp->bfnp", place, pixels)


def build_model(config: Mapping[str, Any]) -> SyncLipMAEModel:
  """Builds the model of a configuration (configs/pretrain.py), given as nested dicts.

  Raises KeyError, TypeError, ValueError or ArithmeticError for an invalid configuration.
  """
  data, model = config["data"], dict(config["model"])
  model["visual_encoder"] = {**model["visual_encoder"], "image_size": data["image_size"]}
  model["compute_dtype"] = jnp.dtype(model["compute_dtype"])
  return SyncLipMAEModel(**model, clip_frames=data["clip_frames"], audio_frames=data["audio_frames"])
