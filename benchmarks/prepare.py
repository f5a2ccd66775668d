"""Speed and memory of `synclipmae prepare` with the tracker, and of Ray's workers, on SynthTalk footage.

    python benchmarks/prepare.py [--rounds 3] [--seconds 4] [--files 6]        about a minute on two cores

Prints one JSON line per ratio, with its target. The two sides of a ratio are measured in turn in one run. A line has
the median and the quartiles over the rounds.

  video / processor time     duration of a file to the processor time of `prepare` for it, from 360 x 288 and 512 x 512
                             pixels to clips of --size: how many times faster than real time one core is
  memory, long / short       peak memory of the preparation of a file four times as long, in processes of their own
  one / two Ray workers      wall time of one worker to that of two on a local Ray, without its start; needs two idle
                             cores and the extra `ray`
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
from side_by_side import Times, in_turn, load, ratio

from synclipmae_jax.data import corpora, engines, storage
from synclipmae_jax.data.clips import Settings, cut_file
from synclipmae_jax.data.corpora import SourceItem
from synclipmae_jax.data.engines import on_ray
from synclipmae_jax.data.prepare import _lost, _prepare_unit
from synclipmae_jax.types import InputError

PICTURES = {(360, 288): 8.0, (512, 512): 4.0}  # width, height: target
LONGER, FLAT, WORKERS = 4, 1.1, 1.8


def write_footage(path: Path, width: int, height: int, *, seconds: float, repeat: int = 1) -> Path:
  """Writes a SynthTalk clip with grey bars at the sides, `repeat` times in one file."""
  from synclipmae_jax.data.synthtalk.clip import make_clip
  from synclipmae_jax.data.synthtalk.corpus import encode
  from synclipmae_jax.data.synthtalk.render import render

  clip = make_clip(0, seed=0, split="train", seconds=seconds)
  margin = (width - height) // 2
  frames = np.pad(render(clip, size=height), [(0, 0), (0, 0), (margin, margin), (0, 0)], constant_values=90)
  path.parent.mkdir(parents=True, exist_ok=True)
  encode(path, np.concatenate([frames] * repeat), np.concatenate([clip.waveform()] * repeat), crf=23)
  return path


def cut(path: Path, size: int) -> None:
  """What `prepare` does of one file."""
  item = SourceItem(key="", path=path, corpus="", split="", identity="", split_group="")
  with tempfile.TemporaryDirectory() as folder:
    cut_file(item, Settings(size=size, faces="mediapipe"), Path(folder), check=lambda: None)


def peak(path: Path, size: int) -> int:
  """Bytes of peak memory of the preparation of a file, in a process of its own."""
  with multiprocessing.get_context("spawn").Pool(1) as pool:
    return pool.apply(_peak, (path, size))


def _peak(path: Path, size: int) -> int:
  cut(path, size)
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def of_workers(raw: Path, size: int, rounds: int) -> dict[str, Times]:
  """Times of one and of two workers of one Ray for the files below `raw`."""
  settings = Settings(size=size, faces="mediapipe")
  items = list(corpora.load("folder")(raw))

  def prepare(run: engines.Engine) -> None:
    with tempfile.TemporaryDirectory() as out, storage.places(raw, out, one_process=False) as places:
      (places.out / "clips").mkdir()
      work, lost = (functools.partial(f, places=places) for f in (_prepare_unit, _lost))
      made = list(run(functools.partial(work, settings=settings), [(item, {}) for item in items], lost=lost))
      assert all(entry["outcome"] == "accepted" for entry in made), made

  with engines.engine("ray", workers=2) as two:
    runs = {"one": lambda: prepare(functools.partial(on_ray.run, workers=1)), "two": lambda: prepare(two)}
    runs["two"]()  # the workers import
    return in_turn(runs, rounds=rounds)


def show(name: str, above: Times, below: Times, *, target: float, processor: bool = False, **known) -> None:
  if processor:
    above, below = (Times(wall=each.cpu, cpu=each.cpu) for each in (above, below))
  found = ratio(above, below)
  values = {"ratio": found.wall, "low": found.low, "high": found.high}
  print(
    json.dumps({"name": name, **known, **{key: round(value, 2) for key, value in values.items()}, "target": target})
  )


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--seconds", type=float, default=4.0, help="duration of the footage")
  parser.add_argument("--size", type=int, default=96, help="pixels of a side of the clips")
  parser.add_argument("--files", type=int, default=6, help="files for the two workers; 0: without Ray")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    for (width, height), target in PICTURES.items():
      path = write_footage(folder / f"{width}x{height}.mp4", width, height, seconds=args.seconds)
      cut(path, args.size)  # the models are loaded
      times = in_turn({"prepare": lambda path=path: cut(path, args.size)}, rounds=args.rounds)["prepare"]
      real = Times(wall=[args.seconds] * args.rounds, cpu=[args.seconds] * args.rounds)
      show("video / processor time", real, times, target=target, processor=True, picture=path.stem, size=args.size)
    width, height = next(iter(PICTURES))
    write_footage(folder / "long.mp4", width, height, seconds=args.seconds, repeat=LONGER)
    peaks = [float(peak(folder / name, args.size)) for name in (f"{width}x{height}.mp4", "long.mp4")]
    short, long = (Times(wall=[each], cpu=[each]) for each in peaks)
    show("memory, long / short", long, short, target=FLAT, mib=round(peaks[0] / 2**20))
    if args.files:
      raw = folder / "raw"
      raw.mkdir()
      for number in range(args.files):
        os.link(folder / f"{width}x{height}.mp4", raw / f"{number}.mp4")
      try:
        times = of_workers(raw, args.size, args.rounds)
      except InputError as error:
        print(f"the workers of Ray are not measured: {error}", file=sys.stderr)
      else:
        show("one / two Ray workers", times["one"], times["two"], target=WORKERS, files=args.files)
  print(json.dumps({"load": load()}))
  return 0


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ.setdefault("OMP_NUM_THREADS", "1")
  sys.exit(main())
