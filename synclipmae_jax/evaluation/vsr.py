"""The evaluation of lip reading: word and character error rates of held-out clips, word times, and the table.

During training the best CTC path of the validation clips is compared (quick). At the end the averaged parameters of the
last checkpoints read the test clips with every search, and are written to WORKDIR/averaged/STEP, with how sure they
were of these clips, by which `synclipmae lipread` tells what is beyond them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from synclipmae_jax import checkpoints, sharding
from synclipmae_jax.decoding.alignment import align, word_times
from synclipmae_jax.decoding.beam_search import Scorer
from synclipmae_jax.decoding.confidence import lower_ends, measures
from synclipmae_jax.decoding.language_model import ngram_scorer
from synclipmae_jax.decoding.transcriber import MODES, Search, Transcriber, Transcript
from synclipmae_jax.evaluation.report import write_entries
from synclipmae_jax.evaluation.table import interval_or_null, markdown, number_or_null, value_or_null
from synclipmae_jax.metrics.word_errors import ErrorRates, ErrorState, merged
from synclipmae_jax.text import normaliser
from synclipmae_jax.text.ngram import load_arpa
from synclipmae_jax.text.normaliser import normalise
from synclipmae_jax.text.tokenisers import Tokeniser
from synclipmae_jax.types import Evaluation, InputError, Params, RunContext, Segment

TimeError = tuple[str, float, float, float]  # corpus, and the errors of `word_time_errors`
_TIMES = ("start_ms", "middle_ms", "end_ms")
DOUBTED = 0.05  # share of the test clips, by each measure, that `synclipmae lipread` would warn of
Clip = Any  # TranscribedClip, with cached tokens, or EvalClip, with the frames to embed


def build(context: RunContext) -> Evaluation:
  """The scores of `context.data`, which has `tokeniser`, `remark`, `val_clips` and `test_clips` (its own share)."""
  evaluator = RecognitionEvaluator(context)
  return Evaluation(evaluators=[evaluator], conclude=evaluator.conclude)


class RecognitionEvaluator:
  """Error rates of the current parameters; see the head of this file."""

  name = "recognition"

  def __init__(self, context: RunContext):
    self._context = context
    self._settings = context.config["evaluation"]
    unknown = sorted({*self._settings["searches"]} - {*MODES})
    if unknown or not self._settings["searches"]:
      raise InputError(f"evaluation.searches names some of {', '.join(MODES)}, not {unknown or 'none'}")
    self._transcribers: dict[str, Transcriber] = {}
    self._embed = jax.jit(context.task.tokens)
    self._table = "No clips to evaluate."

  def __call__(self, trainable: Params, frozen: Params, *, step: int, final: bool) -> Mapping[str, Any]:
    data = self._context.data
    if not final:
      rates = self._read("greedy", self._local(trainable), data.val_clips)[0].compute()
      found = {"wer": rates.wer.value, "cer": rates.cer.value, "word_accuracy": 1 - rates.wer.value}
      return {name: value for name, value in found.items() if not math.isnan(value)}
    averaged, steps = average(self._context.workdir, self._local(trainable), step=step, last=self._settings["average"])
    params = jax.device_put(averaged, jax.local_devices()[0])
    states, times, sure = {}, [], []
    for search in self._settings["searches"]:
      states[search], errors, certainty = self._read(search, params, data.test_clips)
      times, sure = times or errors, sure or certainty
    self._save(averaged, step, steps, lower_ends(sure, share=DOUBTED))
    return self._report(states, times, step, steps)

  def conclude(self) -> str:
    return self._table

  def _read(
    self, mode: str, params: Params, clips: Sequence[Clip]
  ) -> tuple[ErrorState, list[TimeError], list[dict[str, float]]]:
    """Of all processes' clips: the errors, the errors of the times of the words of texts that were read correctly, and
    the measures of how sure the recogniser was."""
    tokeniser: Tokeniser = self._context.data.tokeniser
    found, times, sure = [], [], []
    for clip, transcript in zip(clips, self._transcribe(mode, params, clips), strict=True):
      hypothesis = tokeniser.decode(transcript.tokens)
      found.append(
        ErrorState.of(
          clip.key, normalise(clip.text), normalise(hypothesis), corpus=clip.corpus, label_source=clip.text_source
        )
      )
      times += [(clip.corpus, *error) for error in word_time_errors(tokeniser, transcript, clip.words)]
      sure.append(measures(transcript))
    gathered = sharding.gather((merged(found), times, sure))
    return (
      merged(state for state, _, _ in gathered),
      [error for _, errors, _ in gathered for error in errors],
      [one for _, _, every in gathered for one in every],
    )

  def _transcribe(self, mode: str, params: Params, clips: Sequence[Clip]):
    if mode not in self._transcribers:
      task, options = self._context.task, dict(self._context.config["decoding"])
      model = language_model(options.pop("lm"), self._context.data.tokeniser)
      self._transcribers[mode] = Transcriber(
        task.recogniser,
        lengths=task.lengths,
        max_tokens=task.max_tokens,
        search=Search(mode=mode, **options),
        batch=self._settings["batch_clips"],
        language_model=model,
      )
    return self._transcribers[mode](params, self._tokens(params, clips))

  def _tokens(self, params: Params, clips: Sequence[Clip]) -> list[np.ndarray]:
    """What the recogniser reads: cached, or from the encoder that learns."""
    task = self._context.task
    if task.visual is None:
      return [clip.tokens for clip in clips]
    found = []
    for clip in clips:
      frames = len(clip.frames)
      padding = task.lengths[int(np.searchsorted(task.lengths, frames))] - frames
      padded = lambda x, missing=padding: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), mode="edge")[None]
      shown = {name: padded(getattr(clip, name)) for name in ("frames", "face_box", "mouth_box")}
      found.append(np.asarray(self._embed(params, shown))[0, :frames])
    return found

  def _local(self, params: Params) -> Params:
    """A whole copy on this process's first device: every process reads its own clips, as many as it has."""
    everywhere = NamedSharding(self._context.mesh, PartitionSpec())
    whole = jax.jit(lambda tree: tree, out_shardings=everywhere)(params)
    return jax.tree.map(lambda x: x.addressable_data(0), whole)

  def _save(self, params: Params, step: int, steps: Sequence[int], expected: Mapping[str, float]) -> None:
    directory = self._context.workdir / "averaged" / str(step)
    if not sharding.gather(directory.exists())[0]:  # all processes save together
      meta = {**self._context.stamp, "step": step, "averaged": list(steps), "expected": dict(expected)}
      checkpoints.save_items(directory, dict(params), meta)

  def _report(
    self, states: Mapping[str, ErrorState], times: Sequence[TimeError], step: int, steps: Sequence[int]
  ) -> dict[str, Any]:
    rates = {search: state.compute() for search, state in states.items()}
    word_times = time_entries(times)
    if jax.process_index() == 0:
      entries = {search: _entry(rate) for search, rate in rates.items()}
      write_entries(
        self._context.workdir,
        {
          "recognition": {
            "step": step, "averaged": list(steps), "remark": self._context.data.remark,
            "normaliser": normaliser.VERSION, "all": entries,
            "by_corpus": error_entries(states), "word_times": word_times,
          }
        },
      )  # fmt: skip
    self._table = error_table(states)
    if self._context.data.remark:
      self._table += f"\nCaveat: {self._context.data.remark}."
    self._table += "".join(
      f"\n\nTimes of {entry['words']} words of {entry['corpus'] or '-'}, median absolute errors: middle"
      f" {entry['middle_ms']:.0f} ms, start {entry['start_ms']:.0f} ms, end {entry['end_ms']:.0f} ms."
      for entry in word_times
    )
    first = next(iter(rates.values()))
    middles = [middle for _, _, middle, _ in times]
    median = float(np.median(middles)) if middles else math.nan
    found = {"wer": first.wer.value, "cer": first.cer.value, "word_time_error_s": median}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def word_time_errors(
  tokeniser: Tokeniser, transcript: Transcript, words: Sequence[Segment]
) -> list[tuple[float, float, float]]:
  """|difference| in seconds of the starts, middles and ends of all words, if the text was read correctly and its times
  are known."""
  spans = tokeniser.words(transcript.tokens)
  texts = [tokeniser.decode(transcript.tokens[start:stop]) for start, stop in spans]
  if not words or texts != [normalise(word.label) for word in words]:
    return []
  try:
    alignment = align(transcript.log_probs, transcript.tokens)
  except InputError:  # the decoder alone may write more than CTC can
    return []
  listed = [(text, *span) for text, span in zip(texts, spans, strict=True)]
  found = word_times(alignment, listed, frames=len(transcript.log_probs))
  return [
    (start, abs(ours.start + ours.end - theirs.start - theirs.end) / 2, end)
    for ours, theirs in zip(found, words, strict=True)
    for start, end in [(abs(ours.start - theirs.start), abs(ours.end - theirs.end))]
  ]


