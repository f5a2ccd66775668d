"""Dubbing: the mouth of a video, generated to match speech or the mouth of another video (Wan2.1-VACE, AudioPack).

    python -m synclipmae_jax.main --config=configs/dub.py:demo --workdir=DIR       SynthTalk, a small model
    python -m synclipmae_jax.main --config=configs/dub.py:paper --workdir=DIR
        --config.data.sources="(('RECORDS', 1.0),)" --config.data.encoder=CHECKPOINT --config.data.autoencoder=VAE
        --config.data.text=TEXT --config.init.dit=WAN --config.init.vace=WAN

RECORDS are made by `synclipmae prepare --size 512`; VAE, TEXT and WAN by `python -m synclipmae_jax.convert` from Wan's
VAE, its text encoder (`text-embeddings`) and VACE-1.3B. The run first writes the latents and tokens of all segments,
once, to `data.cache`; interrupted, the same command goes on with the next clip.

    python -m synclipmae_jax.main --config=configs/dub.py:evaluate --workdir=DIR
        --config.data.truth=FOLDER --config.data.systems="(('ours', 'FOLDER'), ('wav2lip', 'FOLDER'))"

scores dubbed videos made by any system. A video of a system belongs to that of the truth (or the source) of the same
name; all are measured in the face box of that one. WORKDIR/dub_scores.json has a row for every video, dub_scores.md the
table. LSE needs converted SyncNets, FID and KID an InceptionV3, FVD an I3D.

Presets: `paper` (accelerators), `demo`, `embedded` (a small model of SynthTalk and a speaker), `tiny` (for tests),
`evaluate`. All but `paper` have no pretrained backbone, so theirs is trained too, and a stand-in takes the place of the
VAE (models/wan/space_to_depth.py): latents are rearranged pixels.
The comment after a value gives its source: `paper`, `vace` (Wan2.1-VACE-1.3B), `diffsynth` (DiffSynth-Studio's training
of it), `omniavatar` or `ours`.
"""

from ml_collections import ConfigDict, config_dict


def get_config(arg: str = "demo") -> ConfigDict:
  presets = {"paper": _paper, "demo": _demo, "embedded": _embedded, "tiny": _tiny, "evaluate": _evaluate}
  if arg not in presets:
    raise ValueError(f"unknown preset {arg!r} of configs/dub.py: one of {', '.join(presets)}")
  return presets[arg]().lock()


def _paper() -> ConfigDict:
  config = _base()
  config.data.synthtalk = None
  return config


def _base() -> ConfigDict:
  """The paper's values, with SynthTalk as data."""
  config = ConfigDict()
  config.task = "dub"
  config.seed = 0

  config.data = ConfigDict(
    dict(
      sources=config_dict.placeholder(tuple),  # [(directory of records, weight)]
      synthtalk=dict(  # with a weight beside `sources`, else only without
        train=300, val=16, test=32, seconds=3.0, size=160, seed=1, weight=config_dict.placeholder(float)
      ),
      image_size=512,  # ours: a side of the face crops
      segment_frames=17,  # paper
      encoder=config_dict.placeholder(str),  # checkpoint of the tokens; None: the embedded one
      token_width=1024,  # dimensions of a token
      autoencoder=config_dict.placeholder(str),  # converted Wan VAE; not used with the stand-in
      text=config_dict.placeholder(str),  # converted text embeddings, of which the first prompt is used; None: no text
      text_tokens=64,  # the prompt is padded with zeros to so many, and by the model to 512
      cache=config_dict.placeholder(str),  # where latents and tokens are kept; None: WORKDIR/data/segments
      eval_clips=64,
      val_split="val",  # of the evaluations during training
      eval_split="test",  # measured once, at the end
    )
  )
  config.model = ConfigDict(
    dict(
      autoencoder=dict(kind="wan"),
      dit=dict(
        width=1536, depth=30, heads=12, mlp_width=8960, text_width=4096, text_length=512, time_features=256
      ),  # vace
      vace=dict(depth=15, stride=2),  # vace
      audio_pack=dict(hidden=256),  # ours: omniavatar has 32, in 14 places
      frozen_backbone=True,  # paper
      predicts="velocity",  # vace; or clean, or residual: models/wan/dubbing.py
      compute_dtype="bfloat16",
      unroll=False,
      remat="full",
    )
  )
  config.loss = ConfigDict(
    dict(
      shift=5.0,  # diffsynth
      weights="bell",  # diffsynth
      on_references=True,  # diffsynth
      outside=1.0,  # ours: what a place outside of the mask counts, beside 1 within; diffsynth: 1
      motion=1.0,  # ours: what changes within a segment counts, beside 1 of what stays; diffsynth: 1
      drops=dict(history=0.1, text=0.1, control=0.1),  # paper: history; ours: text and control, for guidance
    )
  )
  config.optimizer = ConfigDict(
    dict(  # diffsynth
      name="adamw", peak_lr=5e-5, floor_lr=5e-5, warmup_steps=100, b1=0.9, b2=0.999, weight_decay=0.01, clip_norm=1.0
    )
  )
  config.evaluation = ConfigDict(
    dict(
      levels=(0.2, 0.5, 0.8, 0.95),  # noise levels at which the error of the velocity is measured during training
      batch_clips=8,
      sampler="unipc",  # or euler
      steps=50,  # vace
      shift=5.0,  # vace
      text_guidance=1.0,
      control_guidance=4.5,  # omniavatar
      release=False,  # whether the parameters are also written in half precision, to hand them on
    )
  )
  config.init = ConfigDict(
    dict(
      dit=config_dict.placeholder(str),
      vace=config_dict.placeholder(str),
      audio_pack=config_dict.placeholder(str),
      require=("dit", "vace"),
      allow_random_frozen=False,
      by_reference=("dit",),  # 5.7 GB that every run has alike
    )
  )
  config.train = ConfigDict(
    dict(
      steps=30_000,  # paper
      batch_clips=128,  # paper: one a device
      accumulation=1,
      mesh=(("data", 1), ("fsdp", -1)),
      log_every=20,
      eval_every=2_000,
      pictures_every=0,
      checkpoint_every=500,
      keep_last=2,
      keep_best=0,
      tensorboard=True,
      profile=config_dict.placeholder(tuple),  # (first, last): a trace of these steps in WORKDIR/profile
    )
  )
  return config


