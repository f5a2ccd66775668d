"""Facial understanding: a linear probe on a frozen encoder, for one emotion a clip or several actions a clip.

    python -m synclipmae_jax.main --config=configs/probe.py:emotion,demo --workdir=DIR     SynthTalk, on two cores
    python -m synclipmae_jax.main --config=configs/probe.py:action,demo --workdir=DIR
    … --config=configs/probe.py:emotion --workdir=DIR --config.data.sources="(('RECORDS', 1.0),)"
    … --config=configs/probe.py:action --workdir=DIR --config.data.sources="(('RECORDS', 1.0),)"

RECORDS are made by `synclipmae prepare` of a corpus with such labels: emotions of CelebV-HQ, MEAD, RAVDESS or CREMA-D,
actions of CelebV-HQ (35) or CelebV-Text (37). One linear layer reads of every frame the mean of the tokens
`probe.tokens`, "vocal+ambient", or them beside one another, "vocal|ambient"; the logits of a video are the mean of
those of `probe.frames` frames, the middles of as many equal parts of the clip; a shorter clip gives some frames several
times. `compare` are other choices, measured beside it and not saved.

    --config.encoder.checkpoint=runs/demo                  the encoder; default: the embedded checkpoint
    --config.encoder.kind=picture                          the same probe on the bare picture of 16 x 16 pixels
    --config.encoder.kind=videomae                         on a run of configs/videomae.py or a converted donor, which
                                                           `checkpoint` names; or marlin. Of its rows, one of every two
                                                           frames that it sees, as many as have `probe.frames` frames
    --config.probe.protocol=clips                          16 neighbouring frames at 5 places, as VideoMAE is tested
    --config.data.cache=runs/features                      features that several runs share
    --config.data.labels=actions                           with `action,demo`: the acts that SynthTalk was told to play

Preset `factors`: the factor report of a checkpoint. WORKDIR/report.html has all pictures, eval.json all numbers: R² of
every token to every factor, verification and retrieval of people, faces decoded from the tokens of several people
against the true picture, correlations, nearest neighbours, strips in which one token changes. Footage without truth is
measured by the landmarks of the face mesh.

    … --config=configs/probe.py:factors --workdir=DIR --config.checkpoint=runs/demo        SynthTalk
    … --config=configs/probe.py:factors --workdir=DIR --config.data.sources="(('RECORDS', 1.0),)"
    … --config=configs/probe.py:factors --workdir=DIR --config.data.raw=FOLDER             videos

The comment after a value gives its source: `paper` (section 4.3) or `ours`.
"""

from ml_collections import ConfigDict, config_dict


def get_config(arg: str = "emotion,demo") -> ConfigDict:
  """`arg` is a preset."""
  if arg not in PRESETS:
    raise ValueError(f"unknown preset {arg!r} of configs/probe.py: one of {', '.join(PRESETS)}")
  return PRESETS[arg]().lock()


def _emotion_demo() -> ConfigDict:
  config = ConfigDict()
  config.task = "probe"
  config.seed = 0
  config.encoder = ConfigDict(
    dict(
      kind="synclipmae",  # one of run/feature_encoders.py
      checkpoint=config_dict.placeholder(str),  # a workdir or a step; None: the embedded checkpoint
    )
  )
  config.data = ConfigDict(
    dict(
      sources=config_dict.placeholder(tuple),  # ((directory of labelled records, weight),); weights are not used
      # Of 300 people two clips each to fit on, of 80 others two clips each to measure. With a weight beside `sources`,
      # else only without.
      synthtalk=dict(train=600, val=0, test=160, seconds=4.0, size=160, seed=3, weight=config_dict.placeholder(float)),
      image_size=96,  # of the records of SynthTalk; more for an encoder that sees more
      labels="emotion",  # or actions, or shown (SynthTalk's true motion: data/synthtalk/shown.py)
      leave_out=(),  # classes that are not asked for
      cache=config_dict.placeholder(str),  # folder of the cached features; None: WORKDIR/data/features
      val_split="val",  # by which L2 is chosen; records without it hold out every fifth person of `train`
      eval_split="test",
    )
  )
  config.probe = ConfigDict(
    dict(
      tokens="",  # paper: vocal+ambient, their mean ("": those of the encoder); joined by | beside one another
      protocol="frames",  # paper; clips: as VideoMAE and MARLIN; all: every frame
      frames=80,  # paper: 16 or 80
      clips=5,  # VideoMAE: 5 clips of Kinetics
      clip_frames=16,  # paper, VideoMAE, MARLIN
      strengths=tuple(10.0 ** (-k / 2) for k in range(11)),  # ours: L2, of which one is chosen
    )
  )
  # ours: (tokens, protocol, number of frames or clips); those of tokens that the encoder does not have are not measured
  config.compare = (
    ("", "frames", 16),
    ("", "clips", 5),
    ("vocal", "frames", 80),
    ("ambient", "frames", 80),
    ("identity", "frames", 80),
    ("vocal|ambient", "frames", 80),
  )
  return config


def _action_demo() -> ConfigDict:
  config = _emotion_demo()
  config.data.labels = "shown"
  return config


def _emotion() -> ConfigDict:
  config = _emotion_demo()
  config.data.synthtalk = None
  return config


def _action() -> ConfigDict:
  config = _emotion()
  config.data.labels = "actions"
  return config


def _tiny() -> ConfigDict:
  """Runs every part in seconds, for tests."""
  config = _emotion_demo()
  config.data.synthtalk.update(dict(train=32, test=8, seconds=2.0, size=64, seed=4))  # has two clips of each class
  config.data.image_size = 32
  config.compare = (("vocal", "frames", 16),)
  return config


def _factors() -> ConfigDict:
  config = ConfigDict()
  config.task = "factors"
  config.checkpoint = config_dict.placeholder(str)  # a workdir or a step; without one, the embedded checkpoint
  config.data = ConfigDict(
    dict(
      raw=config_dict.placeholder(str),  # a folder of videos, which are prepared first; every clip is measured on
      faces="auto",  # how faces are found in them, as in `synclipmae prepare`
      sources=config_dict.placeholder(tuple),  # ((directory of records, weight),): each gives as many clips
      # Without either; the same clips as in configs/evaluate.py.
      synthtalk=dict(train=240, val=0, test=160, seconds=4.0, size=160, seed=2, weight=config_dict.placeholder(float)),
      image_size=0,  # that of the checkpoint
      eval_clips=160,
      eval_split="test",
    )
  )
  # Swaps against rendered true pictures, of people of another seed than any training; none with count=0.
  config.swaps = ConfigDict(dict(count=64, frames=4, seed=2))
  config.evaluation = ConfigDict(dict(factor_ceiling_steps=0))  # of the supervised network; 2000: a minute
  return config


PRESETS = {
  "emotion": _emotion,
  "action": _action,
  "emotion,demo": _emotion_demo,
  "action,demo": _action_demo,
  "tiny": _tiny,
  "factors": _factors,
}
