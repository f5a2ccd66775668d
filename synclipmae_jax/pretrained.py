"""A trained model, ready to use: `SyncLipMAE.load()`, then `embed`, `sync`, and `sync_loss` for who trains generators.

Only what serves is read from a checkpoint: visual encoder, audio adapter and speech encoder. The model is the one that
the checkpoint's stamp describes, and footage is prepared as the stamp says, or the checkpoint is refused by name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from synclipmae_jax.checkpoints import checkpoint
from synclipmae_jax.data.clips import VERSION
from synclipmae_jax.data.faces import backends as faces
from synclipmae_jax.inference import stream
from synclipmae_jax.models import augment, synclipmae
from synclipmae_jax.sync import analysis
from synclipmae_jax.sync.calibration import Calibration
from synclipmae_jax.sync.result import SyncResult
from synclipmae_jax.types import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, InputError, Params, Tokens

DEMO = Path(__file__).with_name("demo_checkpoint")
SYNTHETIC = "this checkpoint has seen synthetic faces only"
# The footage that this version can prepare. Size of the picture and visible patches are a checkpoint's own affair.
_PREPROCESSING = {"fps": FPS, "sample_rate": SAMPLE_RATE, "crop": faces.CROP_RULE, "version": VERSION}


def build_model(config: Mapping[str, Any]) -> synclipmae.SyncLipMAE:
  """The model of a configuration (configs/pretrain.py) as plain dicts.

  Raises KeyError, TypeError, ValueError or ArithmeticError for one that makes no model.
  """
  data, model = config["data"], dict(config["model"])
  model["visual_encoder"] = {**model["visual_encoder"], "image_size": data["image_size"]}
  model["compute_dtype"] = jnp.dtype(model["compute_dtype"])
  return synclipmae.SyncLipMAE(**model, clip_frames=data["clip_frames"], audio_frames=data["audio_frames"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding:
  """Tokens of T frames at 25 frames/s, un-normalised (take the cosine). Rows without a face are nan but for `audio`."""

  identity: np.ndarray  # float32 [T, D]
  vocal: np.ndarray  # float32 [T, D]
  ambient: np.ndarray  # float32 [T, D]
  audio: np.ndarray  # float32 [T, D]
  times: np.ndarray  # float64 [T] s, from the first picture
  face_box: np.ndarray  # float32 [T, 4] x0, y0, x1, y1 as fractions of the picture


class SyncLipMAE:
  """A trained model. `SyncLipMAE.load` makes one.

  `name` says where it comes from, `notes` what a user must know of it, `image_size` is S.
  """

  def __init__(
    self,
    model: synclipmae.SyncLipMAE,
    params: Params,
    *,
    name: str,
    calibration: Calibration,
    notes: Sequence[str] = (),
  ):
    self.model, self.params = model, params
    # Detectors differ in what they call a face. Where training jittered the crop, lips are read from a closer crop
    # too: on a photograph the z of the lag rises from 3 to 5, on footage like the training data nothing changes.
    jitter = model.crop_jitter
    self.looks = (1.0, 1 + 0.8 * (jitter["zoom"] - 1)) if jitter else (1.0,)
    self.name, self.calibration, self.notes = name, calibration, tuple(notes)
    self.image_size = model.image_size
    lead = (model.audio_frames - model.clip_frames) // 2
    # Whole clips, so that the windows of a stretch are those of the file; one frame more holds the margin.
    self.audio_context = -(-(lead + 1) // model.clip_frames) * model.clip_frames
    self.block_frames = -(-stream.BLOCK_FRAMES // model.clip_frames) * model.clip_frames
    self._encode_frames = jax.jit(functools.partial(_encode_frames, model, self.looks))
    self._encode_sound = jax.jit(lambda params, waveform: model.embed_audio(params, params, waveform))
    self._sync_loss = jax.jit(functools.partial(_sync_loss, model), static_argnames="lag")

  @classmethod
  def load(cls, directory: str | os.PathLike | None = None) -> SyncLipMAE:
    """From a workdir or a step; without one, the small model that comes with the package.

    Raises InputError where nothing whole is found there, or what is there was made from other footage than this
    version prepares.
    """
    if directory is None and not DEMO.exists():
      raise InputError("this installation holds no checkpoint of its own: name one")
    say = functools.partial(print, file=sys.stderr)  # standard output is for answers
    step = checkpoint.resolve_step(DEMO if directory is None else directory, say=say)
    with _refusing(f"checkpoint {step} has a {checkpoint.META} that cannot be read"):
      meta = checkpoint.load_meta(step)
    config = _stamped_config(step, meta)
    with _refusing(f"checkpoint {step} describes no model of this version"):
      model = build_model(config)
      trainable, frozen = jax.eval_shape(model.init, jax.random.key(0))
    wanted = {name: trainable[name] for name in ("visual_encoder", "audio_adapter")} | frozen
    stored = meta.get("calibration")
    with _refusing(f"checkpoint {step} has a calibration that cannot be read"):
      calibration = Calibration.from_json(stored) if stored else Calibration.uncalibrated()
    synthetic = config["data"].get("synthtalk") and not config["data"].get("sources")
    return cls(
      model,
      {name: _load_item(step, name, abstract) for name, abstract in wanted.items()},
      name="the embedded demo" if directory is None else str(step),
      calibration=calibration,
      notes=[SYNTHETIC] * bool(synthetic) + ["its confidence is not calibrated"] * (not stored),
    )

  def embed(
    self,
    source: str | os.PathLike | Sequence[str | os.PathLike] | np.ndarray,
    waveform: np.ndarray | None = None,
    *,
    face_box: np.ndarray | None = None,
    mouth_box: np.ndarray | None = None,
    faces: str = "auto",
  ) -> Embedding | list[Embedding]:
    """Tokens of a video file, of each of several, or of arrays.

    Files: the face that is on screen most; `faces` says who finds it (`data.faces.sources.open_faces`). Arrays: face
    crops uint8 [T, S, S, 3] RGB at 25 frames/s and `waveform` float32 [640 * T] in [-1, 1] at 16 kHz, with the boxes
    [T, 4] in fractions of the crop, where they are known. Raises InputError.
    """
    if isinstance(source, str | os.PathLike):
      return self._embed_file(source, faces=faces)
    if not isinstance(source, np.ndarray):
      return [self._embed_file(path, faces=faces) for path in source]
    if source.ndim != 4 or source.shape[1:] != (self.image_size, self.image_size, 3) or source.dtype != np.uint8:
      raise InputError(
        f"frames must be uint8 [T, {self.image_size}, {self.image_size}, 3], not {source.dtype} {list(source.shape)}"
      )
    if not len(source):
      raise InputError("there is no frame to embed")
    if waveform is None or np.shape(waveform) != (SAMPLES_PER_FRAME * len(source),):
      raise InputError(f"{len(source)} frames need a waveform of {SAMPLES_PER_FRAME * len(source)} samples")
    if not np.issubdtype(waveform.dtype, np.floating):
      raise InputError(f"the waveform must be floating, in [-1, 1], not {waveform.dtype}")
    tokens, _ = self.encode_frames(source, face_box=face_box, mouth_box=mouth_box)
    box = np.tile(np.float32([0, 0, 1, 1]), (len(source), 1)) if face_box is None else np.asarray(face_box, np.float32)
    return Embedding(
      identity=tokens.identity,
      vocal=tokens.vocal,
      ambient=tokens.ambient,
      audio=self.embed_sound(waveform),
      times=np.arange(len(source)) / FPS,
      face_box=box,
    )

  def sync(
    self, path: str | os.PathLike, *, faces: str = "auto", progress: Callable[[float, float], None] | None = None
  ) -> SyncResult:
    """By how much the picture of a video file lags its sound, and how sure that is.

    Positive: the video lags the audio. `progress` is told the second that has been reached and
    the length in seconds, 0 where the file does not say it. Raises InputError for a
    file that cannot be judged at all; silence, no face and a still mouth are answers.
    """
    return analysis.sync_file(self, path, faces=faces, progress=progress)

  def sync_loss(
    self,
    frames: Float[Array, "b t s s 3"],
    audio: Float[Array, "b n"],
    *,
    lag: int = 0,
    face_box: Float[Array, "b t 4"] | None = None,
    mouth_box: Float[Array, "b t 4"] | None = None,
  ) -> Float[Array, ""]:
    """1 - mean cosine of audio_t and vocal_{t + lag}: what a generator of talking faces descends.

    `frames`: RGB face crops in [0, 1], to which gradients flow; `audio`: float32 [B, 640 * T] in [-1, 1]. It is the
    cosine of the lip-sync experts of Wav2Lip (Prajwal et al. 2020) and LatentSync without their logarithm, whose
    gradient is unbounded at cosine 0, where frames of a fresh generator are. Compiled once per shape, and it may stand
    inside `jax.jit` and `jax.grad`. Raises ValueError for other shapes or integer pixels.
    """
    total = frames.shape[1]
    if not jnp.issubdtype(frames.dtype, jnp.floating) or frames.shape[2:] != (self.image_size, self.image_size, 3):
      raise ValueError(
        f"frames must be floating [B, T, {self.image_size}, {self.image_size}, 3], got {frames.dtype} {frames.shape}"
      )
    if audio.shape != (len(frames), SAMPLES_PER_FRAME * total):
      raise ValueError(f"{total} frames need audio [B, {SAMPLES_PER_FRAME * total}], got {audio.shape}")
    if abs(lag) >= total:
      raise ValueError(f"a lag of {lag} frames leaves nothing of {total}")
    return self._sync_loss(self.params, frames, audio, lag=lag, face_box=face_box, mouth_box=mouth_box)

  def encode_frames(self, frames: np.ndarray, *, face_box=None, mouth_box=None) -> tuple[Tokens, np.ndarray]:
    """Visual tokens of face crops uint8 [n, S, S, 3], each by itself, in blocks of one shape; numpy [n, D].

    And beside them what `sync` compares with `heard`: the vocal tokens of every look, float32 [n, looks * D].
    """
    face_box = np.tile(np.float32(synclipmae.masking.FACE_PRIOR), (len(frames), 1)) if face_box is None else face_box
    mouth_box = np.full((len(frames), 4), -1, np.float32) if mouth_box is None else mouth_box
    pieces, size = [], self.block_frames
    for start in range(0, len(frames), size):
      block = [np.asarray(x)[start : start + size] for x in (frames, face_box, mouth_box)]
      count = len(block[0])
      block = [np.pad(x, [(0, size - count)] + [(0, 0)] * (x.ndim - 1), "edge") for x in block]
      tokens, lips = self._encode_frames(self.params, *block)
      pieces.append([np.asarray(x)[:count] for x in (tokens.identity, tokens.vocal, tokens.ambient, lips)])
    identity, vocal, ambient, lips = (np.concatenate(x) for x in zip(*pieces, strict=True))
    return Tokens(identity=identity, vocal=vocal, ambient=ambient, audio=None), lips

  def heard(self, audio: np.ndarray) -> np.ndarray:
    """Audio tokens [n, D] as `sync` compares them with the lips of every look: [n, looks * D]."""
    return np.tile(audio, len(self.looks))

  def embed_sound(self, waveform: np.ndarray) -> np.ndarray:
    """Audio tokens [T, D] of a whole waveform, float32 [640 * T]."""
    size, context, frames = self.block_frames, self.audio_context, len(waveform) // SAMPLES_PER_FRAME
    padded = np.pad(waveform, (SAMPLES_PER_FRAME * context, SAMPLES_PER_FRAME * (size + context)))
    blocks = [
      self.encode_sound(padded[SAMPLES_PER_FRAME * start :][: SAMPLES_PER_FRAME * (size + 2 * context)])
      for start in range(0, frames, size)
    ]
    return np.concatenate(blocks)[:frames]

  def encode_sound(self, waveform: np.ndarray) -> np.ndarray:
    """Audio tokens [block_frames, D] of one block, from the sound of the block and `audio_context` frames around it."""
    tokens = self._encode_sound(self.params, waveform[None])[0]
    return np.asarray(tokens)[self.audio_context :][: self.block_frames]

  def _embed_file(self, path: str | os.PathLike, *, faces: str) -> Embedding:
    blocks = list(stream.TokenStream(self, path, faces=faces))
    seen = [number for block in blocks for number, face in block.faces.items() for _ in range(face.count)]
    if not seen:
      raise InputError("no face is found in it")
    most = max(sorted(set(seen)), key=seen.count)
    gap = stream.FaceBlock.absent
    mine = [block.faces.get(most) or gap(block.count, width=block.audio.shape[1]) for block in blocks]
    joined = {
      name: np.concatenate([getattr(face, name) for face in mine]) for name in ("identity", "vocal", "ambient", "box")
    }
    audio = np.concatenate([block.audio for block in blocks])
    return Embedding(face_box=joined.pop("box"), **joined, audio=audio, times=np.arange(len(audio)) / FPS)


def _stamped_config(step: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
  """The configuration of a checkpoint, the stamp of its footage compared with ours and its own choices taken over."""
  config, stamp = meta.get("config"), meta.get("preprocessing")
  if not isinstance(config, dict) or not isinstance(stamp, dict):
    raise InputError(f"checkpoint {step} does not say what it was trained on: it has no stamp of its preprocessing")
  for name, ours in _PREPROCESSING.items():
    if stamp.get(name) != ours:
      raise InputError(f"checkpoint {step} was trained on other footage: {name} {stamp.get(name)!r}, here {ours!r}")
  computing = {"unroll": False, "remat": "none"}  # how, not what: a rolled scan compiles in half the time
  if jax.default_backend() == "cpu":  # which has no bfloat16
    computing["compute_dtype"] = "float32"
  with _refusing(f"checkpoint {step} has a stamp that cannot be read"):
    return {
      **config,
      "data": {**config["data"], "image_size": stamp["image_size"]},
      "model": {**config["model"], "embed_visible": stamp["embed_visible"], **computing},
    }


@contextlib.contextmanager
def _refusing(complaint: str) -> Iterator[None]:
  """Whatever fails on what was read from a checkpoint, in any of a dozen ways, is an InputError that says where."""
  try:
    yield
  except InputError as error:
    raise InputError(f"{complaint} ({error})") from error
  except Exception as error:
    raise InputError(f"{complaint} ({error!r})") from error


def _load_item(step: Path, name: str, abstract: Params) -> Params:
  if not jax.tree.leaves(abstract):  # an encoder without parameters
    return abstract
  saved = checkpoint.find_item(step, name, verify=name == "speech_encoder")  # it stands apart from the step
  saved.refuse_difference(saved.leaves, abstract)
  with _refusing(f"checkpoint {step} is damaged: its {name} cannot be read"):
    return jax.device_put(saved.load(jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), abstract)))


def _encode_frames(model, looks, params, frames, face_box, mouth_box):
  boxes = jnp.stack([face_box, mouth_box])
  closer = [augment.recrop(frames, boxes, factor=factor, moved=jnp.zeros(2)) for factor in looks[1:]]
  seen = jnp.stack([frames, *(pictures for pictures, _ in closer)])
  boxes = jnp.stack([boxes, *(there for _, there in closer)], axis=1)
  tokens = model.embed_visual(params, seen, face_box=boxes[0], mouth_box=boxes[1])
  own = jax.tree.map(lambda x: x[0], tokens)
  return own, jnp.concatenate(list(tokens.vocal), axis=-1)


def _sync_loss(model, params, frames, audio, *, lag, face_box, mouth_box):
  tokens = model.embed(params, params, frames, audio, face_box=face_box, mouth_box=mouth_box)
  total = frames.shape[1]
  heard = tokens.audio[:, max(0, -lag) : total - max(0, lag)]
  seen = tokens.vocal[:, max(0, lag) : total - max(0, -lag)]
  # The small constant keeps the gradient of a zero token finite.
  unit = lambda x: x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)
  return 1 - (unit(heard) * unit(seen)).sum(-1).mean()
