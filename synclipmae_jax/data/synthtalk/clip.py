"""The parameters of clip i of a split: a pure function of (seed, split, i, seconds). They define pixels and sound."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

from synclipmae_jax.data.synthtalk import grammar, phones, speech
from synclipmae_jax.data.synthtalk.identity import IDENTITY, draw_identity
from synclipmae_jax.data.synthtalk.motion import AMBIENT, ambient_motion, mouth_motion
from synclipmae_jax.data.synthtalk.tracks import wander
from synclipmae_jax.types import FPS

SPLITS = ("train", "test", "val")
HEADS = ("flat", "3d", "mixed")  # drawn faces, MakeHuman's head, or every other person of either kind
MAX_LAG = 10  # frames; clips of the training split have no lag, which would give wrong positives
CLIPS_A_PERSON = 2  # in different scenes, so that what the clips share is the person
VOICES = {"train": 120, "test": 40, "val": 40}  # paired with people at random
OCCLUDER_CHANCE = {"train": 0.0, "test": 0.3, "val": 0.3}  # a model never trains on occluders

# The light comes from the direction (light_x, light_y, 1); `contrast` is its directed part. `gain` is in stops. The
# background has two colours and a grating. zoom, x and y place the head.
SCENE_RANGES = {
  "light_x": (-0.9, 0.9), "light_y": (-0.9, 0.3), "contrast": (0.15, 0.6), "gain": (-0.4, 0.15),
  "warmth": (-0.12, 0.12), "top_r": (0.1, 0.8), "top_g": (0.1, 0.8), "top_b": (0.1, 0.8), "low_r": (0.1, 0.8),
  "low_g": (0.1, 0.8), "low_b": (0.1, 0.8), "grating": (0.0, 0.12), "pitch": (2.0, 9.0), "slant": (0.0, 3.14),
  "phase": (0.0, 6.28), "zoom": (0.58, 0.7), "x": (-0.07, 0.07), "y": (-0.02, 0.1),
}  # fmt: skip
SCENE = tuple(SCENE_RANGES)
TRUTH_NAMES = tuple(
  f"{factor}/{name}"
  for factor, names in (("identity", IDENTITY), ("mouth", phones.MOUTH), ("ambient", AMBIENT))
  for name in names
)

# Independent streams of random numbers by purpose. Identity and text have different streams.
_PERSON, _VOICE, _CAST, _TEXT, _SOUND, _MOUTH, _AMBIENT, _SCENE, _LAG, _CAMERA = range(10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """Parameters of one clip. Tracks are in file time: those of the picture are shifted by `lag`, the sound is not."""

  key: str  # "train_00000"
  seed: int
  split: str
  index: int
  lag: int  # frames; positive: the video lags the audio
  identity: str
  voice: str
  text: str
  expression: str
  actions: tuple[str, ...]
  face: np.ndarray  # [IDENTITY]
  voice_parameters: np.ndarray  # [speech.VOICE]
  scene: np.ndarray  # [SCENE]
  mouth: np.ndarray  # [T, MOUTH]
  ambient: np.ndarray  # [T, AMBIENT]
  occluder: np.ndarray  # [T, 2] x, y of the microphone in image half-widths; y = 3 without a microphone
  score: grammar.Score
  snr_db: float
  crf: int

  @property
  def frames(self) -> int:
    return len(self.mouth)

  @property
  def phones(self) -> np.ndarray:
    """int16 [T]: the phone at the middle of each audio frame, as an index into `phones.NAMES`."""
    return self.score.phones[self.score.at((np.arange(self.frames) + 0.5) / FPS)].astype(np.int16)

  @property
  def truth(self) -> np.ndarray:
    """float32 [T, TRUTH_NAMES]: the factors of every picture."""
    face = np.broadcast_to(self.face, (self.frames, len(self.face)))
    return np.concatenate([face, self.mouth, self.ambient], axis=1).astype(np.float32)

  def waveform(self) -> np.ndarray:
    """float32 [640 * T] at 16 kHz."""
    rng = _stream(self.seed, self.split, _SOUND, self.index)
    seconds = self.frames / FPS
    return speech.synthesise(self.score, self.voice_parameters, seconds=seconds, snr_db=self.snr_db, rng=rng)


def clip_key(split: str, index: int) -> str:
  return f"{split}_{index:05d}"


def _stream(seed: int, split: str, purpose: int, index: int) -> np.random.Generator:
  return np.random.default_rng([seed, SPLITS.index(split), purpose, index])


def make_clip(index: int, *, seed: int, split: str, seconds: float) -> Clip:
  """The parameters of clip `index` of a split. Held-out clips of odd index have a lag of +-1..10 frames."""
  stream = functools.partial(_stream, seed, split)
  frames = round(seconds * FPS)
  held_out = split != "train"

  person = index // CLIPS_A_PERSON
  voice = int(stream(_CAST, index).integers(VOICES[split]))
  voice_rng = stream(_VOICE, voice)
  text_rng = stream(_TEXT, index)
  score = grammar.compose(text_rng, seconds=frames / FPS, test=held_out)
  lag_rng = stream(_LAG, index)
  lag = int(lag_rng.integers(1, MAX_LAG + 1) * lag_rng.choice((-1, 1))) if held_out and index % 2 else 0

  # The picture of file frame t is scene frame t - lag. Motion is generated beyond both ends of the sound for this.
  first, count = -MAX_LAG, frames + 2 * MAX_LAG
  shown = slice(MAX_LAG - lag, MAX_LAG - lag + frames)
  ambient = ambient_motion(stream(_AMBIENT, index), frames)
  mouth = mouth_motion(stream(_MOUTH, index), score, first=first, frames=count, chew="chew" in ambient.actions)[shown]

  scene_rng = stream(_SCENE, index)
  scene = np.array([scene_rng.uniform(low, high) for low, high in SCENE_RANGES.values()])
  occluder = np.tile([0.0, 3.0], (frames, 1))
  drift = np.stack([wander(scene_rng, frames, 20) for _ in range(2)], axis=1)
  place = np.array([scene_rng.uniform(-0.35, 0.35), scene_rng.uniform(0.5, 0.68)])
  snr_db, crf = scene_rng.uniform(12, 40), int(scene_rng.integers(18, 31))
  if scene_rng.random() < OCCLUDER_CHANCE[split]:
    occluder = place + 0.04 * drift

  return Clip(
    key=clip_key(split, index),
    seed=seed,
    split=split,
    index=index,
    lag=lag,
    identity=f"{split}_face_{person:05d}",
    voice=f"{split}_voice_{voice:03d}",
    text=score.text,
    expression=ambient.expression,
    actions=ambient.actions,
    face=draw_identity(stream(_PERSON, person)),
    voice_parameters=np.array([voice_rng.uniform(low, high) for low, high in speech.VOICE_RANGES.values()]),
    scene=scene,
    mouth=mouth,
    ambient=ambient.track,
    occluder=occluder,
    score=score,
    snr_db=snr_db,
    crf=crf,
  )


def is_solid(clip: Clip, heads: str) -> bool:
  """Whether `heads`, one of HEADS, gives the person of this clip a head in 3D."""
  return heads == "3d" or (heads == "mixed" and clip.index // CLIPS_A_PERSON % 2 == 0)


def before_camera(clip: Clip) -> Clip:
  """The clip seen from an angle, as talks are: up to 45 degrees of yaw. The angle is part of motion and truth."""
  rng = _stream(clip.seed, clip.split, _CAMERA, clip.index)
  ambient = clip.ambient.copy()
  for name, spread, limit in (("yaw", 0.36, 0.8), ("pitch", 0.08, 0.4)):
    track = ambient[:, AMBIENT.index(name)] + rng.normal(0, spread)
    ambient[:, AMBIENT.index(name)] = limit * np.tanh(track / limit)
  return dataclasses.replace(clip, ambient=ambient)


def parameter_hash(*, seed: int, seconds: float, clips: int = 2) -> str:
  """Hex digest of all parameters, rounded to 1e-4, of the first `clips` clips of every split. Excludes the pixels."""
  digest = hashlib.sha256(repr((TRUTH_NAMES, SCENE, speech.VOICE, phones.NAMES)).encode())
  digest.update(np.round(phones.TABLE * 1e4).astype(np.int64).tobytes())
  for split in SPLITS:
    for index in range(clips):
      clip = make_clip(index, seed=seed, split=split, seconds=seconds)
      for field in dataclasses.fields(clip):
        value = getattr(clip, field.name)
        if isinstance(value, grammar.Score):
          value = value.starts[1:]  # without the first start, which is -inf
        if isinstance(value, np.ndarray):
          digest.update((np.round(value * 1e4) + 0.0).astype(np.int64).tobytes())
        elif isinstance(value, float):
          digest.update(f"{value:.4f}".encode())
        else:
          digest.update(repr(value).encode())
  return digest.hexdigest()
