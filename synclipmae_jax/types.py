"""Shared types, shapes and protocols. Imports no other module of the package; safe to import in a data worker.

Letters used in the code:
    B clips, T video frames of a clip, Ta audio-context frames (Ta >= T), S image size in pixels,
    N patches of a frame, K visible patches, D token width, L speech-encoder layers, P ground-truth parameters.

Time. One token is one frame at `FPS` = 25 frames/s; one frame is `SAMPLES_PER_FRAME` = 640 samples at
`SAMPLE_RATE` = 16 kHz. A lag is positive when the video lags the audio (the picture is late).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict

import numpy as np

FPS = 25
SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
# Extra samples at both ends of the audio context. They complete the receptive field of the first and the last token in
# every alignment mode of the speech encoder (80 samples at 16 kHz are the 40 samples at 8 kHz of mode `waveform`).
AUDIO_MARGIN = 80

Params = Mapping[str, Any]  # nested dicts of arrays; the form of parameters outside `models/`


def audio_context_samples(audio_frames: int) -> int:
  """Samples of a waveform of `audio_frames` frames with the margin at both ends: 640 * Ta + 160."""
  return SAMPLES_PER_FRAME * audio_frames + 2 * AUDIO_MARGIN


# A training batch: arrays [B, ...] by name. Only `index` is required, uint32 [B]: the global stream index of each
# example, which seeds its random numbers. Host numpy from the pipeline, global `jax.Array` after `sharding.to_global`.
Batch = Mapping[str, Any]


# Points of a face, left and right as in the picture, of the optional `keypoints` of a batch (data/faces/keypoints.py).
KEYPOINTS = (
  "left_temple", "right_temple", "left_outer", "left_inner", "left_lid_upper", "left_lid_lower", "right_outer",
  "right_inner", "right_lid_upper", "right_lid_lower", "left_brow", "right_brow", "left_mouth_corner",
  "right_mouth_corner", "upper_lip", "upper_lip_inner", "lower_lip_inner", "lower_lip", "chin",
)  # fmt: skip


class ClipBatch(TypedDict):
  """The batch of pretraining. Clips 2r and 2r+1 show one subject in different motion (the identity-shuffle pair)."""

  frames: np.ndarray  # uint8 [B, T, S, S, 3], RGB, un-jittered
  waveform: np.ndarray  # float32 [B, 640 * Ta + 160] in [-1, 1]; the T frames sit in the middle of the Ta
  face_box: np.ndarray  # float32 [B, T, 4] x0, y0, x1, y1 as fractions of the image
  mouth_box: np.ndarray  # float32 [B, T, 4], as above; a row of -1 without known landmarks
  subject: np.ndarray  # uint32 [B] hash of corpus and identity: equal for clips of one subject
  source: np.ndarray  # int32 [B] number of the source in the mixture
  index: np.ndarray  # uint32 [B] global stream index of the clip: seeds masks, jitter and shuffle
  keypoints: NotRequired[np.ndarray]  # float32 [B, T, KEYPOINTS, 2] x, y as fractions of the image; -1: unknown


class Segment(NamedTuple):
  """A labelled time segment: a word, an emotion or an action. Seconds from the first picture."""

  start: float
  end: float
  label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalClip:
  """One whole held-out clip for the evaluators. Its frames and sound keep their lag; `lag` is the known true lag.

  The times of words refer to the sound, the times of other segments to the picture.
  """

  key: str
  corpus: str
  identity: str
  frames: np.ndarray  # uint8 [T, S, S, 3]
  waveform: np.ndarray  # float32 [640 * T]
  face_box: np.ndarray  # float32 [T, 4]
  mouth_box: np.ndarray  # float32 [T, 4], -1 where unknown
  lag: int | None  # frames, positive: the video lags the audio; None if unknown
  truth: np.ndarray | None  # float32 [T, P] ground truth of SynthTalk
  truth_names: tuple[str, ...] = ()  # the P column names
  speaker: str = ""  # "" if unknown
  text: str = ""  # transcript of this clip; "" if there is no speech or it is unknown
  text_source: str = ""  # one of `data.labels.TEXT_SOURCES`; "" if the text or its source is unknown
  words: tuple[Segment, ...] = ()  # of the text, if their times are known
  emotion: str = ""  # a name of the corpus' vocabulary; "" if unknown or if it changes within the clip
  emotion_segments: tuple[Segment, ...] = ()
  actions: tuple[str, ...] | None = None  # names of the corpus' vocabulary; None if unknown
  action_segments: tuple[Segment, ...] = ()
  appearance: tuple[str, ...] | None = None  # names of the corpus' vocabulary; None if unknown
  whole: bool = True  # whether the clip is its whole file; in a part, labels without times refer to the file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
  """Tokens from `embed` for B clips of T frames, float32, not normalised (the cosine is computed where it is used)."""

  identity: Any  # [B, T, D]
  vocal: Any  # [B, T, D]
  ambient: Any  # [B, T, D]
  audio: Any  # [B, T, D]


class Evaluator(Protocol):
  """Scores the current parameters on held-out data; returns flat, JSON-ready metrics.

  Everything that is chosen during a run (the checkpoints kept, above all) is chosen by the evaluations with `final`
  false, on validation data. After the last of these one with `final` true measures the test data, once.

  An evaluator writes only its own files and its own keys of WORKDIR/eval.json (`evaluation.report.write_entries`).
  """

  name: str

  def __call__(self, trainable: Params, frozen: Params, *, step: int, final: bool) -> Mapping[str, Any]: ...


class Task(Protocol):
  """Interface of a job to `train.loop.run`. The top-level keys of both parameter dicts are the checkpoint items.

  A subclass inherits the defaults.
  """

  name: str
  rules: Sequence[tuple[str, Any]]  # (path regex, PartitionSpec) for trainable and frozen parameters
  group: int = 1  # neighbouring examples of a batch that stay in one micro-batch (mutual negatives)
  examples_per_record: int = 1  # neighbouring examples from one record; they stay in one process
  item: str = "examples"  # plural name of what the progress line counts
  best_metric: str | None = None  # `<evaluator>/<metric>` that ranks checkpoints

  def init(self, key) -> tuple[Params, Params]:
    """(trainable, frozen) parameters. Pure, so that eval_shape can trace it and jit can create sharded results."""
    ...

  def loss(self, trainable: Params, frozen: Params, batch: Batch, key) -> tuple[Any, Mapping[str, Any]]:
    """(scalar loss, metrics) of one micro-batch; `key` is already folded with the step.

    A metric is a scalar, or (total, weight), float [2]: a mean over some of the examples, which is logged as the sum of
    the totals divided by the sum of the weights over all steps since the last line of the log.
    """
    ...

  def constrain_params(self, trainable: Params) -> Params:
    """Projection applied after every update (the clamp of a temperature)."""
    return trainable

  def abstract_batches(self, batch_size: int) -> Sequence[Batch]:
    """Shapes and dtypes of every kind of batch of `batch_size` examples, one for each length bucket.

    The step can be compiled from them without data.
    """
    ...

  def count_items(self, batch: Batch) -> int:
    """Number of items (`item`) in a global batch of arrays or shapes."""
    return batch["index"].shape[0]

  def model_flops(self, batch: Batch) -> float:
    """Model FLOPs of one training step on a batch (arrays or shapes).

    Only matrix products count, forward x 3 where trained, without rematerialisation.
    """
    ...


TrainBatches = Callable[[int], Iterator[Batch]]  # first step -> endless stream of this host's batches
Pictures = Callable[..., Mapping[str, np.ndarray]]  # (trainable, frozen, *, step) -> name -> uint8 [H, W, 3]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranscribedClip:
  """The tokens of one whole held-out clip and what was said in it, for the evaluation of lip reading."""

  key: str
  corpus: str
  tokens: np.ndarray  # float [T, D], what the recogniser reads
  text: str
  text_source: str  # one of `data.labels.TEXT_SOURCES`; "" if unknown
  words: tuple[Segment, ...] = ()  # of the text, if their times are known


class TrainingData(Protocol):
  """The data of a job; `run.jobs` names the function that opens it."""

  preprocessing: Mapping[str, Any]  # how the data were made; stored in checkpoints

  def train_batches(self, step: int, *, host_index: int, host_count: int) -> Iterator[Batch]:
    """Endless stream of a host's share of the batches from `step` on; a pure function of seed and step."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
  """Clips to measure on."""

  split: str  # of the records: "val", "test"; "train" where they have neither; several with commas between them
  clips: Sequence[EvalClip]  # this process's share
  remark: str = ""  # a caveat about the scores


class ClipData(TrainingData, Protocol):
  """Talking-face clips to train and to evaluate on."""

  val: HeldOut  # for the evaluations during training
  test: HeldOut  # for the one at the end
  shown: Sequence[EvalClip]  # a few of `val` for pictures, the same on every process

  def train_clips(self) -> Iterator[EvalClip]:
    """Whole training clips for fitting references, the same on every process."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContext:
  """Arguments of an evaluation."""

  config: Mapping[str, Any]  # nested dicts
  task: Any  # the `Task`
  data: Any  # the `TrainingData`
  mesh: Any  # jax.sharding.Mesh
  workdir: Path
  stamp: Mapping[str, Any]  # metadata of the run's checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """Evaluators, pictures and final report of a run."""

  evaluators: Sequence[Evaluator] = ()
  pictures: Pictures | None = None
  conclude: Callable[[], str] = lambda: ""  # draws the final pictures, returns the final text


class InputError(ValueError):
  """An error in the user's input (a file, a config value, a workdir). The message is one clear sentence.

  Command lines print the message without a traceback and exit with status 2.
  """
