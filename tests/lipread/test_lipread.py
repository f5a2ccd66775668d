"""lipread/ and its command, with a recogniser of random parameters and made-up tokens."""

import json

import av
import jax
import numpy as np
import pytest
from preparing import talk

from configs import vsr
from synclipmae_jax import checkpoints
from synclipmae_jax.apps import lipread
from synclipmae_jax.data.media import video
from synclipmae_jax.decoding.alignment import Word
from synclipmae_jax.inference import lips
from synclipmae_jax.lipread import subtitles
from synclipmae_jax.lipread.preview import write_preview
from synclipmae_jax.lipread.reader import LipReader, Reading, stretches
from synclipmae_jax.pretrained import SyncLipMAE
from synclipmae_jax.tasks.vsr import from_config
from synclipmae_jax.text.grammar import Grammar
from synclipmae_jax.text.tokenisers import Characters
from synclipmae_jax.types import InputError

WIDTH = 7


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run's workdir with averaged parameters."""
  folder = tmp_path_factory.mktemp("lipread") / "run"
  config = json.loads(vsr.get_config("tiny").to_json_best_effort())
  config["data"] |= dict(token_width=WIDTH, lengths=[40], max_tokens=12)
  config["text"]["characters"] = " ab"
  params, _ = from_config(config).init(jax.random.key(0))
  made = {"tokeniser": Characters(" ab").to_dict(), "tokens": {"kind": "vocal", "checkpoint": "here", "sha256": "0"}}
  meta = {"task": "vsr", "config": config, "preprocessing": made, "step": 4}
  checkpoints.save_items(folder / "averaged" / "4", jax.device_get(params), meta)
  return folder


def vocal(frames=90, absent=()):
  tokens = np.random.default_rng(0).normal(size=(frames, WIDTH)).astype(np.float32)
  tokens[list(absent)] = np.nan
  return tokens


def word(text, start, end):
  return Word(text=text, start=start, end=end, confidence=0.5)


def test_stretches_are_those_with_a_face_and_long_ones_end_where_the_lips_rest():
  tokens = np.cumsum(np.ones((100, 1)), axis=0)
  tokens[60:70] = tokens[60]  # a pause
  tokens[80:84] = np.nan
  tokens[95:] = np.nan
  (start, first), *rest = stretches(tokens, longest=75)
  assert start == 0 and 60 <= first <= 70 and rest[:1] == [(first, 80)] and rest[1] == (84, 95)
  whole = stretches(np.random.default_rng(0).normal(size=(1000, 2)), longest=75)
  assert whole[0][0] == 0 and whole[-1][1] == 1000
  assert all(a[1] == b[0] for a, b in zip(whole, whole[1:], strict=False)) and max(b - a for a, b in whole) <= 75
  assert stretches(np.ones((9, 2)), longest=75) == []


def test_a_face_is_read_in_stretches_with_times_within_them(run):
  reader = LipReader.load(run)
  readings = reader.read(vocal(absent=range(50, 55)))
  assert readings
  for reading in readings:
    assert 0 <= reading.start < reading.end <= 90 / 25 and 0 <= reading.confidence <= 1
    assert reading.text.split() == [word.text for word in reading.words] and set(reading.text) <= set(" ab")
    assert all(a.end <= b.start + 1e-6 for a, b in zip(reading.words, reading.words[1:], strict=False))
  with pytest.raises(InputError, match="never seen for 10 frames"):
    reader.read(vocal(frames=3))


def test_every_face_is_read_that_is_seen_for_a_second(run):
  reader = LipReader.load(run)
  readings = reader.read_all([vocal(), vocal(absent=range(40)), vocal(absent=range(20, 90))])
  assert {reading.speaker for reading in readings} == {1, 2}
  assert [reading.start for reading in readings] == sorted(reading.start for reading in readings)
  assert len({reading.speaker for reading in reader.read_all([vocal(frames=12)])}) <= 1


def test_what_is_none_of_its_sentences_or_uncertain_is_doubted(run, monkeypatch):
  reader = LipReader.load(run)
  assert reader.notes == [] and all(not reading.doubts for reading in reader.read(vocal()))
  reader.grammar = Grammar(words=frozenset({"x"}), places=(frozenset({"x"}),))
  assert reader.notes == [f"{run} knows 1 words only, in sentences of 1, and reads some of them whatever is said"]
  assert all("not among its words" in reading.doubts[0] for reading in reader.read(vocal()))
  reader.grammar, reader.expected = None, {"letters": 1.0}  # of logarithms of probabilities
  readings = reader.read(vocal())
  assert readings and all("less certainty" in reading.doubts[0] for reading in readings)
  assert "[doubtful: " in subtitles.lines(readings) and json.loads(subtitles.write(readings, ".json"))[0]["doubts"]


