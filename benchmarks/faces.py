"""Speed of the face tracker, on SynthTalk footage or on a file.

    python benchmarks/faces.py [VIDEO] [--rounds 5]

Prints one JSON line per ratio. The two sides of a ratio are timed alternately in one process. A line has the median and
the quartiles of the wall-clock ratio over the rounds, and the median ratio of processor time, which other load on the
machine affects less. A first line has processor times in milliseconds:

  detect_ms                  a search for faces in the whole picture and all tiles
  mesh_ms                    the mesh of one face in one frame
  track_ms                   the tracker, per frame

The ratios are:

  video / tracking           duration of the video to the time of the tracker, without decoding
  skimage_lbp / mediapipe    time of the cascade to the time of the tracker
  video / prepare --size N   duration of the video to the time of `synclipmae prepare` for this file
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from side_by_side import Times, in_turn, load, ratio

from synclipmae_jax.data.clips import Settings, cut_file
from synclipmae_jax.data.corpora import SourceItem
from synclipmae_jax.data.faces.blazeface import find_faces
from synclipmae_jax.data.faces.face_mesh import find_points
from synclipmae_jax.data.faces.sources import SHORT_SIDE, dominant, open_faces
from synclipmae_jax.data.faces.window import Window
from synclipmae_jax.data.media import video
from synclipmae_jax.types import FPS

SIZES = ((360, 288), (1280, 720))
SECONDS = 4.0


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("video", nargs="?", help="footage to measure on (default: SynthTalk at 360x288 and 1280x720)")
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    if args.video:
      measure(Path(args.video), args.rounds)
    else:
      for width, height in SIZES:
        measure(synthtalk(Path(folder, f"{width}x{height}.mp4"), width, height), args.rounds)


def synthtalk(path: Path, width: int, height: int) -> Path:
  """Writes a SynthTalk clip with grey bars at the sides."""
  from synclipmae_jax.data.synthtalk.clip import make_clip
  from synclipmae_jax.data.synthtalk.corpus import encode
  from synclipmae_jax.data.synthtalk.render import render

  clip = make_clip(0, seed=0, split="train", seconds=SECONDS)
  margin = (width - height) // 2
  frames = np.pad(render(clip, size=height), [(0, 0), (0, 0), (margin, margin), (0, 0)], constant_values=90)
  encode(path, frames, clip.waveform(), crf=23)
  return path


def measure(path: Path, rounds: int) -> None:
  info = video.probe(path)
  frames = list(video.read_frames(path, short_side=SHORT_SIDE["mediapipe"]))
  seconds, image = len(frames) / FPS, frames[0].image
  window = Window(centre=np.array(image.shape[1::-1]) / 2, side=0.8 * min(image.shape[:2]))

  def track(backend: str) -> Callable[[], object]:
    return lambda: dominant(open_faces(path, backend, info=info)[0], iter(frames))

  def prepare(size: int) -> None:
    names = dict(corpus="", split="", identity="", split_group="")
    with tempfile.TemporaryDirectory() as folder:
      cut_file(SourceItem(key="", path=path, **names), Settings(size=size, faces="mediapipe"), Path(folder),
               check=lambda: None)  # fmt: skip

  runs = {
    "detect": lambda: find_faces(image, closely=True),
    "mesh": lambda: [find_points(image, window) for _ in range(10)],
    "mediapipe": track("mediapipe"),
    "skimage_lbp": track("skimage_lbp"),
    "prepare 64": lambda: prepare(64),
    "prepare 256": lambda: prepare(256),
  }
  for run in runs.values():
    run()
  times = in_turn(runs, rounds=rounds)
  real = Times(wall=[seconds] * rounds, cpu=[seconds] * rounds)
  picture = f"{info.width}x{info.height}"
  print(json.dumps({
    "picture": picture, "detect_ms": milliseconds(times["detect"]), "mesh_ms": milliseconds(times["mesh"], 10),
    "track_ms": milliseconds(times["mediapipe"], len(frames)), "load": load(),
  }))  # fmt: skip
  for name, above, below in (
    ("video / tracking", real, times["mediapipe"]),
    ("skimage_lbp / mediapipe", times["skimage_lbp"], times["mediapipe"]),
    ("video / prepare --size 64", real, times["prepare 64"]),
    ("video / prepare --size 256", real, times["prepare 256"]),
  ):
    found = ratio(above, below)
    values = {"ratio": found.wall, "low": found.low, "high": found.high, "processor": found.cpu}
    print(json.dumps({"picture": picture, "name": name} | {key: round(value, 2) for key, value in values.items()}))


def milliseconds(times: Times, calls: int = 1) -> float:
  """Median processor time of a call."""
  return round(1000 * float(np.median(times.cpu)) / calls, 2)


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  main()
