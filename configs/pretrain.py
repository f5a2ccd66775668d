"""Pretraining.

    python -m synclipmae_jax.main --config=configs/pretrain.py --workdir=DIR          the paper's run, on a pod
    python -m synclipmae_jax.main --config=configs/pretrain.py:demo --workdir=DIR     SynthTalk, on two cores
    python -m synclipmae_jax.main --config=configs/pretrain.py:demo,A1 --workdir=DIR  an ablation, as in the appendix
    python -m synclipmae_jax.main --config=configs/pretrain.py:demo --config.optimizer.peak_lr=5e-4 ...  any field

Presets: `paper` (default), `scaled` (its recipe at the sizes of `demo`), `demo`, `embedded` (SynthTalk and real faces),
`tiny` (for tests, runs in seconds).
Ablations: A1 one uniform view, A2 one face-weighted view, A3 two views without jitter, B1 last audio layer only,
C1 prompts concatenated instead of cross-attended.

The comment after a value gives its source: `paper`, `inferred` (from the paper's numbers or its reviews), `borrowed` or
`ours`. Changes in the presets for small machines apply only to those presets.
"""

from ml_collections import ConfigDict, config_dict


def get_config(arg: str = "paper") -> ConfigDict:
  """`arg`: a preset, optionally followed by a comma and one ablation, like `demo,A1`."""
  preset, *ablations = arg.split(",")
  presets = {"paper": _paper, "demo": _demo, "embedded": _embedded, "scaled": _scaled, "tiny": _tiny}
  if preset not in presets:
    raise ValueError(f"unknown preset {preset!r} of configs/pretrain.py: one of {', '.join(presets)}")
  config = presets[preset]()
  if len(ablations) > 1:
    raise ValueError(f"at most one ablation, got {', '.join(ablations)}")
  for name in ablations:
    _ablate(config, name)
  return config.lock()


