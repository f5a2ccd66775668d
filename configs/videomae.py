"""Pretrains VideoMAE or MARLIN on the same records, for comparison with `configs/pretrain.py`.

    python -m synclipmae_jax.main --config=configs/videomae.py:demo --workdir=DIR
    python -m synclipmae_jax.main --config=configs/videomae.py:marlin_demo --workdir=DIR --config.data.sources=...

Presets: `base` (the released sizes, on a pod), `demo` (default; encoder, data and compute of `pretrain.py:demo`),
`tiny` (for tests, runs in seconds), and each as MARLIN: `marlin_base`, `marlin_demo`, `marlin_tiny`.

A step of `demo` costs 30.1 GFLOP and one of `marlin_demo` 59.3, of which its critic takes half; a step of
`pretrain.py:demo` costs 42.5: 990 and 500 steps cost as much as its 700. Beside `pretrain.py:embedded`, whose patches
are of 12 pixels (3,200 steps of 27.9), `--config.model.encoder.patch=12` makes steps of 11.0 and 40.0: 8,150 and 2,230.

The comment after a value gives its source: `VideoMAE`, `MARLIN` or `ours`.
"""

from ml_collections import ConfigDict, config_dict


def get_config(arg: str = "demo") -> ConfigDict:
  presets = {
    "base": _base,
    "demo": _demo,
    "tiny": _tiny,
    "marlin_base": _marlin_base,
    "marlin_demo": _marlin_demo,
    "marlin_tiny": lambda: _marlin(_tiny()),
  }
  if arg not in presets:
    raise ValueError(f"unknown preset {arg!r} of configs/videomae.py: one of {', '.join(presets)}")
  return presets[arg]().lock()


def _base() -> ConfigDict:
  config = ConfigDict()
  config.task = "videomae"
  config.seed = 0

  config.data = ConfigDict(
    dict(
      # [(directory of records, weight)], as in configs/pretrain.py.
      sources=config_dict.placeholder(tuple),
      synthtalk=None,
      image_size=224,  # VideoMAE
      clip_frames=64,  # 16 frames at a stride of 4
      audio_frames=64,  # as many: there is no sound
      workers=8,
      eval_clips=100,
      val_split="val",  # of the evaluations during training, by which the best checkpoint is kept
      eval_split="test",  # measured once, at the end
    )
  )
  config.model = ConfigDict(
    dict(
      encoder=dict(  # VideoMAE-B
        frames=16, patch=16, width=768, depth=12, heads=12, mlp_width=3072, epsilon=1e-6, normalise=True
      ),
      decoder=dict(width=384, depth=4, heads=6, mlp_width=1536, epsilon=1e-6),  # VideoMAE-B
      stride=4,  # VideoMAE on Kinetics
      mask="tube",
      mask_ratio=0.9,  # VideoMAE
      compute_dtype="bfloat16",
      unroll=False,
      remat="full",
    )
  )
  config.loss = ConfigDict(
    dict(
      normalised_target=True,  # VideoMAE
      target_floor=1e-6,  # VideoMAE
      adversarial=0.0,
    )
  )
  config.optimizer = ConfigDict(
    dict(  # VideoMAE: AdamW (0.9, 0.95), decay 0.05, 1.5e-4 for 256 clips; a warm-up of 40 of 800 epochs
      name="adamw",
      peak_lr=6e-4,
      floor_lr=1e-5,
      warmup_steps=9_400,
      b1=0.9,
      b2=0.95,
      weight_decay=0.05,
      clip_norm=1.0,  # ours
    )
  )
  config.train = ConfigDict(
    dict(
      steps=188_000,  # VideoMAE: 800 epochs of Kinetics in batches of 1,024
      batch_clips=1_024,
      accumulation=1,
      mesh=(("data", -1), ("fsdp", 8)),
      log_every=50,
      pictures_every=0,
      eval_every=10_000,
      checkpoint_every=2_000,
      keep_last=2,
      keep_best=1,
      tensorboard=True,
      profile=config_dict.placeholder(tuple),  # (first, last): a trace of these steps in WORKDIR/profile
    )
  )
  return config


def _demo() -> ConfigDict:
  """The encoder, the clips and the optimizer of `pretrain.py:demo`."""
  config = _base()
  config.data.update(
    dict(
      synthtalk=dict(  # with a weight beside `sources`, else only without
        train=240, val=48, test=64, seconds=6.0, size=112, seed=0, weight=config_dict.placeholder(float)
      ),
      image_size=96,
      clip_frames=16,
      audio_frames=16,
      workers=0,
      eval_clips=64,
    )
  )
  config.model.encoder.update(dict(patch=8, width=128, depth=2, heads=4, mlp_width=512))
  config.model.decoder.update(dict(width=64, depth=1, heads=2, mlp_width=256))  # ours: half the width
  config.model.update(dict(stride=1, compute_dtype="float32", unroll=True, remat="none"))
  config.loss.target_floor = 0.02  # ours: many patches of SynthTalk are flat, but for the noise of their coding
  config.optimizer.update(dict(name="muon", peak_lr=8e-3, floor_lr=1e-6, warmup_steps=50))
  config.train.update(
    dict(
      steps=990,
      batch_clips=16,
      mesh=(("data", -1),),
      log_every=10,
      eval_every=330,
      checkpoint_every=100,
      tensorboard=False,
    )
  )
  return config


def _tiny() -> ConfigDict:
  """Runs every part in seconds, for tests; the model learns almost nothing."""
  config = _demo()
  config.data.synthtalk.update(dict(train=6, val=6, test=6, seconds=3.0, size=64))
  config.data.update(dict(image_size=32, clip_frames=8, audio_frames=8, eval_clips=6))
  config.model.encoder.update(dict(frames=8, width=32, depth=2, heads=2, mlp_width=64))
  config.model.decoder.update(dict(width=16, heads=2, mlp_width=32))
  config.model.mask_ratio = 0.75  # of 16 tubes
  config.optimizer.warmup_steps = 2
  config.train.update(dict(steps=4, batch_clips=8, log_every=1, eval_every=4, checkpoint_every=2))
  return config


def _marlin(config: ConfigDict) -> ConfigDict:
  """What MARLIN changes: masks, pixels, target and the adversarial term."""
  config.model.mask = "fasking"
  config.model.encoder.update(dict(epsilon=1e-5, normalise=False))
  config.model.decoder.epsilon = 1e-5
  config.loss.update(dict(normalised_target=False, adversarial=0.01))
  return config


def _marlin_base() -> ConfigDict:
  config = _marlin(_base())
  config.model.stride, config.data.clip_frames, config.data.audio_frames = 2, 32, 32
  config.optimizer.weight_decay = 0.0
  return config


def _marlin_demo() -> ConfigDict:
  """As many steps as cost what those of `demo` cost."""
  config = _marlin(_demo())
  config.train.update(dict(steps=500, eval_every=250))
  return config