def _demo() -> ConfigDict:
  config = _base()
  config.data.update(dict(image_size=64, token_width=128, text_tokens=1, eval_clips=32))
  config.model = ConfigDict(
    dict(
      autoencoder=dict(kind="space_to_depth", space_stride=4, time_stride=4),
      dit=dict(width=256, depth=6, heads=4, mlp_width=1024, text_width=16, text_length=1, time_features=128),
      vace=dict(depth=3, stride=2),
      audio_pack=dict(hidden=128),
      frozen_backbone=False,
      predicts="clean",  # Li and He 2025: a patch has 768 numbers, more than the width
      compute_dtype="float32",
      unroll=True,
      remat="none",
    )
  )
  config.loss.update(dict(shift=3.0, drops=dict(history=0.1, text=0.0, control=0.1)))
  config.optimizer.update(dict(peak_lr=5e-4, floor_lr=1e-6, warmup_steps=200, b2=0.99))
  config.evaluation.update(dict(steps=20, shift=3.0, control_guidance=1.0))
  config.init.update(dict(require=(), allow_random_frozen=True, by_reference=()))
  config.train.update(
    dict(
      steps=4_000,
      batch_clips=8,
      mesh=(("data", -1),),
      eval_every=500,
      checkpoint_every=200,
      tensorboard=False,
    )
  )
  return config


def _embedded() -> ConfigDict:
  """SynthTalk and a real person: a small model, 70 minutes on two quiet cores.

  The person comes as --config.data.sources="(('GRID', 1.0),)", records of 96 pixels; `make dubber` does the whole.
  """
  config = _demo()
  config.data.synthtalk.update(dict(train=600, val=16, test=160, seconds=4.0, seed=3, weight=1.0))
  config.data.update(dict(image_size=96, eval_clips=64, eval_split="val"))  # GRID's test clips are of strangers
  config.model.autoencoder.space_stride = 6  # as many tokens as `demo` has at 64 pixels
  config.model.dit.update(dict(width=192, depth=4, heads=3, mlp_width=512))
  config.model.vace.depth = 2
  config.model.predicts = "residual"
  # The mouth is decided at noise levels that the bell hardly counts, and in the error of the velocity a patch of 1,728
  # numbers, which 192 cannot hold exactly, would count most where there is hardly any noise. What lies outside of the
  # mask is not used. The lips are a small part of the error: without `motion` they stand still for hours.
  config.loss.update(dict(shift=8.0, motion=10.0, weights="clean", on_references=False, outside=0.1))
  config.optimizer.update(dict(name="muon", peak_lr=3e-3, warmup_steps=100))
  # The output is the clean picture, so more steps bring nothing; guidance opens the mouth as far as it should.
  config.evaluation.update(dict(sampler="euler", steps=1, control_guidance=2.0, release=True))
  config.train.update(dict(steps=2_400, eval_every=600, checkpoint_every=100))
  return config


def _tiny() -> ConfigDict:
  """Runs every part in seconds, for tests; the model learns almost nothing."""
  config = _demo()
  config.data.synthtalk.update(dict(train=8, val=2, test=2, seconds=2.0, size=96))
  config.data.update(dict(image_size=32, eval_clips=2))
  config.model.dit.update(dict(width=24, depth=2, heads=2, mlp_width=32, text_width=4, time_features=8))
  config.model.vace.update(dict(depth=1))
  config.model.audio_pack.update(dict(hidden=8))
  config.model.unroll = False
  config.optimizer.warmup_steps = 2
  config.evaluation.update(dict(levels=(0.5,), batch_clips=2, steps=2, control_guidance=2.0))
  config.train.update(dict(steps=4, batch_clips=8, log_every=1, eval_every=2, checkpoint_every=1))
  return config


def _evaluate() -> ConfigDict:
  config = ConfigDict()
  config.task = "dub_scores"
  config.checkpoint = config_dict.placeholder(str)  # of our sync score and identity token; None: the embedded one
  config.faces = "auto"  # how faces are found in truth or source, as in `synclipmae sync`
  config.syncnet = config_dict.placeholder(str)  # converted weights of SyncNet v2, for LSE-C and LSE-D
  config.stable_syncnet = config_dict.placeholder(str)  # the same of StableSyncNet
  config.inception = config_dict.placeholder(str)  # converted weights of FID's InceptionV3, for FID and KID
  config.i3d = config_dict.placeholder(str)  # converted weights of I3D, for FVD
  config.picture_every = 1  # frames between the pictures of FID and KID
  config.data = ConfigDict(
    dict(
      systems=config_dict.placeholder(tuple),  # ((name, folder of its videos),)
      truth=config_dict.placeholder(str),  # folder of true videos: the same pictures, speaking the new sound
      source=config_dict.placeholder(str),  # folder of the undubbed videos; the reference where there is no truth
    )
  )
  return config.lock()
