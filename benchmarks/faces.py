"""Speed of the face tracker, on SynthTalk footage or on a file.

    python benchmarks/faces.py [VIDEO] [--rounds 5]

Prints one JSON line a ratio, timed in turn in one process; about two minutes on two cores. Each line also has these
processor times in milliseconds:

  detect_ms                  a search for faces in the whole picture and all tiles
  mesh_ms                    the mesh of one face in one frame
  track_ms                   the tracker, per frame

The ratios are:

  video / tracking           duration of the video to the time of the tracker, without decoding
  skimage_lbp / mediapipe    time of the cascade to the time of the tracker
  video / prepare --size N   duration of the video to the time of `synclipmae prepare` for this file
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import side_by_side

arguments = side_by_side.parser(__doc__)
arguments.add_argument("video", nargs="?", help="footage to measure on (default: SynthTalk at 360x288 and 1280x720)")
arguments.add_argument("--rounds", type=int, default=5)
if __name__ == "__main__":
  flags = side_by_side.parse(arguments)

import footage
import numpy as np
from side_by_side import Times, in_turn, ratio, steady

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


def main(flags) -> None:
  with tempfile.TemporaryDirectory() as folder:
    if flags.video:
      measure(Path(flags.video), flags.rounds)
      return
    for width, height in SIZES:
      path = footage.write_video(Path(folder, f"{width}x{height}.mp4"), width, height, seconds=SECONDS)
      measure(path, flags.rounds)


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
  real = steady(seconds, rounds)
  milliseconds = {
    "detect_ms": of_a_call(times["detect"]), "mesh_ms": of_a_call(times["mesh"], 10),
    "track_ms": of_a_call(times["mediapipe"], len(frames)),
  }  # fmt: skip
  for of, above, below in (
    ("video / tracking", real, times["mediapipe"]),
    ("skimage_lbp / mediapipe", times["skimage_lbp"], times["mediapipe"]),
    ("video / prepare --size 64", real, times["prepare 64"]),
    ("video / prepare --size 256", real, times["prepare 256"]),
  ):
    picture = f"{info.width}x{info.height}"
    side_by_side.print_ratio("faces", f"{of}, {picture}", ratio(above, below), of=of, **milliseconds)


def of_a_call(times: Times, calls: int = 1) -> float:
  """Milliseconds of a call: median of processor time."""
  return round(1000 * float(np.median(times.cpu)) / calls, 2)


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  main(flags)
