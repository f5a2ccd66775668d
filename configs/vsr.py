"""Lip reading: text from the vocal-motion tokens of silent video.

    python -m synclipmae_jax.main --config=configs/vsr.py:demo --workdir=DIR       SynthTalk, on two cores
    python -m synclipmae_jax.main --config=configs/vsr.py:grid --workdir=DIR --config.data.sources="(('RECORDS', 1.0),)"
    python -m synclipmae_jax.main --config=configs/vsr.py:lrs3 --workdir=DIR --config.data.sources="(('RECORDS', 1.0),)"

RECORDS are made by `synclipmae prepare --corpus grid` (or lrs3). The tokens come from the checkpoint `data.encoder`
(default: the embedded one) and are cached in the workdir. To compare with:

    --config.data.tokens=mouth --config.data.token_width=576      the same recogniser on the pixels of the mouth
    --config.model.conformer.depth=0 --config.loss.ctc_weight=1.0  a linear probe with CTC

Against learning few sentences by heart: `data.views`, `data.warp`, `data.splice`; where the times of words are known,
`loss.frame_weight` (the preset `grid` has all but the views).

With `model.visual`, the model fields of the checkpoint's pretraining, and `init.visual_encoder`, its directory, the
encoder learns too, end to end.

Presets: `demo` (default), `grid`, `lrs3` (the sizes and the recipe of Auto-AVSR, on accelerators), `tiny` (for tests).
The comment after a value gives its source: `auto_avsr` (mpc001/auto_avsr and Ma et al. 2023) or `ours`.
"""

from ml_collections import ConfigDict, config_dict

CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"


def get_config(arg: str = "demo") -> ConfigDict:
  presets = {"demo": _demo, "grid": _grid, "lrs3": _lrs3, "tiny": _tiny}
  if arg not in presets:
    raise ValueError(f"unknown preset {arg!r} of configs/vsr.py: one of {', '.join(presets)}")
  return presets[arg]().lock()


def _demo() -> ConfigDict:
  config = ConfigDict()
  config.task = "vsr"
  config.seed = 0

  config.data = ConfigDict(
    dict(
      sources=config_dict.placeholder(tuple),  # [(directory of records with transcripts, weight)]
      synthtalk=dict(  # with a weight beside `sources`, else only without
        train=800, val=32, test=64, seconds=4.0, size=160, seed=1, weight=config_dict.placeholder(float)
      ),
      image_size=96,  # of the records, at least that of the encoder
      clip_frames=16,  # of the encoder, used with `model.visual` only
      audio_frames=64,  # likewise
      tokens="vocal",  # what is read: vocal tokens, or the grey pixels of the mouth (576 numbers)
      encoder=config_dict.placeholder(str),  # checkpoint of the tokens; None: the embedded one
      token_width=128,  # dimensions of a token
      views=1,  # ours: reads of every training clip: as it is, and from pictures moved, turned, mirrored and coloured
      warp=1.0,  # ours: the speed of a training clip is up to this factor higher or lower
      splice=0.0,  # ours: share of training clips with words of other clips in the same places (data/variations.py)
      lengths=(50, 75, 100, 125),  # frames; a batch is padded to one of them, longer clips are left out
      max_tokens=96,  # of a text; longer texts are left out
      curriculum_frames=75,  # auto_avsr begins with short clips; ours: for so many steps clips up to this length
      curriculum_steps=200,
      workers=0,  # processes that decode video, with `model.visual` only
      eval_clips=64,
      val_split="val",  # of the evaluations during training, by which the best checkpoint is kept
      eval_split="test",  # measured once, at the end
    )
  )
  config.text = ConfigDict(
    dict(
      kind="characters",  # or pieces, of sentencepiece
      characters=CHARACTERS,
      pieces=1_000,  # number of pieces: trained on the training transcripts, or those of `model`
      model=config_dict.placeholder(str),  # a sentencepiece model to use
      units=config_dict.placeholder(str),  # the order of its pieces, for converted recognisers
    )
  )
  config.model = ConfigDict(
    dict(
      conformer=dict(  # ours: auto_avsr's is 768 wide and 12 deep
        width=144, depth=4, heads=4, mlp_width=576, kernel=15, norm="layer", epsilon=1e-6
      ),
      text_decoder=dict(width=144, depth=2, heads=4, mlp_width=576, epsilon=1e-6),
      normalise=True,  # ours: tokens with zero mean and unit variance
      centre=False,  # ours: without the mean over the clip
      visual=config_dict.placeholder(dict),  # `model` of a pretraining configuration: the encoder learns too
      compute_dtype="float32",
      unroll=True,
      remat="none",
    )
  )
  config.loss = ConfigDict(
    dict(
      ctc_weight=0.3,  # ours: auto_avsr has 0.1, with thousands of hours
      smoothing=0.1,  # auto_avsr
      dropout=0.1,  # auto_avsr
      time_mask=10,  # auto_avsr: up to 10 frames of every 25
      frame_weight=0.0,  # ours: of labels of frames by the times of words (text/frame_labels.py), relative to CTC
    )
  )
  config.decoding = ConfigDict(
    dict(
      beam=10,  # auto_avsr: 40
      ctc_weight=0.3,  # auto_avsr: 0.1
      bonus=0.0,  # auto_avsr
      n_best=1,
      lm=config_dict.placeholder(str),  # an ARPA file over the symbols of the tokeniser (text/ngram.py)
      lm_weight=0.0,  # auto_avsr
      candidates=config_dict.placeholder(int),  # tokens that a hypothesis is extended by; None: all
    )
  )
  config.optimizer = ConfigDict(
    dict(peak_lr=2e-3, floor_lr=1e-6, warmup_steps=200, b1=0.9, b2=0.98, weight_decay=0.05, clip_norm=5.0)
  )
  config.evaluation = ConfigDict(
    dict(
      searches=("joint", "ctc", "attention", "greedy"),  # of the test clips; the first is the result
      average=10,  # auto_avsr: the parameters are the mean of the last checkpoints
      batch_clips=8,
    )
  )
  config.init = ConfigDict(
    dict(
      conformer=config_dict.placeholder(str),
      ctc_head=config_dict.placeholder(str),
      text_decoder=config_dict.placeholder(str),
      visual_encoder=config_dict.placeholder(str),
      require=(),
      allow_random_frozen=True,
      by_reference=(),
    )
  )
  config.train = ConfigDict(
    dict(
      steps=3_000,
      batch_clips=16,
      accumulation=1,
      mesh=(("data", -1),),
      log_every=20,
      eval_every=500,
      pictures_every=0,
      checkpoint_every=100,
      keep_last=10,
      keep_best=1,
      tensorboard=False,
      profile=config_dict.placeholder(tuple),  # (first, last): a trace of these steps in WORKDIR/profile
    )
  )
  return config


