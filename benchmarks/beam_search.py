"""The joint beam search against the same algorithm in PyTorch, and lip reading from file to text.

    python benchmarks/beam_search.py [--beam 40] [--rounds 5] [--checkpoint DIR] [--video FILE]

Prints a JSON line of the times of the searches, timed in turn, with how often both find the same text, and one of the
duration of a video over the time from file to text, faces included. The recogniser is that of the package, the video
one of SynthTalk, unless others are named. Takes about two minutes on two cores. Needs torch.
"""

import tempfile
import time
from pathlib import Path

import side_by_side

arguments = side_by_side.parser(__doc__)
arguments.add_argument("--beam", type=int, default=40)
arguments.add_argument("--rounds", type=int, default=5)
arguments.add_argument("--clips", type=int, default=8, help="of 3 s, at a time")
arguments.add_argument("--checkpoint", help="a recogniser (default: that of the package)")
arguments.add_argument("--video", help="a file to read, once warm (default: SynthTalk)")
if __name__ == "__main__":
  flags = side_by_side.parse(arguments, needs=["torch"])

import footage
import jax
import numpy as np
import torch
import torch_beam_search

from synclipmae_jax.decoding.beam_search import Scorer, beam_search
from synclipmae_jax.lipread.reader import LipReader
from synclipmae_jax.models.recogniser import Recogniser


def ours(recogniser: Recogniser, params, *, beam: int, max_tokens: int, ctc_weight: float):
  """(log-probabilities, states, lengths) -> tokens and their number, compiled."""

  @jax.jit
  def run(log_probs, states, lengths):
    decoder = recogniser.decoder.bind(params["text_decoder"])
    state = decoder.start(states, lengths, beam=beam, steps=max_tokens + 1)
    found = beam_search(
      log_probs, lengths, [Scorer(step=decoder.step, state=state, weight=1 - ctc_weight)], end=recogniser.end,
      beam=beam, max_tokens=max_tokens, ctc_weight=ctc_weight,
    )  # fmt: skip
    return found.tokens[:, 0], found.length[:, 0]

  return run


def heads_of(recogniser: Recogniser) -> int:
  return recogniser.decoder.bind(recogniser.decoder.abstract).heads


def main(flags) -> None:
  reader = LipReader.load(flags.checkpoint)
  recogniser, params = reader.recogniser, reader.params
  options = dict(beam=flags.beam, max_tokens=reader.max_tokens, ctc_weight=reader.search.ctc_weight)
  frames = reader.longest
  tokens = np.random.default_rng(0).normal(size=(flags.clips, frames, recogniser.in_features)).astype(np.float32)
  # Smooth in time, as lips are: the texts are then about as long as those of speech.
  tokens = np.stack([np.convolve(row, np.ones(5) / 5, "same") for row in tokens.transpose(0, 2, 1).reshape(-1, frames)])
  tokens = tokens.reshape(flags.clips, -1, frames).transpose(0, 2, 1)
  lengths = np.full(flags.clips, frames, np.int32)
  states = jax.jit(lambda x, n: recogniser.states(params, recogniser.prepare(x, n), n))(tokens, lengths)
  log_probs = jax.jit(lambda x: recogniser.ctc_log_probs(params, x))(states)

  run = ours(recogniser, params, **options)
  decoder = torch_beam_search.Decoder(jax.device_get(params["text_decoder"]), heads_of(recogniser))
  there = [torch.from_numpy(np.array(x)) for x in (log_probs, lengths, states)]
  theirs = lambda: torch_beam_search.search(there[0], there[1].long(), decoder, there[2], **options)
  mine = lambda: [row[:n].tolist() for row, n in zip(*map(np.asarray, run(log_probs, states, lengths)), strict=True)]
  same = np.mean([a == b for a, b in zip(mine(), theirs(), strict=True)])  # the first call compiles
  times = side_by_side.in_turn({"torch": theirs, "ours": mine}, rounds=flags.rounds)
  found = side_by_side.ratio(times["torch"], times["ours"])
  side_by_side.print_ratio(
    "beam_search", f"search, beam {flags.beam}", found, of="torch / ours", clips=flags.clips, same_texts=float(same)
  )
  with tempfile.TemporaryDirectory() as folder:
    video = flags.video or footage.write_video(Path(folder, "video.mp4"), 360, 288, seconds=6.0)
    side_by_side.print_ratio("beam_search", "file to text", from_file(reader, str(video)), of="video / time")


def from_file(reader: LipReader, video: str) -> side_by_side.Ratio:
  """Seconds of a video by seconds of wall and processor time from the file to its text."""
  from synclipmae_jax.inference.lips import read_lips
  from synclipmae_jax.pretrained import SyncLipMAE

  model = SyncLipMAE.load()

  def read() -> int:
    faces, _ = read_lips(model.embedder, video)
    reader.read_all([face.vocal for face in faces])
    return len(faces[0].vocal)

  read()  # compiles
  wall, cpu = time.perf_counter(), time.process_time()
  seconds = read() / 25
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  return side_by_side.ratio(side_by_side.steady(seconds, 1), side_by_side.Times(wall=[wall], cpu=[cpu]))


if __name__ == "__main__":
  main(flags)
