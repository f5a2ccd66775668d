"""Features of the pictures and clips of dubbed videos, for FID, KID and FVD (configs/dub.py:evaluate)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from synclipmae_jax.baselines import i3d
from synclipmae_jax.baselines.windows import in_chunks
from synclipmae_jax.evaluation.table import number_or_null
from synclipmae_jax.metrics.feature_sets import FeatureState, VideoFeatures, frechet_distance, kernel_distance
from synclipmae_jax.run.sync_models import load_baseline
from synclipmae_jax.types import InputError
from synclipmae_jax.web_page import printable

HEADINGS = {"fid": "FID", "kid": "KID x 1000", "fvd": "FVD"}
MIN_PICTURES, MIN_CLIPS = 10, 2  # of fewer, no distance says anything


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extractor:
  """A frozen network: RGB uint8 [n, frames, S, S, 3] -> float32 [n, d], `chunk` examples at once."""

  run: Callable[[np.ndarray], jax.Array]
  frames: int  # of an example
  every: int  # the distance of neighbouring examples in frames
  chunk: int


def load_extractors(config: ConfigDict) -> dict[str, Extractor]:
  """By name, those for which the configuration names weights. Raises InputError."""
  found = {}
  if config.picture_every < 1:
    raise InputError(f"picture_every is a number of frames, not {config.picture_every}")
  if config.inception:
    run = _network("inception", config.inception, lambda pictures: pictures[:, 0])
    found["inception"] = Extractor(run=run, frames=1, every=config.picture_every, chunk=16)
  if config.i3d:
    run = _network("i3d", config.i3d, lambda clips: clips)
    found["i3d"] = Extractor(run=run, frames=i3d.FRAMES, every=i3d.FRAMES, chunk=2)
  return found


def _network(kind: str, directory: str, shape: Callable[[jax.Array], jax.Array]) -> Callable[[np.ndarray], jax.Array]:
  module, _, params = load_baseline(kind, directory)
  run: Any = jax.jit(lambda params, x: module.bind(params)(shape(x).astype(np.float32)))
  return lambda x: run(params, x)


class Watch:
  """Collects the crops of one video, in the order of time. A clip has neighbouring frames only."""

  def __init__(self, extractors: Mapping[str, Extractor], keep: Callable[[str, FeatureState], None], *, key: str):
    self._extractors, self._keep, self._key = extractors, keep, key
    self._runs: dict[str, list[np.ndarray]] = {name: [] for name in extractors}
    self._waiting: dict[str, list[np.ndarray]] = {name: [] for name in extractors}
    self._found: dict[str, list[np.ndarray]] = {name: [] for name in extractors}
    self._times: dict[str, list[int]] = {name: [] for name in extractors}
    self._last: int | None = None

  def add(self, time: int, crop: np.ndarray) -> None:
    """A crop uint8 [S, S, 3] of frame `time`."""
    for name, extractor in self._extractors.items():
      run = self._runs[name]
      if time - 1 != self._last:
        run.clear()
      if extractor.frames == 1 and time % extractor.every:
        continue
      run.append(crop)
      if len(run) == extractor.frames:
        self._waiting[name].append(np.stack(run))
        self._times[name].append(time + 1 - extractor.frames)
        run.clear()
        if len(self._waiting[name]) == extractor.chunk:
          self._compute(name)
    self._last = time

  def finish(self) -> None:
    """Hands over what was found. Without it, as of a video that cannot be read to its end, nothing is counted."""
    for name in self._extractors:
      self._compute(name)
      if self._found[name]:
        features = np.concatenate(self._found[name])
        video = VideoFeatures(key=self._key, times=np.array(self._times[name]), features=features)
        self._keep(name, FeatureState(videos=(video,)))

  def _compute(self, name: str) -> None:
    if self._waiting[name]:
      extractor = self._extractors[name]
      self._found[name].append(in_chunks(extractor.run, np.stack(self._waiting[name]), chunk=extractor.chunk))
      self._waiting[name].clear()


class FeatureSets:
  """What was collected of all systems, and the distances of each from the reference."""

  def __init__(self, extractors: Mapping[str, Extractor]):
    self.extractors = extractors
    self._states: dict[tuple[str, str], FeatureState] = collections.defaultdict(FeatureState)

  def watch(self, system: str, video: str) -> Watch:
    """Collects the crops of a video."""

    def keep(name: str, state: FeatureState) -> None:
      self._states[system, name] = self._states[system, name].merge(state)

    return Watch(self.extractors, keep, key=video)

  def compare(self, system: str, reference: str) -> tuple[dict[str, float], dict[str, int], list[str]]:
    """(scores by name of HEADINGS, number of pictures and clips, a sentence for each score that cannot be given).

    Only pictures and clips of both are counted, so that a system that lacks a video is not judged by it.
    """
    scores: dict[str, float] = {}
    counts: dict[str, int] = {}
    refused: list[str] = []
    for name in self.extractors:
      theirs, true = self._states[system, name], self._states[reference, name]
      made, wanted = theirs.shared_with(true), true.shared_with(theirs)
      kind, least, titles = (
        ("pictures", MIN_PICTURES, "FID and KID") if name == "inception" else ("clips", MIN_CLIPS, "FVD")
      )
      counts[kind] = len(made)
      if len(made) < least:
        length = "" if kind == "pictures" else f" of {self.extractors[name].frames} frames"
        refused.append(f"{system}, {titles}: at least {least} {kind}{length} are needed, and there are {len(made)}")
      elif kind == "pictures":
        scores["fid"] = frechet_distance(made, wanted)
        scores["kid"], scores["kid_deviation"] = kernel_distance(made, wanted)
      else:
        scores["fvd"] = frechet_distance(made, wanted)
    return scores, counts, refused


def add_sets(totals: Mapping[str, dict[str, Any]], sets: FeatureSets) -> list[str]:
  """Adds to every system but the reference, the first, its distances as sets; returns why some cannot be given."""
  reference, *systems = totals
  refused = []
  for system in systems:
    values, totals[system]["counted"], sentences = sets.compare(system, reference)
    for column, value in values.items():
      totals[system]["scores"][column] = {"mean": number_or_null(value), "low": None, "high": None}
    refused += sentences
  return refused


def told_of_sets(systems: Mapping[str, Any]) -> str:
  """What was counted, and what was not measured, of the `systems` of a report."""
  counted = {name: each["counted"] for name, each in systems.items() if "counted" in each}
  counts = "; ".join(
    f"{printable(name)} {', '.join(f'{count:,} {kind}' for kind, count in each.items())}"
    for name, each in counted.items()
    if each
  )
  kinds = {kind for each in counted.values() for kind in each}
  options = {"pictures": "FID and KID (--config.inception)", "clips": "FVD (--config.i3d)"}
  absent = [option for kind, option in options.items() if kind not in kinds]
  sentences = []
  if counts:
    sentences.append(
      f"FID, KID and FVD compare a system's pictures and clips of {i3d.FRAMES} frames with the same of the reference:"
      f" {counts}. Their values fall with the number counted, FID's most (below about 10,000 pictures): compare equal"
      " numbers only, or KID, which is unbiased."
    )
  if absent:
    sentences.append(f"Not measured, for want of converted weights: {', '.join(absent)}.")
  return " ".join(sentences)
