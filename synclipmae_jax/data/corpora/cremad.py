"""CREMA-D (Cao et al. 2014): 91 actors speak 12 sentences in 6 emotions; 7,442 clips.

  VideoFlash/1001_DFA_ANG_XX.flv: actor, sentence, emotion, level (LO, MD, HI, XX: unspecified)

The sound of the videos is used; AudioWAV and AudioMP3 hold the same and are not read. The emotion is the one that was
played, not the votes of the raters. In a copy without Git LFS the videos are texts of a few lines, which `prepare`
refuses. There is no official split: actors are divided by `splits.assign`. Licence: Open Database License.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from synclipmae_jax.data.corpora import SourceItem, reading

_EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sadness"}
_SENTENCES = {
  "IEO": "it's eleven o'clock", "TIE": "that is exactly what happened", "IOM": "i'm on my way to the meeting",
  "IWW": "i wonder what this is about", "TAI": "the airplane is almost full", "MTI": "maybe tomorrow it will be cold",
  "IWL": "i would like a new alarm clock", "ITH": "i think i have a doctor's appointment",
  "DFA": "don't forget a jacket", "ITS": "i think i've seen this before", "TSI": "the surface is slick",
  "WSI": "we'll stop in a couple of minutes",
}  # fmt: skip
_NAME = re.compile(rf"(1\d{{3}})_({'|'.join(_SENTENCES)})_({'|'.join(_EMOTIONS)})_([A-Z]{{1,2}})")  # one ends in _X


def recognises(raw: Path) -> bool:
  """Whether videos have such names."""
  return reading.mostly(raw, lambda path: _NAME.fullmatch(path.stem))


def items(raw: Path) -> Iterator[SourceItem]:
  """Every video with such a name, in order of its name."""
  chosen, doubles = reading.by_stem(reading.videos(raw))
  for stem, path in sorted(chosen.items()):
    if found := _NAME.fullmatch(stem):
      actor, sentence, emotion, level = found.groups()
      yield SourceItem.at(
        raw,
        path,
        corpus="cremad",
        identity=actor,
        split_group=actor,
        speaker=actor,
        text=_SENTENCES[sentence],
        text_source="human",
        vocabularies={"emotion": tuple(_EMOTIONS.values())},
        emotion=_EMOTIONS[emotion],
        provenance={"level": level} | reading.doubles_note(raw, doubles.get(stem, [])),
      )