def _paper() -> ConfigDict:
  config = ConfigDict()
  config.task = "pretrain"
  config.seed = 0

  # Input frames and sound; stored in checkpoints.
  config.data = ConfigDict(
    dict(
      # [(directory of records, weight)]; the paper mixes seven corpora (section 5) and gives no weights. With None
      # instead of a weight: hours ** (1 / temperature), scaled so that these weights have a mean of 1.
      sources=config_dict.placeholder(tuple),
      temperature=2.0,  # borrowed from XLSR (alpha 0.5): 1 is by size, large values make all sources alike
      # SynthTalk: dict(train=, val=, test= clips, seconds=, size=, seed=, heads=, weight=). With a weight it is mixed
      # with `sources`; without one (None) it is used where there are no sources.
      synthtalk=None,
      image_size=256,  # inferred: reviewers call the inputs low-resolution; LatentSync's faces are 256
      across_clips=0.0,  # share of pairs with windows of two clips of one person, where there are several
      clip_frames=16,  # borrowed from VideoMAE and StableSyncNet: 16 frames
      audio_frames=64,  # ours: the audio context of the 16 frames
      workers=8,
      eval_clips=100,  # paper: 100 random clips if a corpus has no split; of all sources together
      val_split="val",  # of the evaluations during training, by which the best checkpoint is kept
      eval_split="test",  # measured once, at the end
    )
  )

  config.model = ConfigDict(
    dict(
      visual_encoder=dict(  # paper: Sapiens-0.3B
        patch=16, width=1024, depth=24, heads=16, mlp_width=4096, class_token=True
      ),
      decoder=dict(width=512, depth=8, heads=16, mlp_width=2048, conditioning="cross_attention"),  # paper: ViTMAE-B
      speech_encoder=dict(
        kind="wav2vec2",  # paper; log_mel needs no weights
        wav2vec2=dict(  # paper: base, frozen, the waveform resampled to one token per frame
          alignment="waveform",
          include_embedding_output=False,
          width=768,
          depth=12,
          heads=12,
          mlp_width=3072,
          conv_width=512,
          pos_kernel=128,
          pos_groups=16,
        ),
        log_mel=dict(bands=40),
      ),
      audio_adapter=dict(layers="all"),  # paper: all layers, concatenated; the MLP is ours
      decode_frames=16,  # paper: every frame
      faceless_context=0.0,  # ours: share of the decoded frames of whose face the decoder sees nothing; paper: none
      mask_ratio=0.75,  # inferred: a review of the paper gives it for bypass 1; the paper has "also" for bypass 2
      face_weight=6.0,  # inferred: "higher keep probability"
      mouth_weight=12.0,  # ours
      views="two_bypass",  # paper
      jitter=dict(  # borrowed from Barlow Twins and BYOL
        brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, probability=0.8
      ),
      # ours: the paper has none; the arguments of `crop_jitter` in models/augment.py
      crop_jitter=config_dict.placeholder(dict),
      # ours: of the motion view alone, dict(blur, light, noise) of models/augment.py; and noise of the boxes by which
      # its patches are drawn, without which the choice of patches says how far a mouth is open.
      camera_jitter=config_dict.placeholder(dict),
      box_jitter=0.0,
      shuffle_probability=0.5,  # ours: the paper says "randomly"
      # ours: each token from as many patches as in training, of the view that it is trained from: identity from evenly
      # spread ones, vocal and ambient from those of largest weight.
      embed_visible="as_trained",
      compute_dtype="bfloat16",
      unroll=False,  # the compile time of a scan is constant in depth; on CPU unrolled runs 12 % faster
      remat="attention",  # v5e: full; `synclipmae_jax.compile --search=remat` says which
    )
  )

  config.loss = ConfigDict(
    dict(
      weights=dict(  # borrowed: CAV-MAE and VICReg orders of magnitude; the paper gives none
        reconstruction=1.0,
        # Measured at `scaled`, 300 steps of GRID and SynthTalk: with 0.1, CAV-MAE's ratio, Acc K=5 stays at chance
        # (9.8 %), with 1.0 it is 13.5 %, and the factors are alike.
        contrast=1.0,
        covariance=0.04,
        subject=0.0,  # ours: contrast of identity tokens between people; the paper has none
        frame=0.0,  # ours: contrast of ambient tokens between the frames of a pair; the paper has none
        # ours: pose, lids and brows, as the tracker sees them, read from the ambient token; the paper has none
        head=0.0,
        lips=0.0,  # ours: what lips and jaw do, as the tracker sees them, read from the vocal token; the paper has none
        spread=0.0,  # ours, from VICReg: against constant tokens; the paper has none
      ),
      token_temperature=0.1,  # of these two contrasts
      spread=0.3,  # standard deviation that a dimension of a token should have
      normalised_covariance=False,  # the paper; True: of tokens with unit variance
      motion_weight=0.0,  # ours: weight of patches that move in the reconstruction; the paper: all alike
      structure_weight=1.0,  # ours: weight of a patch's structure against its mean colour
      reconstruct_patches="masked",  # borrowed from MAE
      negatives_clips=48,  # inferred: the paper's batch per GPU; 0: the whole micro-batch
      contrast_form="log_sum",  # ours: silent frames need not be equally likely
      positive_window=0,  # ours: with 1, a constant error of one frame is hardly penalised
      # The paper's "audio self-similarity threshold" (section 3.3), of which it gives no value: frames that sound alike
      # are positives too. ours: of one clip only; cosine of the last layer's features less their mean over the clip;
      # so high that only a held sound or silence repeats itself. Not measured with wav2vec 2.0.
      positive_similarity=0.95,
      temperature_init=0.07,  # borrowed from CLIP
      temperature_range=(0.01, 0.5),  # ours
    )
  )

  config.optimizer = ConfigDict(
    dict(  # borrowed from MAE and Sapiens: AdamW (0.9, 0.95), decay 0.05, clip 1
      name="adamw",  # or muon: then b1 and b2 apply to leaves that are not matrices
      peak_lr=5e-4,  # borrowed from AV-HuBERT; MAE's rule gives 3.6e-3 for this batch
      floor_lr=1e-6,
      warmup_steps=20_000,
      b1=0.9,
      b2=0.95,
      weight_decay=0.05,
      clip_norm=1.0,
      # borrowed from MAE and BEiT fine-tuning: early layers move less. Used if `init.visual_encoder` is given.
      layer_decay=0.8,
    )
  )

  config.train = ConfigDict(
    dict(
      steps=400_000,  # paper
      batch_clips=6_144,  # paper: 128 GPUs x 48
      accumulation=1,
      mesh=(("data", -1), ("fsdp", 8)),
      log_every=50,
      pictures_every=5_000,
      eval_every=10_000,
      checkpoint_every=2_000,
      keep_last=2,
      keep_best=1,
      tensorboard=True,
      profile=config_dict.placeholder(tuple),  # (first, last): a trace of these steps in WORKDIR/profile
    )
  )

  # Steps of the supervised network beside the factors at the end of a run on clips of known truth; 0: without it, since
  # 2,000 take a minute (configs/evaluate.py).
  config.evaluation = ConfigDict(dict(factor_ceiling_steps=0))

  config.init = ConfigDict(
    dict(
      visual_encoder=config_dict.placeholder(str),  # directory of a converted item (paper: Sapiens-0.3B)
      speech_encoder=config_dict.placeholder(str),  # directory of a converted item (paper: wav2vec 2.0 base)
      decoder=config_dict.placeholder(str),  # directory of a converted item; the paper names none, ViTMAE fits
      require=("visual_encoder", "speech_encoder"),  # items that must come from a directory
      allow_random_frozen=False,
      by_reference=(),  # frozen items that checkpoints reference by directory and hash instead of a copy
    )
  )
  return config


