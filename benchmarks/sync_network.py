"""Time of the networks for a lag: SyncLipMAE relative to the SyncNet pipeline in PyTorch, on the same clip length.

    python benchmarks/sync_network.py [CHECKPOINT]          two minutes; default: the embedded checkpoint

The inputs are prepared in advance: face crops of its image size and the waveform for SyncLipMAE; crops of 224 pixels
and MFCC columns for SyncNet v2, in batches of 20 windows as in its script. SyncNet has random weights, which cost the
same. Face detection and the lag search are not included for either. Needs the extra `convert`.
Target: at most 1.0 x SyncNet's time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import side_by_side

arguments = side_by_side.parser(__doc__)
arguments.add_argument("checkpoint", nargs="?", help="a workdir or a step (default: the embedded checkpoint)")
arguments.add_argument("--rounds", type=int, default=5)
arguments.add_argument("--seconds", type=int, default=10, help="of video")
if __name__ == "__main__":
  flags = side_by_side.parse(arguments, needs=["torch"])

import numpy as np
import torch

from synclipmae_jax.baselines.mfcc import int16_scale, mfcc
from synclipmae_jax.baselines.syncnet import COLUMNS, COLUMNS_PER_FRAME, CONTEXT
from synclipmae_jax.pretrained import SyncLipMAE
from synclipmae_jax.types import FPS, SAMPLES_PER_FRAME

# The reference of the parity tests. Replaces this folder in the path, whose convert.py would shadow tests/convert.
sys.path[0] = str(Path(__file__).parents[1] / "tests")
from parity.sync_references import SyncNet

BATCH = 20


def main(flags) -> None:
  model, syncnet = SyncLipMAE.load(flags.checkpoint), SyncNet().eval()
  random, frames = np.random.default_rng(0), flags.seconds * FPS
  waveform = random.normal(0, 0.1, frames * SAMPLES_PER_FRAME).astype(np.float32)
  crops = random.integers(0, 256, (frames, model.image_size, model.image_size, 3), np.uint8)
  pictures = torch.from_numpy(random.integers(0, 256, (3, frames, 224, 224)).astype(np.float32))
  columns = torch.from_numpy(mfcc(int16_scale(waveform)).astype(np.float32).T)
  starts = np.array_split(np.arange(frames - CONTEXT), range(BATCH, frames - CONTEXT, BATCH))

  def ours() -> None:
    model.embedder.encode_frames(crops)
    model.embedder.embed_sound(waveform)

  @torch.inference_mode()
  def theirs() -> None:
    for batch in starts:
      syncnet.netfclip(syncnet.netcnnlip(torch.stack([pictures[:, t : t + CONTEXT] for t in batch])).flatten(1))
      heard = [columns[None, :, COLUMNS_PER_FRAME * t : COLUMNS_PER_FRAME * t + COLUMNS] for t in batch]
      syncnet.netfcaud(syncnet.netcnnaud(torch.stack(heard)).flatten(1))

  for run in (ours, theirs):
    run()  # compiles or fills the caches
  times = side_by_side.in_turn({"ours": ours, "SyncNet": theirs}, rounds=flags.rounds)
  speed = {name: flags.seconds / float(np.median(each.wall)) for name, each in times.items()}
  found = side_by_side.ratio(times["ours"], times["SyncNet"])
  side_by_side.print_ratio("sync_network", f"{flags.seconds} s of video", found, of="ours / SyncNet in PyTorch",
                           target="<= 1.0", times_real_time=speed)  # fmt: skip


if __name__ == "__main__":
  main(flags)
