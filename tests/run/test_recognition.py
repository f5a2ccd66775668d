"""run/recognition.py and evaluation/vsr.py: a small run of lip reading, from prepared clips to its table."""

import json
import shutil

import jax
import numpy as np
import pytest
from preparing import run as prepare
from preparing import talk

from configs import vsr
from synclipmae_jax import checkpoints
from synclipmae_jax.data import transcribed
from synclipmae_jax.run import jobs, recognition
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.text.tokenisers import from_dict
from synclipmae_jax.types import InputError

WORDS = "bin blue at f two now".split()
WIDTH = 9


@pytest.fixture(scope="module")
def records(tmp_path_factory):
  folder = tmp_path_factory.mktemp("recognition")
  (folder / "raw").mkdir()
  for number in range(10):
    talk(folder / "raw" / f"{number}.mp4", count=45 + 3 * number)
    if number:  # one without text
      (folder / "raw" / f"{number}.txt").write_text(" ".join(np.roll(WORDS, number)[: 2 + number % 4]))
  prepare(folder / "raw", folder / "out")
  return folder / "out"


@pytest.fixture(autouse=True)
def cheap_tokens(monkeypatch):
  def read(clip):
    return clip.frames.reshape(len(clip.frames), -1)[:, ::300][:, :WIDTH].astype(np.float32) / 255

  origin = {"kind": "pixels", "sha256": "0"}
  monkeypatch.setattr(recognition, "token_reader", lambda kind, checkpoint, *, image_size: (read, WIDTH, 32, origin))


def config(records, **changes):
  out = vsr.get_config("tiny").unlock()
  out.data.synthtalk = None
  out.data.update(dict(sources=((str(records), 1.0),), image_size=32, token_width=WIDTH, lengths=(60, 75)))
  out.data.update(dict(curriculum_frames=60, eval_clips=4))
  for name, value in changes.items():
    group, field = name.split("__")
    out[group][field] = value
  return out.lock()


def test_a_run_reads_its_clips_resumes_and_reports(records, tmp_path, capsys):
  one_length = config(
    records, data__lengths=(75,), data__curriculum_steps=0, evaluation__searches=("greedy",), train__eval_every=4
  )
  whole = jobs.job_of(one_length).run(one_length, tmp_path / "whole")
  out = capsys.readouterr().out
  assert "| greedy" in out and "normaliser version 1" in out
  report = json.loads((tmp_path / "whole" / "eval.json").read_text())["recognition"]
  assert report["step"] == 4 and report["averaged"] == [3, 4] and report["normaliser"] == 1
  assert report["by_corpus"]["greedy"][0]["corpus"] == "folder"
  assert report["all"]["greedy"]["words"] == sum(row["words"] for row in report["by_corpus"]["greedy"]) > 0

  averaged = tmp_path / "whole" / "averaged" / "4"
  meta = checkpoints.load_meta(averaged)
  tokeniser = from_dict(meta["preprocessing"]["tokeniser"])
  assert tokeniser.decode(tokeniser.encode("bin blue")) == "bin blue"
  assert meta["preprocessing"]["tokens"]["kind"] == "pixels"
  folder = tmp_path / "whole" / "checkpoints"
  saved = [checkpoints.load_item(folder / step, "ctc_head")["output"]["kernel"] for step in ("3", "4")]
  mean = checkpoints.load_item(averaged, "ctc_head")["output"]["kernel"]
  np.testing.assert_allclose(mean, (saved[0] + saved[1]) / 2, rtol=1e-6)

  # Killed after its third step, the run goes on to the same end.
  shutil.rmtree(folder / "4")
  again = jobs.job_of(one_length).run(one_length, tmp_path / "whole")
  assert "at step 3 of 4" in capsys.readouterr().out
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole.trainable), jax.device_get(again.trainable))


def test_batches_are_a_function_of_the_step_with_short_clips_first(records, tmp_path):
  data = recognition.open_recognition(config(records), tmp_path, Clock())
  first = [next(stream) for stream in [data.train_batches(0, host_index=0, host_count=1)] for _ in range(6)]
  assert [len(batch["tokens"][0]) for batch in first[:2]] == [60, 60]
  assert {len(batch["tokens"][0]) for batch in first} == {60, 75}
  for step, batch in enumerate(first):
    again = next(data.train_batches(step, host_index=0, host_count=1))
    assert all((batch[name] == again[name]).all() for name in batch)
    assert (batch["length"] <= batch["tokens"].shape[1]).all() and (batch["text_length"] > 0).all()
    halves = [next(data.train_batches(step, host_index=host, host_count=2)) for host in range(2)]
    assert (np.concatenate([half["text"] for half in halves]) == batch["text"]).all()
    for text, count in zip(batch["text"], batch["text_length"], strict=True):
      assert set(data.tokeniser.decode(text[:count]).split()) <= set(WORDS)


def test_where_all_clips_are_long_there_is_no_curriculum(records, tmp_path):
  data = recognition.open_recognition(
    config(records, data__lengths=(40, 75), data__curriculum_frames=40), tmp_path, Clock()
  )
  assert next(data.train_batches(0, host_index=0, host_count=1))["tokens"].shape[1] == 75


def test_tokens_are_made_once(records, tmp_path, monkeypatch):
  recognition.open_recognition(config(records), tmp_path, Clock())
  (folder,) = (tmp_path / "data" / "tokens" / "0").glob("*/features/*")
  times = lambda: {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "train.jsonl"}
  written, labels = times(), (folder / "train.jsonl").read_text()
  (folder / "train.jsonl").unlink()  # as after an interruption: read from the records instead
  data = recognition.open_recognition(config(records), tmp_path, Clock())
  assert times() == written and (folder / "train.jsonl").read_text() == labels
  assert all(clip.text for clip in data.test_clips)
  (folder / "train.jsonl").write_text("")
  with pytest.raises(InputError, match="those of other clips"):
    transcribed.open_transcribed(tmp_path / "data" / "tokens" / "0", split="train")


def test_what_does_not_fit_is_refused_in_one_sentence(records, tmp_path):
  for changes, reason in (
    (dict(data__token_width=10), "--config.data.token_width=9"),
    (dict(text__characters="xyz"), "another language"),
    (dict(text__kind="words"), "characters or pieces"),
    (dict(data__lengths=(20,)), "at most 20 frames"),
    (dict(evaluation__searches=("best",)), "evaluation.searches names some of joint"),
  ):
    with pytest.raises(InputError, match=reason):
      jobs.run(config(records, **changes), tmp_path / "run")
