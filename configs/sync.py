"""The paper's synchronisation protocol: Acc, Offset and R-precision of several models on the same clips.

    python -m synclipmae_jax.main --config=configs/sync.py --workdir=DIR                 SynthTalk, the embedded model
    python -m synclipmae_jax.main --config=configs/sync.py --workdir=DIR --config.data.sources="(('RECORDS', 1.0),)" \
        --config.models="(('synclipmae', 'runs/demo'), ('syncnet', 'DIR'), ('vocalist', 'DIR'))"        your own

    python -m synclipmae_jax.main --config=configs/sync.py:real --config.data.raw=FOLDER --workdir=DIR \
        --config.checkpoint=runs/demo                           `synclipmae sync` on videos of your own, see below

DIR of a model is a workdir or the output of `python -m synclipmae_jax.convert`. Presets: `default`, `tiny` (for tests,
runs in seconds), `real`: what `synclipmae sync` answers for the files of a folder, as they are and with injected lags,
with the tracker of the tool. WORKDIR/real.json has a row for every file, real.md the table.
"""

from ml_collections import ConfigDict, config_dict


def get_config(arg: str = "default") -> ConfigDict:
  """`arg`: a preset."""
  if arg not in ("default", "tiny", "real"):
    raise ValueError(f"unknown preset {arg!r} of configs/sync.py: one of default, tiny, real")
  if arg == "real":
    return _real()
  config = ConfigDict()
  config.task = "sync"
  config.seed = 0  # for the injected lags
  # (kind, checkpoint directory): synclipmae (None: the embedded checkpoint), synclipmae-5 (the same with tokens of five
  # frames, the context of SyncNet), syncnet, stable_syncnet, vocalist; linear (None): the linear baseline, and the
  # linear map of the true mouth if it is known.
  config.models = (("linear", None), ("synclipmae", None))
  config.inject_lags = True  # into clips of unknown lag; the lags of SynthTalk's test clips are known
  config.data = ConfigDict(
    dict(
      sources=config_dict.placeholder(tuple),  # ((directory of records, weight),): each gives as many clips
      # With a weight beside `sources`, else only without. For tuning: val=128 and eval_split="val".
      synthtalk=dict(train=240, val=0, test=128, seconds=6.0, size=160, seed=0, weight=config_dict.placeholder(float)),
      image_size=96,  # of the records: at least that of the model
      eval_clips=128,
      eval_split="test",
    )
  )
  if arg == "tiny":
    config.models = (("linear", None),)
    config.data.update(dict(image_size=32, eval_clips=6))
    config.data.synthtalk.update(dict(train=6, test=6, seconds=3.0, size=64))
  return config.lock()


def _real() -> ConfigDict:
  config = ConfigDict()
  config.task = "real_faces"
  config.seed = 0  # for the injected lags
  config.checkpoint = config_dict.placeholder(str)  # a workdir or a step; without one, the embedded checkpoint
  config.faces = "auto"  # how faces are found, as in `synclipmae sync`
  config.shifts = 3  # injected lags of a file, different ones of -10 .. 10 frames, never 0
  config.known_lag = config_dict.placeholder(int)  # frames, of all files; without one it counts as unknown
  config.data = ConfigDict(dict(raw=config_dict.placeholder(str)))  # the folder, searched at any depth
  return config.lock()
