"""The paper's synchronisation protocol: Acc, Offset and R-precision of any number of models on the same clips.

    python -m synclipmae_jax.main --config=configs/sync.py --workdir=DIR                 SynthTalk, the embedded model
    python -m synclipmae_jax.main --config=configs/sync.py --workdir=DIR --config.data.sources="(('RECORDS', 1.0),)" \
        --config.models="(('synclipmae', 'runs/demo'), ('syncnet', 'DIR'), ('vocalist', 'DIR'))"        your own

DIR of a model is a workdir, or what `python -m synclipmae_jax.convert` made. Presets: `default`, `tiny` (tests,
seconds).
"""

from ml_collections import ConfigDict, config_dict


def get_config(arg: str = "default") -> ConfigDict:
  """`arg` is a preset."""
  if arg not in ("default", "tiny"):
    raise ValueError(f"unknown preset {arg!r} of configs/sync.py: one of default, tiny")
  config = ConfigDict()
  config.task = "sync"
  config.seed = 0  # of the injected lags
  # (kind, checkpoint directory): synclipmae (None: the embedded one), synclipmae-5 (the same, five frames at once, as
  # SyncNet sees them), syncnet, stable_syncnet, vocalist; linear (None) is the linear baseline, and its ceiling where
  # the true mouth is known.
  config.models = (("linear", None), ("synclipmae", None))
  config.inject_lags = True  # into clips of unknown lag; SynthTalk's test clips carry their own
  config.data = ConfigDict(
    dict(
      sources=config_dict.placeholder(tuple),  # ((directory of records, weight),): the first is measured
      synthtalk=dict(train=240, test=128, seconds=6.0, size=112, seed=0),  # without sources
      image_size=64,  # of the pictures that the linear baseline and the other baselines get; SyncLipMAE has its own
      eval_clips=128,
      eval_split="test",
    )
  )
  if arg == "tiny":
    config.models = (("linear", None),)
    config.data.update(dict(image_size=32, eval_clips=6))
    config.data.synthtalk.update(dict(train=6, test=6, seconds=3.0, size=64))
  return config.lock()