def _grid() -> ConfigDict:
  """GRID: sentences of 3 s from a closed grammar. The recogniser of the package is of this preset."""
  config = _demo()
  config.data.synthtalk = None
  config.data.update(dict(lengths=(75,), max_tokens=32, curriculum_steps=0, eval_clips=200))
  config.data.update(dict(warp=1.15, splice=0.5))  # 800 sentences are otherwise known by heart
  # Smaller than `demo`: it learns faster from so little.
  config.model.conformer.update(dict(width=128, depth=3, mlp_width=256))
  config.model.text_decoder.update(dict(width=128, depth=1, mlp_width=256))
  config.loss.update(dict(frame_weight=0.5, dropout=0.05))
  config.decoding.ctc_weight = 0.1
  config.optimizer.warmup_steps = 100
  config.train.update(dict(steps=4_200, eval_every=1_400, checkpoint_every=50))
  return config


def _lrs3() -> ConfigDict:
  """LRS3 with the sizes and the recipe of Auto-AVSR; clips of at most 10 s (auto_avsr: 16 s)."""
  config = _demo()
  config.data.synthtalk = None
  config.data.update(
    dict(
      token_width=1024,  # of the paper's encoder
      image_size=256,
      lengths=(50, 100, 150, 200, 250),
      max_tokens=100,
      curriculum_frames=100,  # auto_avsr: clips of at most 4 s first
      curriculum_steps=20_000,
      eval_clips=1_500,
      workers=8,
    )
  )
  config.text.update(dict(kind="pieces", pieces=5_000))  # auto_avsr: 5,047
  config.model.conformer.update(dict(width=768, depth=12, heads=12, mlp_width=3072, kernel=31))
  config.model.text_decoder.update(dict(width=768, depth=6, heads=12, mlp_width=3072))
  config.model.update(dict(compute_dtype="bfloat16", unroll=False, remat="full"))
  config.loss.ctc_weight = 0.1
  config.decoding.update(dict(beam=40, ctc_weight=0.1, candidates=60))  # ESPnet: 1.5 candidates a hypothesis
  config.optimizer.update(dict(peak_lr=1e-3, warmup_steps=5_000, clip_norm=10.0))  # auto_avsr
  config.train.update(
    dict(
      steps=75_000,
      batch_clips=128,
      mesh=(("data", 1), ("fsdp", -1)),
      log_every=50,
      eval_every=5_000,
      checkpoint_every=1_000,
      tensorboard=True,
    )
  )
  return config


def _tiny() -> ConfigDict:
  """Runs every part in seconds, for tests; the model learns almost nothing."""
  config = _demo()
  config.data.synthtalk.update(dict(train=8, val=2, test=2, seconds=3.0, size=96))
  config.data.update(dict(lengths=(50, 75), max_tokens=64, curriculum_frames=50, curriculum_steps=2, eval_clips=2))
  config.model.conformer.update(dict(width=16, depth=2, heads=2, mlp_width=32, kernel=3))
  config.model.text_decoder.update(dict(width=16, depth=2, heads=2, mlp_width=32))
  config.model.unroll = False
  config.decoding.beam = 2
  config.optimizer.warmup_steps = 2
  config.evaluation.update(dict(searches=("joint", "greedy"), average=2, batch_clips=2))
  config.train.update(dict(steps=4, batch_clips=8, log_every=1, eval_every=2, checkpoint_every=1, keep_last=2))
  return config
