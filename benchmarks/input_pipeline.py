"""Cost of the input pipeline: relative to PyAV alone, to a torch DataLoader, and inside the training loop.

    python benchmarks/input_pipeline.py                        makes 64 SynthTalk clips of 256 px; 3 minutes in all
    python benchmarks/input_pipeline.py --records=DIR          DIR: output of `synclipmae prepare`

The unit is clips per second of processor time (clips/s per core), because decoding uses only the processor. The bound
is a loop over records in memory in which PyAV decodes two windows of pictures and the sound. The DataLoader (needs the
extra `convert`) uses the decoding functions of the pipeline. The step is that of the demo, fed as in `train.loop`.
Targets: at least 0.8 of the bound; host time of a step outside the device under 2 %.
"""

from __future__ import annotations

import io
import itertools
import sys
import tempfile
import time
from pathlib import Path

import side_by_side

arguments = side_by_side.parser(__doc__)
arguments.add_argument("--records", help="output directory of `synclipmae prepare`")
arguments.add_argument("--rounds", type=int, default=7)
if __name__ == "__main__":
  flags = side_by_side.parse(arguments)

import av
import footage
import jax
import numpy as np
from av.video.reformatter import VideoReformatter
from side_by_side import in_turn, print_ratio, ratio
from train_step import build, sized

from synclipmae_jax import sharding
from synclipmae_jax.data import pipeline, records
from synclipmae_jax.data.samplers import WindowPair
from synclipmae_jax.train.cpu_settings import apply_cpu_settings
from synclipmae_jax.types import FPS

CLIPS, FRAMES, AUDIO_FRAMES, BATCHES = 16, 16, 64, 4  # clips and frames of a batch, batches of a round
# With only 8 records Grain's shuffling would take a fifth of the time: it permutes 2^16 numbers and skips those that
# are not an index, 3 ms a record of 8, 0.5 ms of 64, nothing of 10^4.
MADE = {"train": 64}
FED = sized("demo", dtype="float32").data.image_size  # pixels of the frames of a training step


def pyav_alone(recorded: list[dict], random: np.random.Generator) -> None:
  """Decodes two windows and the sound of every record."""
  for record in recorded:
    first = int(random.integers(record["n_frames"] - 2 * FRAMES + 1))
    second = int(random.integers(first + FRAMES, record["n_frames"] - FRAMES + 1))
    rgb = VideoReformatter()
    with av.open(io.BytesIO(record["mp4"]), format="mp4") as container:
      stream = container.streams.video[0]
      stream.thread_type = "NONE"
      ticks = round(1 / (FPS * stream.time_base))
      for start in (first, second):
        container.seek(start * ticks, stream=stream)
        wanted = (frame for frame in container.decode(stream) if frame.pts >= start * ticks)
        for frame in itertools.islice(wanted, FRAMES):
          rgb.reformat(frame, format="rgb24").to_ndarray()
    with av.open(io.BytesIO(record["flac"]), format="flac") as container:
      for frame in container.decode(audio=0):
        frame.to_ndarray()


def torch_batches(source: records.Records, size: int):
  """Endless batches of a DataLoader over the same records, with the same functions for cutting and decoding."""
  import torch

  torch.set_num_threads(1)  # as in DataLoader workers; more threads spin and use processor time
  pair = WindowPair(FRAMES)
  cut = pipeline._CutWindows(seed=0, sampler=pair, frames=FRAMES, audio_frames=AUDIO_FRAMES, size=size)

  class Clips(torch.utils.data.Dataset):
    def __len__(self) -> int:
      return len(source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
      return cut(index, source[index] | {"source": 0})

  loader = torch.utils.data.DataLoader(Clips(), batch_size=CLIPS // 2, shuffle=True, drop_last=True)
  while True:
    yield from loader


def rest() -> None:
  """Waits until the threads of this process are idle, so that prefetching is counted in its round."""
  used = -1.0
  while time.process_time() - used > 0.01:
    used = time.process_time()
    time.sleep(0.3)


def feeding(batches, rounds: int) -> dict[str, float]:
  """Medians for a step of the loop on the demo model.

  `step_s`: seconds of the step; `host_s`: seconds of computation in the main thread (assembling, dispatching, reading
  metrics); `share`: host_s / step_s; `data_wait_s`: seconds of waiting for the batch.
  """
  config = sized("demo", dtype="float32", further_terms=True)
  ours = build(config, jax.devices()[:1])
  frozen, _, key = ours.arguments
  mesh = sharding.make_mesh(config.train.mesh, jax.devices()[:1])
  ours()
  rest()
  seconds, host, waits, before = [], [], [], None
  for _ in range(rounds):
    started, used = time.perf_counter(), time.thread_time()
    batch = next(batches)
    waits.append(time.perf_counter() - started)
    batch = sharding.to_global(batch, mesh)
    ours.state, metrics = ours.compiled(ours.state, frozen, batch, key)
    if before is not None:  # as in the loop: read the previous step while the device computes this one
      {name: float(value) for name, value in jax.device_get(before).items()}
    before = metrics
    seconds.append(time.perf_counter() - started)
    host.append(time.thread_time() - used)
  share = [h / s for h, s in zip(host[1:], seconds[1:], strict=True)]
  measured = {"step_s": seconds[1:], "host_s": host[1:], "share": share, "data_wait_s": waits[1:]}
  return {name: float(np.median(each)) for name, each in measured.items()}


def main(flags) -> None:
  apply_cpu_settings()
  with tempfile.TemporaryDirectory() as made:
    directory = flags.records or footage.write_records(Path(made), size=256, clips=MADE)
    source = records.open_records(directory, split="train")
    size = source.preprocessing["size"]
    common = dict(seed=0, batch_size=CLIPS, clip_frames=FRAMES, audio_context_frames=AUDIO_FRAMES)
    open_stream = lambda size: pipeline.train_batches([pipeline.Source(directory=directory)], **common, image_size=size)
    ours = open_stream(size)
    recorded = [source[index] for index in range(min(len(source), BATCHES * CLIPS // 2))]
    random = np.random.default_rng(0)

    def draw(batches):
      for _ in range(BATCHES):
        next(batches)
      rest()

    def bound():
      for number in range(BATCHES * CLIPS // 2):
        pyav_alone([recorded[number % len(recorded)]], random)

    runs = {"ours": lambda: draw(ours), "pyav": bound}
    try:
      loader = torch_batches(source, size)
      next(loader)
      runs["torch"] = lambda: draw(loader)
    except ImportError:
      print("torch is not installed: the DataLoader is skipped", file=sys.stderr)
    in_turn(runs, rounds=1)  # warm up
    times = in_turn(runs, rounds=flags.rounds)
    step = feeding(open_stream(FED), rounds=8 * flags.rounds) if size >= FED else None
  clips = BATCHES * CLIPS
  rates = {name: clips / float(np.median(each.cpu)) for name, each in times.items()}
  known = {"size": size, "clips_a_second_of_a_core": {name: round(rate, 1) for name, rate in rates.items()}}
  for name in [name for name in runs if name != "ours"]:
    found = ratio(times[name], times["ours"])  # the ratio of rates is the inverse ratio of times
    target = ">= 0.8" if name == "pyav" else None
    print_ratio("input_pipeline", f"decoding, {name}", found, of=f"ours / {name}, clips a second",
                unit="processor time", target=target, **known)  # fmt: skip
  if step:
    print_ratio("input_pipeline", "host", step.pop("share"), of="computation of the host / step of the demo",
                unit="seconds", target="< 0.02", **step)  # fmt: skip


if __name__ == "__main__":
  main(flags)