def _demo() -> ConfigDict:
  """For two cores without accelerator or downloads: SynthTalk, a small model of the same code, a log-mel front end."""
  config = _paper()
  config.data.update(
    dict(
      synthtalk=dict(train=240, val=48, test=64, seconds=6.0, size=112, seed=0, weight=config_dict.placeholder(float)),
      image_size=96,
      across_clips=0.5,
      workers=0,
      eval_clips=64,
    )
  )
  config.data.synthtalk.heads = "flat"  # "3d", "mixed": MakeHuman's head for every or every other person
  # Two blocks learn as much per step as four narrower ones in 3/4 of the time.
  # Heads of width 32: width 16 doubles the attention scores and makes a step 10 % slower.
  config.model.visual_encoder = dict(patch=8, width=128, depth=2, heads=4, mlp_width=512, class_token=False)
  config.model.decoder.update(dict(width=128, depth=2, heads=4, mlp_width=512))
  config.model.speech_encoder.kind = "log_mel"
  config.model.update(
    dict(
      decode_frames=1,
      # Of the 36 visible patches about 13 are of the mouth, always, and most others of the face. At weights of 8 and 60
      # an eye is seen in every second frame, and the first hundred steps learn less.
      face_weight=30.0,
      mouth_weight=300.0,
      faceless_context=0.5,
      shuffle_probability=1.0,  # at 0.5 the identity token may keep the mouth of its own frame
      jitter=dict(brightness=0.2, contrast=0.2, saturation=0.1, hue=0.02, probability=0.5),  # weaker, for a short run
      compute_dtype="float32",
      unroll=True,
      remat="none",
    )
  )
  config.loss.weights.update(dict(contrast=1.0, covariance=0.01, subject=0.1, frame=0.1, spread=0.5))
  config.loss.update(
    dict(
      negatives_clips=16,
      normalised_covariance=True,
      motion_weight=3.0,
      structure_weight=3.0,
      reconstruct_patches="all",  # so that pictures are complete
      positive_similarity=None,  # off: the recipe was tuned without
    )
  )
  # AdamW learns more slowly, best at 1e-3.
  config.optimizer.update(dict(name="muon", peak_lr=8e-3, warmup_steps=50, layer_decay=None))
  config.train.update(
    dict(
      steps=700,
      batch_clips=16,
      mesh=(("data", -1),),
      log_every=10,
      pictures_every=350,
      eval_every=350,
      checkpoint_every=100,
      tensorboard=False,
    )
  )
  config.init.require = ()
  return config