def time_entries(times: Sequence[TimeError]) -> list[dict[str, Any]]:
  """Of each corpus the number of words with known times and the median errors of their times, milliseconds, as JSON."""
  found = []
  for corpus in sorted({error[0] for error in times}):
    errors = np.array([error[1:] for error in times if error[0] == corpus])
    medians = (1000 * np.median(errors, axis=0)).tolist()
    found.append({"corpus": corpus, "words": len(errors), **dict(zip(_TIMES, medians, strict=True))})
  return found


def language_model(path: str | None, tokeniser: Tokeniser) -> Callable[[int, int], Scorer] | None:
  """(batch, beam) -> the scorer of an ARPA file; None without one. Raises InputError for a file that does not fit."""
  if path is None:
    return None
  tables = load_arpa(path, tokeniser)
  return lambda batch, beam: ngram_scorer(
    tables.log_probs, tables.following, tables.start, batch=batch, beam=beam, weight=1.0
  )


def average(workdir: Path, trainable: Params, *, step: int, last: int) -> tuple[Params, list[int]]:
  """The mean of `trainable`, which is that of `step`, and of the `last` - 1 checkpoints before it; and their steps.

  A damaged checkpoint is left out. The sum is float32, on the host.
  """
  folder = workdir / "checkpoints"
  before = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal() and int(path.name) < step)
  total, steps = jax.device_get(dict(trainable)), [step]
  like = checkpoints.numpy_leaves(total)
  for number in before[max(len(before) - (last - 1), 0) :]:
    with contextlib.suppress(InputError):
      loaded = {name: checkpoints.find_item(folder / str(number), name).load(item) for name, item in like.items()}
      total = jax.tree.map(np.add, total, loaded)
      steps.append(number)
  return jax.tree.map(lambda x: x / np.float32(len(steps)), total), sorted(steps)


