"""Cost of `synclipmae sync`: real-time factor and memory, on a short file and on longer ones.

    python benchmarks/sync.py [VIDEO] [--checkpoint DIR] [--seconds 10 60 600]         about three minutes on two cores

Repeats VIDEO (default: a SynthTalk clip) to each length without encoding it again and analyses each file in a process
of its own. Prints JSON lines: duration of the video over the time from the start of the process to the answer and over
the time of the analysis once all is compiled (real-time factors), and the peak memory of the longest over the shortest.
"""

import argparse
import functools
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import side_by_side

SECONDS = (10, 60, 600)

arguments = side_by_side.parser(__doc__)
arguments.add_argument("video", nargs="?", help="with sound (default: 9 s of SynthTalk)")
arguments.add_argument("--checkpoint", help="a workdir or a step (default: the embedded checkpoint)")
arguments.add_argument("--seconds", nargs="+", type=int, default=SECONDS, help="lengths to repeat it to")
arguments.add_argument("--analyse", action="store_true", help=argparse.SUPPRESS)  # VIDEO, here and once
if __name__ == "__main__":
  flags = side_by_side.parse(arguments)

import av
import footage


def repeat(source: str, out: Path, *, seconds: float) -> None:
  """Repeats the packets of `source` until `out` lasts `seconds`."""
  with av.open(source) as once, av.open(str(out), "w") as target:
    video, sound = once.streams.video[0], once.streams.audio[0]
    streams = {stream: target.add_stream_from_template(stream) for stream in (video, sound)}
    length, last = Fraction(round(video.duration * video.time_base * 25), 25), {video: -(10**9), sound: -(10**9)}
    for turn in range(max(1, round(seconds / length))):
      once.seek(0)
      for packet in once.demux(tuple(streams)):
        if packet.dts is None or packet.pts * packet.time_base >= length:
          continue
        shift = round(turn * length / packet.time_base)
        # At a seam the first packets would precede the last ones in decoding order: shift them by a millisecond.
        after = last[packet.stream] + math.ceil(Fraction(1, 1000) / packet.time_base)
        packet.dts = last[packet.stream] = max(packet.dts + shift, after)
        packet.pts = max(packet.pts + shift, packet.dts)
        packet.stream = streams[packet.stream]
        target.mux(packet)


def analyse(path: str, checkpoint: str | None) -> None:
  """Runs in a separate process and prints its times and memory."""
  started = time.perf_counter()
  from synclipmae_jax.apps.footage import keep_compiled
  from synclipmae_jax.pretrained import SyncLipMAE

  keep_compiled()
  model = SyncLipMAE.load(checkpoint)
  loaded = time.perf_counter()
  result = model.sync(path)
  whole, processor = time.perf_counter(), time.process_time()
  again = model.sync(path) if result.duration_s < 60 else None  # compiled already
  seconds = time.perf_counter() - whole if again else whole - loaded
  print(
    json.dumps({
      "seconds": result.duration_s, "start": loaded - started, "first": whole - loaded, "warm": seconds,
      "processor": processor, "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    })
  )  # fmt: skip


def main(flags) -> None:
  found = []
  with tempfile.TemporaryDirectory() as folder:
    source = flags.video or str(footage.write_video(Path(folder, "clip.mp4"), 360, 288, seconds=9.0))
    for seconds in sorted(flags.seconds):
      path = Path(folder, f"{seconds}.mp4")
      repeat(source, path, seconds=seconds)
      words = [sys.executable, __file__, "--analyse", str(path)]
      words += ["--checkpoint", flags.checkpoint] if flags.checkpoint else []
      answer = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
      found.append(one := json.loads(answer.splitlines()[-1]))
      length = one["seconds"]
      show = functools.partial(side_by_side.print_ratio, "sync", **one)
      show(f"{length:.0f} s, from the start", length / (one["start"] + one["first"]), of="video / time to the answer")
      show(f"{length:.0f} s, once compiled", length / one["warm"], of="video / time of the analysis")
  if len(found) > 1:
    side_by_side.print_ratio("sync", "memory", found[-1]["rss"] / found[0]["rss"], of="longest / shortest",
                             unit="peak memory", mib=[round(one["rss"]) for one in found])  # fmt: skip


if __name__ == "__main__":
  analyse(flags.video, flags.checkpoint) if flags.analyse else main(flags)
