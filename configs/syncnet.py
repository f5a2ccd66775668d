"""Trains SyncNet from scratch on the same records, for comparison with `configs/pretrain.py`.

    python -m synclipmae_jax.main --config=configs/syncnet.py:demo --workdir=DIR
    python -m synclipmae_jax.main --config=configs/syncnet.py:demo --workdir=DIR --config.data.sources="(('DIR', 1.0),)"

Presets: `demo` (default; data and compute of `pretrain.py:demo`), `tiny` (for tests, runs in seconds). A step of `demo`
costs 37.6 GFLOP, 0.88 times a step of `pretrain.py:demo` (42.5): 790 steps cost as much as the 700 of
`pretrain.py:demo`, 4,340 steps as much as the 2,800 of `pretrain.py:embedded` (58.3 a step). `--config.model.scale=1.0`
is the released width, at ten times the cost.
"""

from ml_collections import ConfigDict, config_dict


def get_config(arg: str = "demo") -> ConfigDict:
  presets = {"demo": _demo, "tiny": _tiny}
  if arg not in presets:
    raise ValueError(f"unknown preset {arg!r} of configs/syncnet.py: one of {', '.join(presets)}")
  return presets[arg]().lock()


def _demo() -> ConfigDict:
  config = ConfigDict()
  config.task = "syncnet"
  config.seed = 0

  config.data = ConfigDict(
    dict(
      # [(directory of records, weight)]; by default the corpus of `pretrain.py:demo` is generated.
      sources=config_dict.placeholder(tuple),
      synthtalk=dict(  # with a weight beside `sources`, else only without
        train=240, val=48, test=64, seconds=6.0, size=112, seed=0, weight=config_dict.placeholder(float)
      ),
      image_size=64,  # of the records
      clip_frames=16,  # 12 windows of 5 frames
      audio_frames=64,  # as in pretraining, so that both runs draw the same clips
      workers=0,
      eval_clips=64,
      val_split="val",  # of the evaluations during training, by which the best checkpoint is kept
      eval_split="test",  # measured once, at the end
    )
  )
  config.model = ConfigDict(
    dict(
      image_size=64,  # the size of the records; 224 in the release
      scale=0.25,  # a quarter of the release's channels: ten times the steps at equal compute
      width=256,
    )
  )
  config.loss = ConfigDict(
    dict(negatives_clips=16, temperature_init=0.07, temperature_range=(0.01, 0.5))  # as in pretraining
  )
  config.optimizer = ConfigDict(
    dict(peak_lr=1e-3, floor_lr=1e-6, warmup_steps=50, b1=0.9, b2=0.95, weight_decay=0.05, clip_norm=1.0)
  )
  config.train = ConfigDict(
    dict(
      steps=790,
      batch_clips=16,
      accumulation=1,
      mesh=(("data", -1),),
      calibration_batches=16,  # training batches for the statistics of batch norm
      log_every=10,
      pictures_every=0,
      eval_every=395,
      checkpoint_every=150,
      keep_last=2,
      keep_best=1,
      tensorboard=False,
      profile=config_dict.placeholder(tuple),  # (first, last): a trace of these steps in WORKDIR/profile
    )
  )
  return config


def _tiny() -> ConfigDict:
  """Runs every part in seconds, for tests; the model learns almost nothing."""
  config = _demo()
  config.data.synthtalk.update(dict(train=6, val=6, test=6, seconds=3.0, size=64))
  config.data.update(dict(image_size=32, clip_frames=8, audio_frames=24, eval_clips=6))
  config.model.update(dict(scale=0.05, width=16))
  config.loss.negatives_clips = 4
  config.optimizer.warmup_steps = 2
  config.train.update(dict(steps=4, batch_clips=8, log_every=1, eval_every=4, checkpoint_every=2))
  config.train.calibration_batches = 2
  return config
