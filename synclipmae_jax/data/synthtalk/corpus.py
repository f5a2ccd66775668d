"""Writes SynthTalk as mp4 files (H.264, AAC), each with a face track file and a ground truth file."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from synclipmae_jax.data.synthtalk import clip as parameters
from synclipmae_jax.data.synthtalk import geometry, phones
from synclipmae_jax.data.synthtalk.clip import SCENE, SPLITS, TRUTH_NAMES, Clip, clip_key, make_clip, parameter_hash
from synclipmae_jax.data.synthtalk.identity import IDENTITY
from synclipmae_jax.data.synthtalk.motion import ACTIONS, AMBIENT, EXPRESSIONS
from synclipmae_jax.types import FPS, SAMPLE_RATE, InputError

VERSION = "1.1.0"  # 1.0.0: more than two clips a person, no split val
_SHORTEST, _LONGEST, _SMALLEST = 2.0, 600.0, 32  # seconds, seconds, pixels
_CLIPS_A_WORKER = 8  # starting a process and compiling its renderer takes as long as about 8 clips


def write_corpus(
  out: str | os.PathLike,
  *,
  clips: Mapping[str, int],
  seconds: float = 6.0,
  size: int = 112,
  seed: int = 0,
  heads: str = "flat",
  workers: int | None = None,
  progress: bool = True,
) -> Path:
  """Writes `clips[split]` clips of every split under `out` and returns the path of its corpus.json.

  Each clip is `<split>/<key>.mp4`, with `<key>.faces.npz` and `<key>.truth.npz` in the same folder. Existing clips are
  kept, so an interrupted call can be repeated. corpus.json is written last and marks the corpus as complete.

  Args:
    clips: number of clips of "train", "val" and "test".
    seconds: length of a clip, 2 to 600; rounded to whole frames at 25 per second.
    size: width and height in pixels, even.
    heads: "flat": drawn faces; "3d": MakeHuman's head, from angles of up to 45 degrees; "mixed": every other person.
    workers: number of processes; None uses one per core, 1 uses this process only.

  Raises:
    InputError: an argument is invalid, or `out` contains a corpus made with other arguments.
  """
  if unknown := sorted(set(clips) - set(SPLITS)):
    raise InputError(f"SynthTalk has no split {unknown[0]!r}; it has {', '.join(SPLITS)}.")
  if min(clips.values(), default=0) < 0 or not sum(clips.values()):
    raise InputError(f"A SynthTalk corpus needs at least one clip, got {dict(clips)}.")
  if not _SHORTEST <= seconds <= _LONGEST or size < _SMALLEST or size % 2:
    raise InputError(
      f"A SynthTalk clip lasts {_SHORTEST:g} to {_LONGEST:g} s and has an even size of at least {_SMALLEST} px;"
      f" got {seconds:g} s and {size} px."
    )
  if seed < 0:
    raise InputError(f"The seed of SynthTalk is 0 or more, not {seed}.")
  if heads not in parameters.HEADS:
    raise InputError(f"The heads of SynthTalk are {', '.join(parameters.HEADS)}, not {heads!r}.")
  out = Path(out)
  description: dict[str, Any] = {
    "name": "synthtalk",
    "version": VERSION,
    "seed": seed,
    "size": size,
    "seconds": seconds,
    "heads": heads,
    "hash": parameter_hash(seed=seed, seconds=seconds),
    "truth_names": list(TRUTH_NAMES),
    "landmarks": list(geometry.LANDMARKS),
    "phones": list(phones.NAMES),
    "expressions": list(EXPRESSIONS),
    "actions": list(ACTIONS),
    "splits": {split: clips[split] for split in SPLITS if clips.get(split)},
  }
  done, begun = out / "corpus.json", out / "corpus.unfinished.json"
  for existing in (done, begun):
    if existing.exists():
      _refuse_other(existing, description)
  if done.exists():
    return done
  for split in description["splits"]:
    (out / split).mkdir(parents=True, exist_ok=True)
  partial = begun.with_suffix(".part")
  partial.write_text(json.dumps(description, indent=2) + "\n")
  partial.replace(begun)

  jobs = [(split, index) for split, count in description["splits"].items() for index in range(count)]
  write = functools.partial(_write_job, out=out, seed=seed, seconds=seconds, size=size, heads=heads)
  missing = [job for job in jobs if not _is_written(out, *job)]
  bar = tqdm(total=len(jobs), initial=len(jobs) - len(missing), desc="SynthTalk", unit="clip", disable=not progress)
  workers = min(workers or os.cpu_count() or 1, len(missing) // _CLIPS_A_WORKER)
  with bar:
    if workers <= 1:
      for job in missing:
        write(job)
        bar.update()
    else:
      spawn = multiprocessing.get_context("spawn")  # forking is unsafe after jax has started threads
      with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker) as pool:
        for _ in pool.map(write, missing):
          bar.update()
  begun.rename(done)
  return done


def _refuse_other(path: Path, description: dict) -> None:
  existing = {"heads": "flat", **json.loads(path.read_text())}  # the only ones in corpora that do not say
  for name, wanted in description.items():
    if existing.get(name) != wanted:
      raise InputError(
        f"{path.parent} contains another SynthTalk corpus: its {name} is {existing.get(name)}, not {wanted};"
        " choose another folder or delete this one."
      )


def _is_written(out: Path, split: str, index: int) -> bool:
  stem = out / split / clip_key(split, index)
  return all(stem.with_suffix(suffix).exists() for suffix in (".mp4", ".faces.npz", ".truth.npz"))


def _start_worker() -> None:
  import jax

  jax.config.update("jax_platforms", "cpu")  # the accelerator belongs to the parent process
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C


def _write_job(job: tuple[str, int], *, out: Path, seed: int, seconds: float, size: int, heads: str) -> None:
  split, index = job
  clip = make_clip(index, seed=seed, split=split, seconds=seconds)
  solid = parameters.is_solid(clip, heads)
  write_clip(parameters.before_camera(clip) if solid else clip, out / split, size=size, solid=solid)


def write_clip(clip: Clip, folder: Path, *, size: int, solid: bool = False) -> Path:
  """Writes `<key>.mp4` and its two sidecar files. The mp4 is written last and appears only when it is complete.

  `solid`: with a head in 3D.
  """
  frames, points, boxes = (_solid if solid else _drawn)(clip, size)
  _save(
    folder / f"{clip.key}.faces.npz",
    boxes=boxes,
    landmarks=points,
    scores=np.ones(clip.frames, np.float32),
    mouth=geometry.MOUTH_LANDMARKS,
    schema="synthtalk",
  )
  _save(
    folder / f"{clip.key}.truth.npz",
    truth=clip.truth,
    names=np.array(TRUTH_NAMES),
    phones=clip.phones,
    lag=clip.lag,
    identity=clip.identity,
    voice=clip.voice,
    text=clip.text,
    words=json.dumps(clip.score.words),  # times of the sound
    labels=json.dumps({"expression": clip.expression, "actions": clip.actions}),
  )
  path = folder / f"{clip.key}.mp4"
  partial = path.with_suffix(".mp4.part")
  encode(partial, frames, clip.waveform(), crf=clip.crf)
  return partial.replace(path)


def _drawn(clip: Clip, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Frames, landmarks and boxes of a flat face."""
  from synclipmae_jax.data.synthtalk.render import render  # local import: reading a corpus must not load jax

  points = flat_landmarks(clip, size)
  return render(clip, size=size), points, geometry.face_boxes(points)


