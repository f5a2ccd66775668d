"""Analyses the tokens of a file: scores of every face, the speaker, the lag, and a verdict with its reason."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from synclipmae_jax.data.media.speech import level_db, speech_activity
from synclipmae_jax.inference.blocks import BlockEncoder
from synclipmae_jax.inference.stream import Block, FaceBlock, TokenStream, runs
from synclipmae_jax.metrics.sync import MAX_LAG, smooth
from synclipmae_jax.sync.calibration import Calibration
from synclipmae_jax.sync.estimate import (
  BLOCK,
  MIN_SPEECH,
  NO_LAG,
  LagEstimate,
  LagScorer,
  Scores,
  estimate,
)
from synclipmae_jax.sync.result import MS_PER_FRAME, FaceResult, FrameResult, SyncResult
from synclipmae_jax.types import FPS, InputError

IN_SYNC = 1  # frames: lags up to this are not perceived (ITU-R BT.1359: +45 to -125 ms)
_SPEAKER_WINDOW = 25  # frames over which faces are compared
_SILENT = 1e-4  # of full scale; a track below it holds only codec noise


def sync_file(
  model: BlockEncoder,
  path: str | os.PathLike,
  *,
  calibration: Calibration,
  checkpoint: str,
  notes: Sequence[str] = (),
  faces: str = "auto",
  audio_track: int | None = None,
  progress: Callable[[float, float], None] | None = None,
) -> SyncResult:
  """See `SyncLipMAE.sync`. `checkpoint` and `notes` describe the model and are copied to the result."""
  stream = TokenStream(model, path, faces=faces, audio_track=audio_track)
  length = max(0.0, stream.info.end - float(stream.info.origin))

  def watched() -> Iterator[Block]:
    for block in stream:
      yield block
      if progress:
        progress((block.start + block.count) / FPS, length)

  answer, _ = analyse(watched(), hear=model.heard, file=os.fspath(path), fps=stream.info.fps, calibration=calibration)
  return dataclasses.replace(answer, checkpoint=checkpoint, notes=(*notes, *stream.notes))


def analyse(
  blocks: Iterable[Block],
  *,
  hear: Callable[[np.ndarray], np.ndarray],
  file: str,
  fps: float,
  calibration: Calibration,
) -> tuple[SyncResult, LagEstimate | None]:
  """The result for the blocks of a file, and the estimate of the face that it is about, None without one.

  `hear` is `Embedder.heard`; `file` and `fps` describe the file and are copied to the result. Raises InputError if
  there are too few frames.
  """
  levels, peak, frames, followed = [], 0.0, 0, {}
  for block in blocks:
    levels.append(level_db(block.waveform))
    peak = max(peak, float(np.abs(block.waveform).max(initial=0)))
    heard = hear(block.audio)
    for number, face in block.faces.items():
      followed.setdefault(number, _Face()).push(block.start, heard, face)
    for face in followed.values():
      face.close(before=block.start)
    frames = block.start + block.count
  if frames <= 2 * MAX_LAG:
    raise InputError(f"the file is too short: {frames} frames at {FPS} frames/s, at least {2 * MAX_LAG + 1} are needed")
  speech = speech_activity(np.concatenate(levels)) & (peak >= _SILENT)
  judged = [face.judge(calibration) for face in followed.values() if face.seen]
  judged.sort(key=lambda face: -len(face.times))  # number 0 is the face that is visible longest
  return _answer(judged, file=file, fps=fps, speech=speech, silent=peak < _SILENT)


class _Face:
  """A face tracked through the file: its scores and boxes, in stretches without gaps."""

  def __init__(self):
    self.seen = 0
    self._stretches: list[tuple[int, Scores]] = []  # first frame, scores
    self._scorer, self._start, self._end = None, 0, 0  # of the current stretch
    self._boxes: list[np.ndarray] = []

  def push(self, start: int, heard: np.ndarray, face: FaceBlock) -> None:
    """Adds tokens of the frames from `start` on. Blocks must come in order of time."""
    for a, b in runs(np.isfinite(face.lips[:, 0])):
      self.close(before=start + a)
      if self._scorer is None:
        self._scorer, self._start = LagScorer(), start + a
      self._scorer.push(heard[a:b], face.lips[a:b])
      self._boxes.append(face.box[a:b])
      self._end = start + b
      self.seen += b - a

  def close(self, *, before: int) -> None:
    """Ends the current stretch if it does not reach the frame `before`."""
    if self._scorer is not None and self._end < before:
      self._stretches.append((self._start, self._scorer.finish()))
      self._scorer = None

  def judge(self, calibration: Calibration) -> _Judged:
    self.close(before=self._end + 1)
    scores = join([scores for _, scores in self._stretches], [start for start, _ in self._stretches])
    times = np.concatenate([start + np.arange(len(part.scores)) for start, part in self._stretches])
    margin = np.concatenate([_margin(part.scores.astype(np.float32)) for _, part in self._stretches])
    lags = estimate(scores, calibration)
    return _Judged(
      times=times, box=np.median(np.concatenate(self._boxes), axis=0), scores=scores.scores, margin=margin, lags=lags
    )


def join(stretches: Sequence[Scores], starts: Sequence[int]) -> Scores:
  """Scores of several stretches of a file as one. Sums keep their position in time, which the drift needs."""
  firsts = [(start - starts[0]) // BLOCK for start in starts]
  ends = [first + len(part.wide_sum) for first, part in zip(firsts, stretches, strict=True)]
  wide_sum = np.zeros((max(ends), *stretches[0].wide_sum.shape[1:]))
  wide_count = np.zeros(wide_sum.shape, np.int64)
  for part, first, end in zip(stretches, firsts, ends, strict=True):
    wide_sum[first:end] += part.wide_sum
    wide_count[first:end] += part.wide_count
  scores = np.concatenate([part.scores for part in stretches])
  return Scores(scores=scores, wide_sum=wide_sum, wide_count=wide_count)


def _margin(scores: np.ndarray) -> np.ndarray:
  """float32 [n]: best minus median score over the lags, smoothed in time; -inf if not all lags can be tried."""
  margin, known = np.full(len(scores), -np.inf, np.float32), np.isfinite(scores).all(axis=1)
  if known.any():
    rows = smooth(scores[known], _SPEAKER_WINDOW)
    margin[known] = rows.max(axis=1) - np.median(rows, axis=1)
  return margin


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Judged:
  """Result of one face, for the n frames in which it is visible."""

  times: np.ndarray  # int [n]: frame numbers
  box: np.ndarray  # float32 [4], the median
  scores: np.ndarray  # float16 [n, 31]
  margin: np.ndarray  # float32 [n], of `_margin`
  lags: LagEstimate

  @property
  def told(self) -> bool:
    """Whether its lag can be determined."""
    return self.lags.lag is not None and self.lags.synchronizable >= 0.5


def _answer(
  judged: list[_Judged], *, file: str, fps: float, speech: np.ndarray, silent: bool
) -> tuple[SyncResult, LagEstimate | None]:
  frames = len(speech)
  speaker, followed, row = np.full((3, frames), -1)  # face numbers, and the row of the frame in the face; -1: none
  most = np.full(frames, -np.inf)
  for number, face in reversed(list(enumerate(judged))):
    followed[face.times] = number
    louder = face.times[face.margin > most[face.times]]
    speaker[louder] = number
    most[face.times] = np.maximum(face.margin, most[face.times])
  shown = np.where(speech & (speaker >= 0), speaker, followed)
  score_map = np.full((frames, 2 * MAX_LAG + 1), np.nan, np.float16)
  for number, face in enumerate(judged):
    mine = np.flatnonzero(shown[face.times] == number)
    row[face.times[mine]] = mine
    score_map[face.times[mine]] = face.scores[mine]
  heard = [face for face in judged if face.lags.lag is not None]
  best = max(heard, key=lambda face: (face.told, face.lags.peak), default=None)
  verdict, reason = _verdict(judged, best, speech=speech, silent=silent)
  told = verdict != "not_synchronizable"
  result = SyncResult(
    file=file,
    fps=fps,
    duration_s=frames / FPS,
    lag_frames=float(best.lags.lag) if told else None,
    lag_ms=best.lags.lag * MS_PER_FRAME if told else None,
    confidence=best.lags.confidence if told else 0.0,
    interval=best.lags.interval if told else None,
    score=best.lags.score if best else float("nan"),
    verdict=verdict,
    reason=reason,
    drift_ms_per_min=best.lags.drift_ms_per_min if told else None,
    faces=tuple(
      _face_result(number, face, float((speech & (speaker == number)).sum() / max(1, speech.sum())))
      for number, face in enumerate(judged)
    ),
    frames=tuple(
      _frame_result(t, judged[shown[t]] if shown[t] >= 0 else None, int(shown[t]), row[t], bool(speech[t]))
      for t in range(frames)
    ),
    curve=tuple(best.lags.curve.tolist()) if best else (),
    checkpoint="",
    score_map=score_map,
  )
  return result, best.lags if best else None


def _verdict(judged: list[_Judged], best: _Judged | None, *, speech: np.ndarray, silent: bool) -> tuple[str, str]:
  """The verdict and its reason, one sentence."""
  no = "not_synchronizable"
  if silent:
    return no, "the sound track is silent"
  if not judged:
    return no, "no face was found"
  if best is None:
    return no, f"no face is visible for the {(2 * MAX_LAG + 1) / FPS:.2f} s that a comparison needs"
  if speech.sum() < MIN_SPEECH:
    return no, "no speech was detected"
  if not best.told:
    return no, (
      f"lips and sound do not match at any lag within {MAX_LAG * MS_PER_FRAME:.0f} ms: a still or hidden mouth,"
      " another speaker's voice, music, or a longer lag"
    )
  if abs(best.lags.lag) <= IN_SYNC:
    return "in_sync", f"lips and sound agree within {IN_SYNC} frame ({MS_PER_FRAME:.0f} ms)"
  ahead, behind = ("audio", "video") if best.lags.lag > 0 else ("video", "audio")
  return "out_of_sync", f"the {behind} lags the {ahead} by {abs(best.lags.lag)} frames"


def _face_result(number: int, face: _Judged, speaking: float) -> FaceResult:
  return FaceResult(
    id=number,
    start=int(face.times[0]) / FPS,
    end=int(face.times[-1]) / FPS,
    box=tuple(round(float(edge), 4) for edge in face.box),
    speaking=speaking,
    lag_frames=float(face.lags.lag) if face.told else None,
    confidence=face.lags.confidence if face.told else 0.0,
    score=face.lags.score,
  )


def _frame_result(t: int, face: _Judged | None, number: int, row: int, speech: bool) -> FrameResult:
  lag = score = None
  if face is not None and face.lags.frame_lags[row] != NO_LAG:
    lag, score = int(face.lags.frame_lags[row]), float(face.lags.frame_scores[row])
  return FrameResult(t=t / FPS, lag=lag, score=score, face=number if face else None, speech=speech)
