"""The shapes everybody agrees on. Imports nothing of ours; safe to import in a data worker.

Letters used throughout the code base:
    B clips, T video frames of a clip, Ta audio-context frames (Ta >= T), S image size in pixels,
    N patches of a frame, K visible patches, D token width, L speech-encoder layers, P ground-truth parameters.

Time. One token is one frame at `FPS` = 25 frames/s; one frame is `SAMPLES_PER_FRAME` = 640 samples at
`SAMPLE_RATE` = 16 kHz. A lag is positive when the video lags the audio (the picture comes late).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np

FPS = 25
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
# Sound carried beyond each end of the audio context, so that every alignment mode of the speech encoder finds the
# receptive field of its first and last token (80 samples at 16 kHz are the 40 samples at 8 kHz of mode `waveform`).
AUDIO_MARGIN = 80

Params = Mapping[str, Any]  # nested dicts of arrays; the only form of parameters outside `models/`


def audio_context_samples(audio_frames: int) -> int:
  """Samples of a waveform that covers `audio_frames` frames and the margin at both ends: 640 * Ta + 160."""
  return SAMPLES_PER_FRAME * audio_frames + 2 * AUDIO_MARGIN


# A training batch: arrays [B, ...] by name. Only `index`, uint32 [B], is required: the global stream index of each
# example, from which its random numbers come. Host numpy from the pipeline, global `jax.Array` after
# `sharding.to_global`.
Batch = Mapping[str, Any]


class ClipBatch(TypedDict):
  """The batch of pretraining. Clips 2r and 2r+1 are two disjoint windows of one record (the identity-shuffle pair)."""

  frames: np.ndarray  # uint8 [B, T, S, S, 3], RGB, un-jittered
  waveform: np.ndarray  # float32 [B, 640 * Ta + 160] in [-1, 1]; the T frames sit in the middle of the Ta
  face_box: np.ndarray  # float32 [B, T, 4] x0, y0, x1, y1 as fractions of the image
  mouth_box: np.ndarray  # float32 [B, T, 4] likewise; a row of -1 where no landmarks are known
  index: np.ndarray  # uint32 [B] global stream index of the clip: seeds masks, jitter and shuffle


class Segment(NamedTuple):
  """A stretch of time and what holds in it: a word, an emotion, an action. Seconds from the first picture."""

  start: float
  end: float
  label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalClip:
  """One whole held-out clip, as the evaluators take it. The file itself keeps its lag; `lag` is the known truth.

  The times of words are those of the sound, the times of other segments those of the picture.
  """

  key: str
  corpus: str
  identity: str
  frames: np.ndarray  # uint8 [T, S, S, 3]
  waveform: np.ndarray  # float32 [640 * T]
  face_box: np.ndarray  # float32 [T, 4]
  mouth_box: np.ndarray  # float32 [T, 4], -1 where unknown
  lag: int | None  # frames, positive: the video lags the audio; None where nobody knows
  truth: np.ndarray | None  # float32 [T, P] ground truth of SynthTalk
  truth_names: tuple[str, ...] = ()  # the P column names
  speaker: str = ""  # whose voice it is; "" where nobody knows
  text: str = ""  # what is said in this clip; "" where nothing is, or nobody knows
  text_source: str = ""  # one of `data.labels.TEXT_SOURCES`; "" where the text or its source is unknown
  words: tuple[Segment, ...] = ()  # of the text, where their times are known
  emotion: str = ""  # a name of the corpus' vocabulary; "" where it is unknown or changes within the clip
  emotion_segments: tuple[Segment, ...] = ()
  actions: tuple[str, ...] | None = None  # names of the corpus' vocabulary; None where nobody knows
  action_segments: tuple[Segment, ...] = ()
  whole: bool = True  # the clip is its whole file; labels without times that a part bears are those of the file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
  """What `embed` returns for B clips of T frames, float32; un-normalised (cosine is taken where it is used)."""

  identity: Any  # [B, T, D]
  vocal: Any  # [B, T, D]
  ambient: Any  # [B, T, D]
  audio: Any  # [B, T, D]


class Evaluator(Protocol):
  """Scores the current parameters on held-out data; returns flat JSON-ready metrics.

  An evaluator writes its own files, and its own keys of WORKDIR/eval.json (`evaluation.report.write_entries`).
  """

  name: str

  def __call__(self, trainable: Params, frozen: Params, *, step: int, final: bool) -> Mapping[str, Any]: ...


class Task(Protocol):
  """A job as `train.loop.run` sees it. The top-level keys of both parameter dicts are the checkpoint items.

  Subclass it to inherit the defaults.
  """

  name: str
  rules: Sequence[tuple[str, Any]]  # (path regex, PartitionSpec) for trainable and frozen parameters
  group: int = 1  # neighbouring examples of a batch that stay in one micro-batch (each other's negatives)
  examples_per_record: int = 1  # neighbouring examples that one record yields: no process gets a part of them
  item: str = "examples"  # what the progress line counts, in the plural
  best_metric: str | None = None  # `<evaluator>/<metric>` by which the best checkpoints are kept

  def init(self, key) -> tuple[Params, Params]:
    """(trainable, frozen) parameters; pure, so that it can be traced by eval_shape and born sharded."""
    ...

  def loss(self, trainable: Params, frozen: Params, batch: Batch, key) -> tuple[Any, Mapping[str, Any]]:
    """(scalar loss, scalar metrics) of one micro-batch; `key` is already folded with the step."""
    ...

  def constrain_params(self, trainable: Params) -> Params:
    """Projection applied after every update (the clamp of a temperature)."""
    return trainable

  def abstract_batches(self, batch_size: int) -> Sequence[Batch]:
    """Shapes and dtypes of every kind of batch of `batch_size` examples that the stream yields, one a length bucket.

    The step is compiled from them without data.
    """
    ...

  def count_items(self, batch: Batch) -> int:
    """How many of `item` a global batch holds; arrays or shapes."""
    return batch["index"].shape[0]

  def model_flops(self, batch: Batch) -> float:
    """Model FLOPs of one training step on a batch (arrays or shapes): matmuls only, forward x3 where trained, no
    remat."""
    ...


TrainBatches = Callable[[int], Iterator[Batch]]  # first step -> endless stream of this host's batches
Pictures = Callable[..., Mapping[str, np.ndarray]]  # (trainable, frozen, *, step) -> name -> uint8 [H, W, 3]


class TrainingData(Protocol):
  """What a job trains on; `run.jobs` names the function that opens it."""

  preprocessing: Mapping[str, Any]  # how the data were made; stamped into checkpoints

  def train_batches(self, step: int, *, host_index: int, host_count: int) -> Iterator[Batch]:
    """The endless stream of a host's share of the batches from `step` on, a pure function of the seed and the step."""
    ...


class ClipData(TrainingData, Protocol):
  """Talking-face clips to train and to evaluate on."""

  eval_clips: Sequence[EvalClip]  # this process's share
  shown: Sequence[EvalClip]  # a few for pictures, the same on every process
  remark: str  # a sentence without which the scores would mislead, or ''

  def train_clips(self) -> Iterator[EvalClip]:
    """Whole training clips, the same on every process, to fit references on."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContext:
  """What an evaluation is built from."""

  config: Mapping[str, Any]  # nested dicts
  task: Any  # the `Task`
  data: Any  # the `TrainingData`
  mesh: Any  # jax.sharding.Mesh
  workdir: Path
  stamp: Mapping[str, Any]  # meta data of the run's checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """How a run is judged and shown."""

  evaluators: Sequence[Evaluator] = ()
  pictures: Pictures | None = None
  conclude: Callable[[], str] = lambda: ""  # draws what is drawn once, returns the text at the end of the run


class InputError(ValueError):
  """Something the user gave (a file, a config value, a workdir) is wrong; the message is one clear sentence.

  Command lines print the message without a traceback and exit with status 2.
  """
