"""Speed and memory of `synclipmae prepare` with the tracker, and of Ray's workers, on SynthTalk footage.

    python benchmarks/prepare.py [--rounds 3] [--seconds 4] [--files 6]        about a minute on two cores

Prints one JSON line a ratio, measured in turn in one run.

  video / processor time     duration of a file to the processor time of `prepare` for it, from 360 x 288 and 512 x 512
                             pixels to clips of --size: how many times faster than real time one core is
  memory, long / short       peak memory of the preparation of a file four times as long, in processes of their own
  one / two Ray workers      wall time of one worker to that of two on a local Ray, without its start; needs two idle
                             cores and the extra `ray`
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
import sys
import tempfile
from pathlib import Path

import side_by_side

arguments = side_by_side.parser(__doc__)
arguments.add_argument("--rounds", type=int, default=3)
arguments.add_argument("--seconds", type=float, default=4.0, help="duration of the footage")
arguments.add_argument("--size", type=int, default=96, help="pixels of a side of the clips")
arguments.add_argument("--files", type=int, default=6, help="files for the two workers; 0: without Ray")
if __name__ == "__main__":
  flags = side_by_side.parse(arguments)

import footage
from side_by_side import Times, in_turn, print_ratio, ratio, steady

from synclipmae_jax.data import corpora, engines, storage
from synclipmae_jax.data.clips import Settings, cut_file
from synclipmae_jax.data.corpora import SourceItem
from synclipmae_jax.data.engines import on_ray
from synclipmae_jax.data.prepare import _lost, _prepare_unit
from synclipmae_jax.types import InputError

PICTURES = {(360, 288): 8.0, (512, 512): 4.0}  # width, height: target
LONGER, FLAT, WORKERS = 4, 1.1, 1.8


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


def main(flags) -> None:
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    for (width, height), target in PICTURES.items():
      picture = f"{width}x{height}"
      path = footage.write_video(folder / f"{picture}.mp4", width, height, seconds=flags.seconds)
      cut(path, flags.size)  # the models are loaded
      times = in_turn({"prepare": lambda path=path: cut(path, flags.size)}, rounds=flags.rounds)["prepare"]
      found = ratio(steady(flags.seconds, flags.rounds), times)
      print_ratio("prepare", f"speed, {picture}", found, of="video / processor time", unit="processor time",
                  target=f">= {target:g}", size=flags.size)  # fmt: skip
    width, height = next(iter(PICTURES))
    footage.write_video(folder / "long.mp4", width, height, seconds=flags.seconds, repeat=LONGER)
    short, long = (peak(folder / name, flags.size) for name in (f"{width}x{height}.mp4", "long.mp4"))
    print_ratio("prepare", "memory", long / short, of="long / short", unit="peak memory", target=f"<= {FLAT}",
                mib=round(short / 2**20))  # fmt: skip
    if not flags.files:
      return
    raw = folder / "raw"
    raw.mkdir()
    for number in range(flags.files):
      os.link(folder / f"{width}x{height}.mp4", raw / f"{number}.mp4")
    try:
      times = of_workers(raw, flags.size, flags.rounds)
    except InputError as error:
      print(f"the workers of Ray are not measured: {error}", file=sys.stderr)
    else:
      found = ratio(times["one"], times["two"])
      print_ratio("prepare", "Ray", found, of="one worker / two", target=f">= {WORKERS}", files=flags.files)


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ.setdefault("OMP_NUM_THREADS", "1")
  main(flags)
