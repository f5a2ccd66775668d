from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from footage import clicks, numbered, write_video

from synclipmae_jax.data import corpora, engines, labels, prepare, records, storage
from synclipmae_jax.data.pipeline import eval_clips
from synclipmae_jax.types import InputError, Segment

NAMED = {"emotion": ("calm", "joy", "fear"), "actions": ("nod", "turn", "wink"), "appearance": ("young", "bald")}


def item(path=Path("a.mp4"), **known):
  names = dict(key=path.name, corpus="made", split="val", identity="ann", split_group="ann", vocabularies=NAMED)
  return corpora.SourceItem(path=path, **names | known)


def cut(first, last, *, whole=False, **known):
  return labels.cut(vars(item(**known)), start=first, frames=last - first, whole=whole)


WORDS = (Segment(0.5, 1.0, "bin"), Segment(1.8, 2.3, "blue"), Segment(2.3, 3.0, "at"))


def test_a_word_is_in_the_clip_that_holds_its_middle_and_times_are_shifted():
  known = dict(text="Bin blue, at.", text_source="human", words=WORDS)
  first, second = cut(0, 50, **known), cut(50, 100, **known)
  assert (first["text"], second["text"]) == ("bin", "blue at")
  assert first["words"] == (Segment(0.5, 1.0, "bin"),)
  assert second["words"] == (Segment(0.0, 0.3, "blue"), Segment(0.3, 1.0, "at"))
  assert cut(0, 100, **known, whole=True)["text"] == "Bin blue, at."
  assert cut(25, 45, **known)["text"] == "" and cut(25, 45, **known)["text_source"] == "human", "nothing is said"
  assert cut(0, 60, words=WORDS)["text"] == "bin blue"


def test_without_times_only_a_whole_file_keeps_its_text():
  known = dict(text="bin blue", text_source="asr", speaker="bob")
  part, whole = cut(0, 50, **known), cut(0, 50, **known, whole=True)
  assert (part["text"], part["text_source"], part["speaker"], part["whole"]) == ("", "", "bob", False)
  assert (whole["text"], whole["text_source"], whole["whole"]) == ("bin blue", "asr", True)


def test_segments_of_emotions_and_actions_are_those_of_the_span():
  emotions = (Segment(0, 2, "calm"), Segment(2, 4, "joy"))
  actions = (Segment(1, 1.5, "nod"), Segment(3, 5, "turn"), Segment(3.5, 4, "nod"))
  known = dict(emotion_segments=emotions, action_segments=actions, actions=("nod", "turn"), emotion="fear")
  first, middle, last = cut(0, 50, **known), cut(25, 75, **known), cut(75, 100, **known)
  assert first["emotion"] == "calm" and first["actions"] == ("nod",)
  assert middle["emotion"] == "" and middle["emotion_segments"] == (Segment(0, 1, "calm"), Segment(1, 2, "joy"))
  assert middle["actions"] == ("nod",) and middle["action_segments"] == (Segment(0, 0.5, "nod"),)
  assert last["emotion"] == "joy" and last["actions"] == ("turn", "nod")
  assert last["action_segments"] == (Segment(0, 1, "turn"), Segment(0.5, 1, "nod"))
  untimed = cut(0, 50, emotion="joy", actions=("wink",))
  assert untimed["emotion"] == "joy" and untimed["actions"] == ("wink",) and not untimed["emotion_segments"]
  assert cut(0, 50)["actions"] is None and cut(0, 50, actions=())["actions"] == ()
  assert cut(0, 50)["appearance"] is None and cut(25, 50, appearance=("bald",))["appearance"] == ("bald",)


