"""The evaluation of pretraining on a finished checkpoint: synchronisation and the factor matrix, in eval.json.

    python -m synclipmae_jax.main --config=configs/evaluate.py --workdir=DIR                  the embedded checkpoint
    python -m synclipmae_jax.main --config=configs/evaluate.py --workdir=DIR --config.checkpoint=runs/demo

The clips are SynthTalk of a seed that nothing was trained on, or those of `data.sources`. Presets: `default`,
`tiny` (tests, seconds).
"""

from ml_collections import ConfigDict, config_dict


def get_config(arg: str = "default") -> ConfigDict:
  """`arg` is a preset."""
  if arg not in ("default", "tiny"):
    raise ValueError(f"unknown preset {arg!r} of configs/evaluate.py: one of default, tiny")
  config = ConfigDict()
  config.task = "evaluate"
  config.checkpoint = config_dict.placeholder(str)  # a workdir or a step; without one, the embedded checkpoint
  config.data = ConfigDict(
    dict(
      sources=config_dict.placeholder(tuple),  # ((directory of records, weight),): each gives as many clips
      # With a weight beside `sources`, else only without. Of 120 people two clips each to fit the factors on, of 80
      # others two clips each to judge. For tuning: val=160 and eval_split="val".
      synthtalk=dict(train=240, val=0, test=160, seconds=4.0, size=160, seed=2, weight=config_dict.placeholder(float)),
      image_size=0,  # that of the checkpoint
      eval_clips=160,
      eval_split="test",
    )
  )
  config.evaluation = ConfigDict(dict(factor_ceiling_steps=2_000))  # of the supervised network, a minute; 0: without it
  if arg == "tiny":
    config.data.update(dict(eval_clips=6))
    config.data.synthtalk.update(dict(train=6, test=6, seconds=3.0, size=64))
    config.evaluation.factor_ceiling_steps = 2
  return config.lock()
