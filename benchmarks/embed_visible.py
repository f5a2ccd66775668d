"""Compares the patches for `embed`: all of a frame, or as many as in training.

    python benchmarks/embed_visible.py runs/demo

Scores one finished run in each way on its validation clips and prints accuracy, retrieval and the ratio of the times.
The result is the default of `model.embed_visible` in configs/pretrain.py.
"""

import functools
import sys
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from synclipmae_jax import checkpoints
from synclipmae_jax.data.pipeline import eval_clips
from synclipmae_jax.evaluation.sync import PROTOCOL, score_tokens
from synclipmae_jax.evaluation.tokens import embed_clip
from synclipmae_jax.models.synclipmae import EMBED_VISIBLE
from synclipmae_jax.run.jobs import training_job_of


def main(workdir: Path) -> None:
  step = checkpoints.resolve_step(workdir)
  config = ConfigDict(checkpoints.load_meta(step)["config"])
  split = config.data.get("val_split") or config.data.eval_split  # a choice is made by it
  clips = list(eval_clips(workdir / "data" / "prepared", split=split, image_size=config.data.image_size))
  trainable = {name: checkpoints.load_item(step, name) for name in ("visual_encoder", "audio_adapter")}
  seconds = {}
  for visible in EMBED_VISIBLE:
    config.model.embed_visible = visible
    embed = jax.jit(training_job_of(config).build_task(config).model.embed)
    tokens_of = functools.partial(embed_clip, embed, trainable, {"speech_encoder": {}})
    tokens_of(clips[0])  # compile
    started = time.perf_counter()
    estimates = score_tokens(tokens_of, clips).estimates
    seconds[visible] = time.perf_counter() - started
    print(f"{visible:10}", "  ".join(f"{name} {estimates[name].value:.3f}" for name in PROTOCOL))
  print(f"time, as_trained : all = {seconds['as_trained'] / seconds['all']:.2f}")


if __name__ == "__main__":
  main(Path(sys.argv[1]))