def _entry(rates: ErrorRates) -> dict[str, Any]:
  return {
    "utterances": rates.utterances,
    "words": rates.words.length,
    **{name: getattr(rates.words, name) for name in ("substitutions", "deletions", "insertions")},
    "wer": value_or_null(rates.wer),
    "wer_interval": interval_or_null(rates.wer),
    "cer": value_or_null(rates.cer),
    "cer_interval": interval_or_null(rates.cer),
    "correct": number_or_null(rates.correct),
  }


def error_entries(states: Mapping[str, ErrorState]) -> dict[str, list[dict[str, Any]]]:
  """System -> its rates for each corpus and source of labels, as JSON."""
  return {
    system: [
      {"corpus": corpus, "label_source": source, **_entry(group.compute())}
      for (corpus, source), group in state.by_corpus().items()
    ]
    for system, state in states.items()
  }


def error_table(states: Mapping[str, ErrorState]) -> str:
  """One row for each system and corpus, with the source of the labels; rates in %, 95 % intervals over utterances."""
  percent = lambda x: "-" if math.isnan(x) else f"{100 * x:.1f}"
  both = lambda e: percent(e.value) + ("" if math.isnan(e.low) else f" [{percent(e.low)}, {percent(e.high)}]")
  body = []
  for system, state in states.items():
    for (corpus, source), group in state.by_corpus().items():
      rates = group.compute()
      counts = [str(getattr(rates.words, name)) for name in ("substitutions", "deletions", "insertions")]
      body.append([
        system, corpus or "-", source or "unknown", str(rates.utterances), str(rates.words.length), both(rates.wer),
        *counts, both(rates.cer), percent(rates.correct),
      ])  # fmt: skip
  if not body:
    return "No clips to evaluate."
  head = ("system", "corpus", "labels", "texts", "words", "WER %", "S", "D", "I", "CER %", "texts right %")
  return "\n".join([*markdown(head, body), "", f"Both sides: normaliser version {normaliser.VERSION}."])