def test_the_command_writes_what_was_read(run, tmp_path, monkeypatch, capsys):
  class Model:
    embedder = None

  def read_lips(embedder, video, *, faces, progress):
    if "bad" in video:
      raise InputError("no face is found in it")
    progress(1.0, 3.6)
    box = np.full((90, 4), 0.5, np.float32)
    return [lips.Lips(vocal=vocal(), face_box=box)], ("a note",)

  monkeypatch.setattr(SyncLipMAE, "load", lambda directory: Model())
  monkeypatch.setattr(lips, "read_lips", read_lips)
  monkeypatch.setattr(LipReader, "check_encoder", lambda self, embedder: None)
  for name in ("a.mp4", "bad.mp4"):
    (tmp_path / name).write_bytes(b"")
  options = ["--checkpoint", str(run), "--faces", "full_frame"]
  assert lipread.main([str(tmp_path / "a.mp4"), *options]) == 0
  out, err = capsys.readouterr()
  assert " %  " in out and "a note" in err
  assert lipread.main([str(tmp_path), *options, "--out", f"{tmp_path}/out/", "--format", "json"]) == 1
  assert "bad.mp4: no face is found in it" in capsys.readouterr().err
  (reading, *_) = json.loads((tmp_path / "out" / "a.json").read_text())
  assert reading["words"][0].keys() == {"text", "start", "end", "confidence"}
  assert reading["speaker"] == 1 and reading["doubts"] == []
  assert lipread.main([str(tmp_path / "a.mp4"), *options, "--out", str(tmp_path / "a.txt")]) == 2
  assert lipread.main([str(tmp_path / "bad.mp4"), *options]) == 2


def test_foreign_checkpoints_and_encoders_are_refused(run, tmp_path, monkeypatch):
  class Embedder:
    params = {"visual_encoder": {"kernel": np.ones(2, np.float32)}}

  with pytest.raises(InputError, match="another encoder .here.: name it with --encoder"):
    LipReader.load(run).check_encoder(Embedder())
  checkpoints.save_items(tmp_path / "other", {"item": {"kernel": np.ones(2)}}, {"task": "pretrain"})
  with pytest.raises(InputError, match="no recogniser: it is a checkpoint of the task 'pretrain'"):
    LipReader.load(tmp_path / "other")


def test_several_speakers_have_numbers():
  said = lambda speaker, start: Reading(
    start=start, end=start + 1, text="one", words=(word("one", start, start + 1),), confidence=0.5, speaker=speaker
  )
  readings = [said(1, 0.0), said(2, 0.5)]
  assert "SPEAKER 1: one\n" in subtitles.write(readings, ".srt") and "SPEAKER 2: one" in subtitles.lines(readings)
  assert "SPEAKER" not in subtitles.write(readings[:1], ".vtt")


def test_the_preview_shows_the_text_while_it_is_said_and_keeps_size_and_length(tmp_path):
  source, out = tmp_path / "a.mp4", tmp_path / "out.mp4"
  talk(source, count=40)
  readings = [Reading(start=0.4, end=0.8, text="one", words=(word("one", 0.4, 0.8),), confidence=0.5, doubts=("no",))]
  write_preview(source, out, readings, [np.full((40, 4), np.nan)])
  before, after = ([frame.image for frame in video.read_frames(path)] for path in (source, out))
  assert len(before) == len(after) and before[0].shape == after[0].shape
  changed = [np.abs(a.astype(int) - b).max() > 120 for a, b in zip(before, after, strict=True)]
  assert not any(changed[:9]) and all(changed[11:19]) and not any(changed[21:])
  assert video.probe(out).channels == 1

  with av.open(str(source)) as whole, av.open(str(tmp_path / "silent.mp4"), "w") as silent:  # without its sound
    stream = silent.add_stream_from_template(whole.streams.video[0])
    for packet in whole.demux(video=0):
      if packet.dts is not None:
        packet.stream = stream
        silent.mux(packet)
  write_preview(tmp_path / "silent.mp4", out, readings, [])
  assert len(list(video.read_frames(out))) == 40


def test_subtitles():
  words = (word("one", 0.5, 0.8), word("two", 0.8, 1.0), word("three", 2.0, 2.5), word("x" * 40, 2.5, 3661.25))
  readings = [Reading(start=0.5, end=3661.25, text="one two three x", words=words, confidence=0.5)]
  assert [[w.text for w in line] for line in subtitles.cues(readings)] == [["one", "two"], ["three"], ["x" * 40]]
  srt = subtitles.write(readings, ".srt").splitlines()
  assert srt[:4] == ["1", "00:00:00,500 --> 00:00:01,000", "one two", ""]
  assert srt[-2] == "00:00:02,500 --> 01:01:01,250"
  vtt = subtitles.write(readings, ".vtt").splitlines()
  assert vtt[:4] == ["WEBVTT", "", "00:00:00.500 --> 00:00:01.000", "one two"]
  assert json.loads(subtitles.write(readings, ".json"))[0]["words"][2]["start"] == 2.0
  assert subtitles.lines(readings) == "   0.50 3661.25   50 %  one two three x\n"
  assert subtitles.write([], ".srt") == "" and json.loads(subtitles.write([], ".json")) == []