def flat_landmarks(clip: Clip, size: int) -> np.ndarray:
  """float32 [T, geometry.LANDMARKS, 2] in pixels of a flat face."""
  tracks = {
    "face": dict(zip(IDENTITY, clip.face, strict=True)),
    "scene": dict(zip(SCENE, clip.scene, strict=True)),
    "mouth": dict(zip(phones.MOUTH, clip.mouth.T, strict=True)),
    "ambient": dict(zip(AMBIENT, clip.ambient.T, strict=True)),
  }
  return geometry.landmarks(**tracks, size=size)


def _solid(clip: Clip, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Frames, landmarks and boxes of a head in 3D."""
  from synclipmae_jax.data.synthtalk.head import Stage, face_boxes  # local import: it loads numba

  stage = Stage(clip, size)
  points = stage.landmarks()
  return stage.pictures(), points, face_boxes(points)


def _save(path: Path, **arrays) -> None:
  partial = path.with_suffix(".npz.part")
  with partial.open("wb") as file:
    np.savez_compressed(file, **arrays)
  partial.replace(path)


def encode(path: Path, frames: np.ndarray, waveform: np.ndarray, *, crf: int) -> None:
  """Encodes frames uint8 [T, S, S, 3] and a waveform float32 [640 * T]. The timestamps include the encoder delay."""
  with av.open(str(path), "w", format="mp4") as container:
    video = container.add_stream("libx264", rate=FPS)
    video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
    video.options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
    audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
    audio.bit_rate = 64_000
    for picture in frames:
      container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(video.encode(None))
    sound = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
    sound.sample_rate, sound.pts = SAMPLE_RATE, 0
    container.mux(audio.encode(sound))
    container.mux(audio.encode(None))