@pytest.mark.parametrize(
  ("wrong", "words"),
  [
    ({"emotion": "happy"}, r"a.mp4: 'happy' is not in the vocabulary of emotion \(calm, joy, fear\)"),
    ({"actions": ("nod", "jump")}, "'jump' is not in the vocabulary of actions"),
    ({"emotion_segments": (Segment(0, 1, "sad"),)}, "'sad' is not in"),
    ({"emotion": "joy", "vocabularies": {}}, r"\(none\)"),
    ({"appearance": ("tall",)}, r"'tall' is not in the vocabulary of appearance \(young, bald\)"),
    ({"words": (Segment(2, 1, "late"),)}, "words holds 'late' from 2 to 1 s"),
    ({"words": (Segment(0, float("nan"), "odd"),)}, "words holds 'odd'"),
    ({"text_source": "robot"}, "one of human, asr, synthetic, not 'robot'"),
  ],
)
def test_labels_that_cannot_be_right_are_one_sentence(wrong, words):
  with pytest.raises(InputError, match=words):
    item(**wrong)


@pytest.mark.parametrize("offset", [5, -5])
def test_words_are_in_the_sound_of_a_corrected_clip(offset):
  """Frames [10, 60) of the picture under the sound of [10 - offset, 60 - offset): words follow the sound."""
  begin = (10 - offset) / 25
  words = tuple(Segment(begin + a, begin + b, label) for a, b, label in ((-0.1, 0.05, "no"), (0.5, 1.0, "yes")))
  known = vars(item(text="no yes", words=words, emotion_segments=(Segment(0, 1, "joy"), Segment(1, 9, "fear"))))
  cut = labels.cut(known, start=10, frames=50, whole=False, offset=offset)
  assert cut["words"] == (Segment(0.5, 1.0, "yes"),) and cut["text"] == "yes"
  assert cut["emotion_segments"] == (Segment(0, 0.6, "joy"), Segment(0.6, 2.0, "fear")), "they are in the picture"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A file of 6 s, cut in two, with every label there is, and a short one without any."""
  folder = tmp_path_factory.mktemp("labels")
  for name, count in (("long.mkv", 150), ("short.mkv", 50)):
    write_video(folder / name, map(numbered, range(count)), sound=clicks(count / 25, [], noise=0.1), sound_codec="flac")
  known = dict(
    speaker="bob", text="Bin blue. At!", text_source="human", emotion_segments=(Segment(0, 3.5, "joy"),),
    words=(Segment(0.5, 1.0, "bin"), Segment(3.2, 3.5, "blue"), Segment(3.5, 4.0, "at")), actions=("turn", "wink"),
    appearance=("young",),
  )  # fmt: skip
  items = [item(folder / "long.mkv", **known), item(folder / "short.mkv")]
  settings = prepare.Settings(size=32, faces="full_frame", min_seconds=0.8, max_seconds=3)
  (folder / "out" / "clips").mkdir(parents=True)
  with storage.places(folder, folder / "out", one_process=True) as places, engines.engine("local") as run:
    prepare._prepare_items(items, settings, places, run=run, progress=False)
  return folder / "out"


def test_records_and_clips_keep_the_labels_of_their_span(prepared):
  opened = records.open_records(prepared, split="val")
  assert opened.vocabularies == {name: list(names) for name, names in NAMED.items()}
  assert list(opened.keys) == ["long.mkv#0", "long.mkv#75", "short.mkv#0"]
  first, second, bare = eval_clips(prepared, split="val", image_size=32)
  assert second.words == (Segment(0.2, 0.5, "blue"), Segment(0.5, 1.0, "at")) and second.text == "blue at"
  assert (second.speaker, second.text_source, second.whole) == ("bob", "human", False)
  assert second.emotion == "joy" and second.emotion_segments == (Segment(0, 0.5, "joy"),)
  assert second.actions == ("turn", "wink") and second.action_segments == ()
  assert first.text == "bin" and isinstance(first.words[0], Segment)
  assert bare.whole and bare.actions is None and (bare.text, bare.words, bare.emotion, bare.speaker) == ("", (), "", "")
  assert opened[1]["words"] == second.words and opened[1]["actions"] == second.actions
  assert (first.appearance, second.appearance, bare.appearance) == (("young",), ("young",), None)
  assert opened[0]["appearance"] == ("young",) and opened[2]["appearance"] is None
  assert opened[2]["actions"] is None and np.isclose(opened[1]["provenance"]["start_frame"], 75)
