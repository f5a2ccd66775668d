"""Cost of `synclipmae sync`: real-time factor and memory, on a short file and on longer ones.

    python benchmarks/sync.py VIDEO [CHECKPOINT]

Repeats VIDEO to 10 s, 60 s and 10 min without encoding it again, analyses each file in a separate process, and prints
the real-time factor (with and without process start, loading and compilation) and the peak memory.
"""

import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av

SECONDS = (10, 60, 600)


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


def main(source: str, checkpoint: str | None = None) -> None:
  found = []
  with tempfile.TemporaryDirectory() as folder:
    for seconds in SECONDS:
      path = Path(folder, f"{seconds}.mp4")
      repeat(source, path, seconds=seconds)
      arguments = [sys.executable, __file__, "--analyse", str(path), *([checkpoint] if checkpoint else [])]
      answer = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
      found.append(json.loads(answer.splitlines()[-1]))
      one = found[-1]
      print(
        f"{one['seconds']:6.1f} s of video: loaded in {one['start']:.1f} s, result {one['first']:.1f} s later, peak"
        f" {one['rss']:.0f} MB, {one['processor']:.1f} s of processor time;"
        f" real-time factor {one['seconds'] / (one['start'] + one['first']):.1f} with the start,"
        f" {one['seconds'] / one['warm']:.1f} once compiled"
      )
  print(f"peak memory, long : short = {found[-1]['rss'] / found[0]['rss']:.2f}")


if __name__ == "__main__":
  analyse(sys.argv[2], *(sys.argv[3:] or [None])) if sys.argv[1] == "--analyse" else main(*sys.argv[1:])
