"""Compares the patches for `embed`: all of a frame, or as many as in training.

    python benchmarks/embed_visible.py [WORKDIR]         a minute; default: the embedded model on 16 SynthTalk clips

Scores one model in each way on its validation clips; prints accuracy and retrieval on stderr, and a JSON line of the
ratio of the times. The result is the default of `model.embed_visible` in configs/pretrain.py.
"""

import functools
import sys
import tempfile
from pathlib import Path

import side_by_side

arguments = side_by_side.parser(__doc__)
arguments.add_argument("workdir", nargs="?", type=Path, help="a finished run of configs/pretrain.py, with its data")
arguments.add_argument("--rounds", type=int, default=3)
if __name__ == "__main__":
  flags = side_by_side.parse(arguments)

import footage
import jax
from ml_collections import ConfigDict

from synclipmae_jax import checkpoints
from synclipmae_jax.data.pipeline import eval_clips
from synclipmae_jax.evaluation.sync import PROTOCOL, score_tokens
from synclipmae_jax.evaluation.tokens import embed_clip
from synclipmae_jax.models.synclipmae import EMBED_VISIBLE
from synclipmae_jax.pretrained import DEMO
from synclipmae_jax.run.jobs import training_job_of


def main(flags) -> None:
  step = checkpoints.resolve_step(flags.workdir or DEMO)
  config = ConfigDict(checkpoints.load_meta(step)["config"])
  split = config.data.get("val_split") or config.data.eval_split  # a choice is made by it
  size = config.data.image_size
  with tempfile.TemporaryDirectory() as made:
    if flags.workdir:
      records = flags.workdir / "data" / "prepared"
    else:
      records, split = footage.write_records(Path(made), size=size, clips={"val": 16}), "val"
    clips = list(eval_clips(records, split=split, image_size=size))
  trainable = {name: checkpoints.load_item(step, name) for name in ("visual_encoder", "audio_adapter")}
  runs = {}
  for visible in EMBED_VISIBLE:
    config.model.embed_visible = visible
    embed = jax.jit(training_job_of(config).build_task(config).model.embed)
    tokens_of = functools.partial(embed_clip, embed, trainable, {"speech_encoder": {}})
    estimates = score_tokens(tokens_of, clips).estimates  # compiles
    print(f"{visible:10}", "  ".join(f"{name} {estimates[name].value:.3f}" for name in PROTOCOL), file=sys.stderr)
    runs[visible] = functools.partial(score_tokens, tokens_of, clips)
  times = side_by_side.in_turn(runs, rounds=flags.rounds)
  found = side_by_side.ratio(times["as_trained"], times["all"])
  side_by_side.print_ratio("embed_visible", "embed", found, of="as_trained / all", clips=len(clips))


if __name__ == "__main__":
  main(flags)