def _embedded() -> ConfigDict:
  """SynthTalk and real faces: about an hour on two cores, without accelerator.

  The checkpoint of the package. Its other faces come as --config.data.sources="(('HEADS', 1.0), ('GRID', 1.0))",
  records of at least 96 pixels; `make checkpoint` does the whole (README, "The checkpoint of the package").
  """
  config = _demo()
  config.data.synthtalk.update(dict(train=1_600, val=64, test=160, seconds=5.0, size=160, weight=1.0))
  config.data.eval_clips = 320  # half of each kind
  config.model.update(
    dict(
      # Patches of 12 learn as much a step as patches of 8, in two thirds of the time.
      visual_encoder=dict(patch=12, width=128, depth=2, heads=4, mlp_width=512, class_token=False),
      decode_frames=2,
      # Other footage: faces lie differently in the crop, lean, are lit from a side, far away, noisy. With weaker jitter
      # the studio is learned: after 800 steps talks and photographs are understood, after 4,000 no longer.
      crop_jitter=dict(zoom=1.25, shift=0.06, mirror=0.5, stretch=1.12, rotation=15.0),
      jitter=dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.06, probability=0.8, grey=0.1),
      camera_jitter=dict(blur=1.0, light=0.3, noise=0.03),
      box_jitter=0.1,
    )
  )
  config.loss.weights.update(dict(frame=0.2, head=0.5, lips=0.5))
  config.optimizer.update(dict(peak_lr=6e-3, warmup_steps=100))
  config.train.update(dict(steps=3_200, eval_every=3_200, checkpoint_every=200, pictures_every=800))
  return config


def _scaled() -> ConfigDict:
  """The recipe of `paper` at the sizes of `demo`, to try its open values (benchmarks/paper_recipe.py)."""
  config, demo = _paper(), _demo()
  config.data.update({**demo.data, "across_clips": 0.0})
  for name in ("visual_encoder", "decoder", "speech_encoder", "compute_dtype", "unroll", "remat"):
    config.model[name] = demo.model[name]
  config.model.decode_frames = 4  # every frame would take most of the time
  config.loss.negatives_clips = demo.loss.negatives_clips
  config.train.update({**demo.train, "steps": 900, "eval_every": 900, "pictures_every": 900})
  config.optimizer.update(dict(warmup_steps=45, layer_decay=None))  # 5 % of the steps, as there
  config.init.require = ()
  return config


def _tiny() -> ConfigDict:
  """Runs every part in seconds, for tests; the model learns almost nothing."""
  config = _demo()
  config.data.update(dict(image_size=32, clip_frames=8, audio_frames=24, eval_clips=6))
  config.data.synthtalk.update(dict(train=6, val=6, test=6, seconds=3.0, size=64))
  config.model.visual_encoder.update(dict(patch=8, width=32, depth=2, heads=2, mlp_width=64))
  config.model.mask_ratio = 0.75  # of 16 patches
  config.model.decoder.update(dict(width=16, depth=2, heads=2, mlp_width=32))
  config.model.speech_encoder.log_mel.bands = 20
  config.model.speech_encoder.wav2vec2.update(
    dict(width=32, depth=2, heads=2, mlp_width=64, conv_width=16, pos_kernel=16, pos_groups=4)
  )
  config.model.decode_frames = 2
  config.loss.negatives_clips = 4
  config.train.update(dict(steps=4, batch_clips=8, log_every=1, pictures_every=4, eval_every=4, checkpoint_every=2))
  config.optimizer.warmup_steps = 2
  config.evaluation.factor_ceiling_steps = 2
  return config


def _ablate(config: ConfigDict, name: str) -> None:
  """The paper's appendix, Table 6."""
  match name:
    case "A1":
      config.model.views, config.model.jitter = "uniform", None
    case "A2":
      config.model.views, config.model.jitter = "face", None
    case "A3":
      config.model.jitter = None
    case "B1":  # says something with wav2vec 2.0 only: the last layer of the log-mel front end is its smoothest
      config.model.audio_adapter.layers = "last"
    case "C1":
      config.model.decoder.conditioning = "concatenate"
    case _:
      raise ValueError(f"unknown ablation {name!r}: A1, A2, A3, B1 or C1")
