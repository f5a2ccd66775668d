"""Cost of `synclipmae sync`: real-time factor and memory, on a short file and on longer ones.

    python benchmarks/sync.py [VIDEO] [--checkpoint DIR] [--seconds 9 60 600]         about three minutes on two cores

Repeats VIDEO (default: a SynthTalk clip) to each length without encoding it again and calls the command on each, from
the start of the process to its end; a call before them fills its cache. Prints JSON lines: duration of the video over
the time of the command, for each; that of a longer file over a shorter one (what a further second of video costs, once
all has started); and the peak memory of the longest over the shortest.
"""

import itertools
import math
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import side_by_side

arguments = side_by_side.parser(__doc__)
arguments.add_argument("video", nargs="?", help="with sound (default: 9 s of SynthTalk)")
arguments.add_argument("--checkpoint", help="a workdir or a step (default: the embedded checkpoint)")
arguments.add_argument("--seconds", nargs="+", type=int, default=(9, 60, 600), help="lengths to repeat it to")
if __name__ == "__main__":
  flags = side_by_side.parse(arguments)

import av
import footage
from side_by_side import Times, print_ratio, ratio, steady


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


def call(path: Path, checkpoint: str | None) -> tuple[Times, int]:
  """Seconds and peak memory in bytes of the command on a file, in one round."""
  words = [sys.executable, "-m", "synclipmae_jax.apps.cli", "sync", str(path), "--json"]
  started = time.perf_counter()
  process = subprocess.Popen([*words, *(["--checkpoint", checkpoint] if checkpoint else [])], stdout=subprocess.DEVNULL)
  _, status, used = os.wait4(process.pid, 0)
  if status:
    sys.exit(f"`synclipmae sync` ended with status {os.waitstatus_to_exitcode(status)}")
  times = Times(wall=[time.perf_counter() - started], cpu=[used.ru_utime + used.ru_stime])
  return times, used.ru_maxrss * 1024


def main(flags) -> None:
  lengths = sorted(flags.seconds)
  with tempfile.TemporaryDirectory() as folder:
    source = flags.video or str(footage.write_video(Path(folder, "clip.mp4"), 360, 288, seconds=9.0))
    paths = {seconds: Path(folder, f"{seconds}.mp4") for seconds in lengths}
    for seconds, path in paths.items():
      repeat(source, path, seconds=seconds)
    call(paths[lengths[0]], flags.checkpoint)
    found = {seconds: call(path, flags.checkpoint) for seconds, path in paths.items()}
  for seconds, (times, peak) in found.items():
    print_ratio("sync", f"{seconds} s", ratio(steady(seconds, 1), times), of="video / command", seconds=times.wall[0],
                mib=round(peak / 2**20))  # fmt: skip
  for (short, (before, _)), (long, (after, _)) in itertools.pairwise(found.items()):
    further = Times(wall=[after.wall[0] - before.wall[0]], cpu=[after.cpu[0] - before.cpu[0]])
    print_ratio(
      "sync", f"{short} to {long} s", ratio(steady(long - short, 1), further), of="further video / further time"
    )
  if len(lengths) > 1:
    memory = found[lengths[-1]][1] / found[lengths[0]][1]
    print_ratio("sync", "memory", memory, of="longest / shortest", unit="peak memory")


if __name__ == "__main__":
  main(flags)
