"""Motion that is not speech (pose, blinks, brows, gaze, smile, light), and the motion of the mouth."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from synclipmae_jax.data.synthtalk import phones
from synclipmae_jax.data.synthtalk.grammar import Score, trajectory
from synclipmae_jax.data.synthtalk.tracks import smooth, wander
from synclipmae_jax.types import FPS

# Angles are in radians; x, y in image half-widths; light in stops. blink is 0 (open) .. 1 (shut). lid > 0 is a wide
# eye, lid < 0 a squint. smirk lifts one corner of the mouth.
AMBIENT = ("yaw", "pitch", "roll", "x", "y", "blink_left", "blink_right", "lid", "brow", "brow_slant",
           "gaze_x", "gaze_y", "smile", "smirk", "light")  # fmt: skip

# Values of an expression: lid, brow, brow_slant, smile, smirk.
EXPRESSIONS = {
  "neutral": (0.0, 0.0, 0.0, 0.0, 0.0),
  "happy": (-0.25, 0.15, 0.0, 0.9, 0.0),
  "sad": (-0.3, 0.1, 0.9, -0.7, 0.0),
  "angry": (-0.2, -0.7, -0.9, -0.35, 0.0),
  "fear": (0.6, 0.5, 0.8, -0.3, 0.0),
  "surprise": (0.8, 0.95, 0.0, 0.0, 0.0),
  "contempt": (-0.15, 0.0, -0.2, 0.1, 0.9),
  "disgust": (-0.6, -0.5, -0.3, -0.6, 0.4),
}
ACTIONS = ("nod", "shake_head", "turn", "look_away", "wink", "raise_brows", "chew")
_ACTION_CHANCE = 0.22


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ambient:
  track: np.ndarray  # [frames, AMBIENT]
  expression: str
  actions: tuple[str, ...]


def ambient_motion(rng: np.random.Generator, frames: int) -> Ambient:
  """One expression, some actions and random head motion for `frames` frames, independent of the sound."""
  expression = list(EXPRESSIONS)[rng.integers(len(EXPRESSIONS))]
  strength = rng.uniform(0.6, 1.0)
  actions = tuple(name for name in ACTIONS if rng.random() < _ACTION_CHANCE)
  frame = np.arange(frames)

  track: dict[str, Any] = dict.fromkeys(AMBIENT, 0.0)
  for name, centre, spread, tempo in (
    ("yaw", 0.14, 0.15, 12), ("pitch", 0.06, 0.095, 9), ("roll", 0.05, 0.08, 11), ("x", 0.04, 0.036, 13),
    ("y", 0.03, 0.032, 11), ("gaze_x", 0.15, 0.25, 7), ("gaze_y", 0.1, 0.15, 7), ("light", 0.0, 0.12, 15),
    ("brow", 0.0, 0.12, 8), ("smirk", 0.0, 0.05, 15), ("smile", 0.05, 0.18, 12),
  ):  # fmt: skip
    track[name] = rng.normal(0, centre) + spread * wander(rng, frames, tempo)
  swell = strength * (1 + 0.15 * wander(rng, frames, 25))
  for name, value in zip(("lid", "brow", "brow_slant", "smile", "smirk"), EXPRESSIONS[expression], strict=True):
    track[name] = track[name] + value * swell

  blinks = np.zeros(frames)
  at = rng.exponential(2.5 * FPS)
  while at < frames:
    blinks = np.maximum(blinks, _bump(frame, at, 2.2))
    at += 8 + rng.exponential(2.5 * FPS)
  track["blink_left"] = track["blink_right"] = blinks

  for action in actions:
    length = min(rng.uniform(0.9, 1.5) * FPS, 0.8 * frames)
    middle = rng.uniform(0.55 * length, frames - 0.55 * length)
    envelope = _bump(frame, middle, length / 2)
    swing = np.sin(2 * np.pi * rng.uniform(1.8, 2.4) * (frame - middle) / FPS)
    side = rng.choice((-1.0, 1.0))
    match action:
      case "nod":
        track["pitch"] = track["pitch"] + 0.2 * envelope * swing
      case "shake_head":
        track["yaw"] = track["yaw"] + 0.28 * envelope * swing
      case "turn":
        track["yaw"] = track["yaw"] + 0.5 * side * envelope
      case "look_away":
        track["gaze_x"] = track["gaze_x"] * (1 - envelope) + 0.95 * side * envelope
      case "wink":
        eye = "blink_left" if side < 0 else "blink_right"
        track[eye] = np.maximum(track[eye], _bump(frame, middle, 6))
      case "raise_brows":
        track["brow"] = track["brow"] + 0.8 * envelope

  limits = {"yaw": 0.6, "pitch": 0.32, "roll": 0.25, "gaze_x": 1, "gaze_y": 0.8, "smile": 1, "smirk": 1, "brow": 1}
  for name, limit in limits.items():
    track[name] = limit * np.tanh(track[name] / limit)
  columns = [np.broadcast_to(track[name], frames) for name in AMBIENT]
  return Ambient(track=np.stack(columns, axis=1), expression=expression, actions=actions)


def mouth_motion(rng: np.random.Generator, score: Score, *, first: int, frames: int, chew: bool) -> np.ndarray:
  """[frames, MOUTH]: the visible mouth.

  It is the articulation of the score, sampled at the middle of each frame, plus motion that is independent of the
  speech: the effort of the speaker, random jaw and lip motion, and chewing in the pauses if `chew`.
  """
  step = 8  # steps of 5 ms per frame
  fine = (np.arange(-step, (frames + 1) * step) + first * step) / (FPS * step)
  coarticulation = rng.uniform(0.022, 0.032)
  effort = rng.uniform(0.8, 1.15)
  centres = slice(step + step // 2, -step, step)
  track = trajectory(score, phones.MOUTH, fine, blur=coarticulation)[centres]
  mouth = dict(zip(phones.MOUTH, track.T, strict=True))

  restless = 0.05 * wander(rng, frames, 3.0)
  mouth["jaw"] = effort * mouth["jaw"] + restless + 0.03 * wander(rng, frames, 6.0)
  mouth["opening"] = effort * mouth["opening"] + 0.6 * restless
  mouth["width"] = mouth["width"] + 0.08 * wander(rng, frames, 5.0)
  mouth["rounding"] = mouth["rounding"] + 0.05 * wander(rng, frames, 5.0)
  silent = smooth((score.phones[score.at(fine)] == phones.SILENCE).astype(float), 6.0)[centres]
  rhythm = np.sin(2 * np.pi * (rng.uniform(1.3, 2.2) * np.arange(first, first + frames) / FPS + rng.random()))
  if chew:
    bite = np.maximum(silent * 2 - 1, 0) * (0.5 + 0.5 * rhythm)
    mouth["jaw"] = mouth["jaw"] + 0.5 * bite
    mouth["opening"] = mouth["opening"] + 0.28 * bite
    mouth["width"] = mouth["width"] - 0.2 * bite
  for name, (low, high) in {"jaw": (0, 1.2), "opening": (-0.4, 1.2)}.items():
    mouth[name] = np.clip(mouth[name], low, high)
  return np.stack([mouth[name] for name in phones.MOUTH], axis=1)


def _bump(frame: np.ndarray, middle: float, half_width: float) -> np.ndarray:
  """A smooth bump: 1 at `middle`, 0 at `half_width` frames from it and beyond."""
  return np.cos(np.clip((frame - middle) / half_width, -1, 1) * np.pi / 2) ** 2
