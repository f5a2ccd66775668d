"""A linear probe on a frozen encoder (configs/probe.py): features cached once, a fit of seconds, the report."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

from synclipmae_jax.baselines.protocol import FeatureEncoder
from synclipmae_jax.data.features import write_features
from synclipmae_jax.data.pipeline import check_size
from synclipmae_jax.data.records import Records, open_records
from synclipmae_jax.evaluation.probe import ProbeReport, Row
from synclipmae_jax.evaluation.sync import SYNTHETIC_CORPUS, SYNTHETIC_NOTE
from synclipmae_jax.metrics.classification import LabelState
from synclipmae_jax.probing import targets as labelling
from synclipmae_jax.probing.linear_probe import LinearProbe, check_targets, fit
from synclipmae_jax.probing.sampling import Sampling, join
from synclipmae_jax.probing.saved import FILE, SavedProbe
from synclipmae_jax.run import sources
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.run.feature_encoders import load_encoder
from synclipmae_jax.run.workdir import write_config
from synclipmae_jax.types import InputError

HELD_OUT_PEOPLE = 5  # without a validation split one person in so many chooses the strength of L2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """The features that a probe reads: `tokens`, their mean or beside one another, averaged over the sampled rows."""

  tokens: tuple[str, ...]
  sampling: Sampling
  beside: bool = False

  @property
  def name(self) -> str:
    one = self.sampling
    how = {"all": "all rows", "frames": f"{one.frames} frames", "clips": f"{one.clips} clips of {one.clip_frames}"}
    return f"{(' beside ' if self.beside else ' + ').join(self.tokens)}, {how[one.protocol]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gathered:
  """The labelled clips of a part of the data, with their features for every choice."""

  keys: tuple[str, ...]
  identities: tuple[str, ...]
  targets: np.ndarray  # bool [N, C]
  features: Mapping[Choice, np.ndarray]  # float32 [N, D]
  short: int  # clips of fewer rows than the first choice samples
  unlabelled: int

  def chosen(self, rows: np.ndarray, classes: np.ndarray) -> Gathered:
    pick = lambda names: tuple(name for name, kept in zip(names, rows, strict=True) if kept)
    return dataclasses.replace(
      self,
      keys=pick(self.keys),
      identities=pick(self.identities),
      targets=self.targets[rows][:, classes],
      features={choice: values[rows] for choice, values in self.features.items()},
      unlabelled=self.unlabelled + int((~rows).sum()),
    )


def run(config: ConfigDict, workdir: Path, *, overrides: Mapping[str, Any] | None = None) -> ProbeReport:
  """Writes the entry `probe` of WORKDIR/eval.json, probe.md, pictures and the probe, and prints the tables.

  Raises InputError, before anything is embedded, for records without such labels and classes of one clip.
  """
  clock, started = Clock(), time.perf_counter()
  several = labelling.is_several(config.data.labels)
  with clock("loading"):
    encoder = load_encoder(config.encoder.kind, config.encoder.checkpoint)
  choices = _choices(config, encoder)
  config.data.image_size = max(config.data.image_size, encoder.image_size)
  found = sources.find_sources(config, workdir, clock)
  directories = [source.directory for source in found]
  for directory in directories:
    check_size(open_records(directory, split="train"), encoder.image_size)
  tested, remark = sources.evaluation_splits(config, found)
  watched = [place for place in sources.find_splits(found, config.data.val_split) if place[1] != "train"]
  fitted_on = [(directory, "train") for directory in directories] + watched
  classes = _classes(config, directories)
  with clock("labels"):
    labelled = {place: _labels(*place, config.data.labels, classes) for place in {*fitted_on, *tested}}
  kept = _check(labelled, fitted_on, tested, classes, several=several)
  write_config(config, workdir, dict(overrides or {}))
  with clock("features"):
    caches = _cache(config, workdir, encoder, directories, labelled)
  with clock("fit"):
    gather = lambda places: _gather(places, caches, labelled, choices)
    train, judged = _kept(gather(fitted_on), kept, several=several), _kept(gather(tested), kept, several=several)
    names = [name for name, keep in zip(classes, kept, strict=True) if keep]
    held_out = held_out_clips(train, sum(len(labelled[place].rows) for place in watched))
    strengths = tuple(config.probe.strengths)
    fits = {
      choice: fit(train.features[choice], train.targets, held_out, names, several=several, strengths=strengths)
      for choice in choices
    }
  with clock("scores"):
    prior = train.targets.mean(axis=0)
    rows = [
      Row(name=choice.name, scores=_state(fits[choice].probe, judged, choice).compute(prior), l2=fits[choice].l2)
      for choice in choices
    ]
  synthetic = any(_corpus_of(place).startswith(SYNTHETIC_CORPUS) for place in fitted_on)
  left_out = [name for name, keep in zip(classes, kept, strict=True) if not keep]
  notes = [SYNTHETIC_NOTE] * synthetic + [remark] * bool(remark) + _notes(choices[0], train, judged, left_out)
  report = ProbeReport(
    labels=config.data.labels, encoder=encoder.name, checkpoint=encoder.checkpoint, rows=rows,
    split=", ".join(sorted({split for _, split in tested})), notes=notes,
    fitted=(len(train.keys), len({*train.identities})), judged=(len(judged.keys), len({*judged.identities})),
  )  # fmt: skip
  if jax.process_index() == 0:
    saved = SavedProbe(
      probe=fits[choices[0]].probe, labels=config.data.labels, tokens=choices[0].tokens, sampling=choices[0].sampling,
      beside=choices[0].beside,
      encoder=config.encoder.kind, checkpoint=encoder.checkpoint, sha256=encoder.sha256,
      notes=("it was fitted on synthetic faces only",) * synthetic,
    )  # fmt: skip
    saved.save(workdir)
    written = [*report.write(workdir), FILE]
    print(f"\n{report.markdown()}\n\n{clock.table(time.perf_counter() - started)}")
    print(f"Results: {', '.join(written)} in {workdir}")
  return report


# -- what is asked for --


def _choices(config: ConfigDict, encoder: FeatureEncoder) -> list[Choice]:
  """That of `config.probe`, then those of `config.compare` that this encoder can give. Raises InputError."""
  probe = config.probe

  def choice(tokens: str, protocol: str, **number: int) -> Choice:
    beside = "|" in tokens
    names = tuple(name.strip() for name in tokens.split("|" if beside else "+")) if tokens else encoder.tokens
    sizes = dict(frames=probe.frames, clips=probe.clips, clip_frames=probe.clip_frames) | number
    sampling = Sampling(protocol=protocol, row_frames=encoder.row_frames, **sizes)
    return Choice(tokens=names, sampling=sampling, beside=beside)

  first = choice(probe.tokens, probe.protocol)
  if unknown := sorted({*first.tokens} - {*encoder.names}):
    raise InputError(f"probe.tokens names {unknown[0]!r}: {encoder.name} has {', '.join(encoder.names)}")
  try:
    listed = [(str(tokens), str(protocol), int(number)) for tokens, protocol, number in config.compare]
  except (TypeError, ValueError):
    raise InputError(
      f"compare lists (tokens, protocol, number), like (('vocal', 'frames', 80),), not {config.compare!r}"
    ) from None
  others = [
    choice(tokens, protocol, **({protocol: number} if protocol != "all" else {})) for tokens, protocol, number in listed
  ]
  return [first, *(one for one in dict.fromkeys(others) if one != first and {*one.tokens} <= {*encoder.names})]


def _classes(config: ConfigDict, directories: Sequence[Any]) -> list[str]:
  found = [
    labelling.classes_of(
      config.data.labels, open_records(directory, split="train").vocabularies, tuple(config.data.leave_out)
    )
    for directory in directories
  ]
  for directory, classes in zip(directories, found, strict=True):
    if classes != found[0]:
      raise InputError(
        f"{directories[0]} and {directory} have other classes ({', '.join(found[0])}; {', '.join(classes)}): a probe is"
        " fitted on labels of one kind"
      )
  return found[0]


Place = tuple[Any, str]  # directory of records, split


def _labels(directory: Any, split: str, labels: str, classes: Sequence[str]) -> labelling.Labelled:
  opened = open_records(directory, split=split)
  return labelling.label_clips((opened[row] for row in range(len(opened))), labels, classes)


def _corpus_of(place: Place) -> str:
  """The corpus of the first clip."""
  return open_records(place[0], split=place[1])[0]["corpus"]


def _check(
  labelled: Mapping[Place, labelling.Labelled],
  fitted_on: Sequence[Place],
  tested: Sequence[Place],
  classes: Sequence[str],
  *,
  several: bool,
) -> np.ndarray:
  """bool [C]: the classes that some clip has. Raises InputError where no probe can be fitted or measured."""
  for places, purpose in ((fitted_on, "fit on"), (tested, "measure on")):
    if not any(len(labelled[place].rows) for place in places):
      listed = ", ".join(f"{split} of {directory}" for directory, split in places)
      raise InputError(f"no clip of {listed} has a label: there is nothing to {purpose}")
  targets = np.concatenate([labelled[place].targets for place in fitted_on])
  kept = np.asarray(targets.any(axis=0))
  check_targets(targets[:, kept], [name for name, keep in zip(classes, kept, strict=True) if keep], several=several)
  return kept


def _kept(part: Gathered, kept: np.ndarray, *, several: bool) -> Gathered:
  """Without the classes that no clip fitted on has; of one label without their clips."""
  rows = np.asarray(part.targets[:, kept].any(axis=1) | several)
  return part.chosen(rows, kept)


def held_out_clips(train: Gathered, watched: int) -> np.ndarray:
  """bool [N]: the clips by which L2 is chosen. The last `watched` are those of the validation split, which has them
  all; without them every fifth person is held out, of one person every fifth clip."""
  clips = len(train.keys)
  if watched:
    return np.arange(clips) >= clips - watched
  people = sorted({*train.identities})
  if len(people) == 1:
    return np.arange(clips) % HELD_OUT_PEOPLE == 0
  chosen = {*people[::HELD_OUT_PEOPLE]}
  return np.array([identity in chosen for identity in train.identities])


def _notes(choice: Choice, train: Gathered, judged: Gathered, left_out: Sequence[str]) -> list[str]:
  notes = []
  if left_out:
    notes.append(f"no clip fitted on has the class {', '.join(left_out)}: it is left out")
  if count := train.unlabelled + judged.unlabelled:
    notes.append(f"{count} clips without such a label are left out")
  if count := train.short + judged.short:
    frames = choice.sampling.shortest * choice.sampling.row_frames
    notes.append(f"{count} clips have fewer than {frames} frames: some of their frames count several times")
  if shared := len({*train.identities} & {*judged.identities}):
    notes.append(f"{shared} of the {len({*judged.identities})} people were fitted on too")
  return notes


# -- features --


def _cache(
  config: ConfigDict,
  workdir: Path,
  encoder: FeatureEncoder,
  directories: Sequence[Any],
  labelled: Mapping[Place, Any],
) -> dict[Any, Path]:
  """directory of records -> its features by this encoder, written unless they exist."""
  root = Path(config.data.cache or workdir / "data" / "features")
  caches = {}
  for directory in directories:
    place = hashlib.sha256(f"{encoder.sha256} {Path(directory).resolve()}".encode()).hexdigest()[:12]
    splits = sorted({split for other, split in labelled if other == directory})
    folder = root / place / "_".join(splits)
    if jax.process_index() == 0:
      folder.mkdir(parents=True, exist_ok=True)
      examples = {split: _examples(encoder, directory, split, config) for split in splits}
      caches[directory] = write_features(folder, examples, clips=directory, checkpoint=encoder.sha256)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("features are cached")
    caches.setdefault(directory, folder)
  return caches


def _examples(encoder: FeatureEncoder, directory: Any, split: str, config: ConfigDict) -> Iterator[Any]:
  every = len(open_records(directory, split=split))
  clips = sources.read_clips(config, [(directory, split)], max_clips=every, image_size=encoder.image_size)
  for clip in tqdm(clips, total=every, unit="clip", desc=f"features of {split}", disable=None):
    found = encoder.features(clip.frames, face_box=clip.face_box, mouth_box=clip.mouth_box)
    yield clip.key, {name: np.asarray(value, np.float16) for name, value in found.items()}


def _gather(
  places: Sequence[Place],
  caches: Mapping[Any, Path],
  labelled: Mapping[Place, labelling.Labelled],
  choices: Sequence[Choice],
) -> Gathered:
  """The labelled clips of several places."""
  found: dict[Choice, list[np.ndarray]] = {choice: [] for choice in choices}
  short = 0
  for directory, split in places:
    means, few = clip_means(open_records(caches[directory], split=split), labelled[directory, split].rows, choices)
    short += few
    for choice in choices:
      found[choice].append(means[choice])
  parts = [labelled[place] for place in places]
  return Gathered(
    keys=tuple(f"{number}/{key}" for number, part in enumerate(parts) for key in part.keys),
    identities=tuple(identity for part in parts for identity in part.identities),
    targets=np.concatenate([part.targets for part in parts]),
    features={choice: np.concatenate(means) for choice, means in found.items()},
    short=short,
    unlabelled=sum(part.unlabelled for part in parts),
  )


def clip_means(cached: Records, rows: np.ndarray, choices: Sequence[Choice]) -> tuple[dict[Choice, np.ndarray], int]:
  """(float32 [N, D] for every choice, the number of clips of fewer rows than the first samples) of the clips `rows`.

  One clip is held at a time beside the means.
  """
  found: dict[Choice, list[np.ndarray]] = {choice: [] for choice in choices}
  short = 0
  for row in rows:
    record = cached[int(row)]
    for choice, means in found.items():
      count = len(record[choice.tokens[0]])
      picked = choice.sampling.rows(count)
      each = [record[name][picked].astype(np.float32).mean(axis=0) for name in choice.tokens]
      means.append(join(each, beside=choice.beside))
    short += len(record[choices[0].tokens[0]]) < choices[0].sampling.shortest
  return {choice: np.array(means, np.float32) for choice, means in found.items()}, short


def _state(probe: LinearProbe, part: Gathered, choice: Choice) -> LabelState:
  return LabelState(
    classes=probe.classes, several=probe.several, keys=part.keys, targets=part.targets,
    scores=probe.probabilities(probe.logits(part.features[choice])),
  )  # fmt: skip
