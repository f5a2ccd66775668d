from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from footage import clicks, number_of, numbered, write_video

from synclipmae_jax.apps import prepare as app
from synclipmae_jax.data import clips, corpora, prepare, records
from synclipmae_jax.data.media import audio, video, watchdog
from synclipmae_jax.data.pipeline import eval_clips
from synclipmae_jax.data.synthtalk import corpus
from synclipmae_jax.types import InputError

SIZE = 32


def talk(path, *, count=75, fps=25, sound=True, **kwargs):
  seconds = float(count / Fraction(fps))
  images = (numbered(k) for k in range(count))
  return write_video(path, images, fps=fps, sound=clicks(seconds, [], noise=0.1) if sound else None, **kwargs)


def run(raw, out, **kwargs):
  kwargs = {"faces": "full_frame", "size": SIZE, "progress": False} | kwargs
  return prepare.prepare(raw, out, **kwargs)


def by_file(manifest):
  return {entry["file"]: entry for entry in manifest.entries}


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory):
  """Every bad file that we could think of, and two good ones."""
  raw = tmp_path_factory.mktemp("raw")
  (raw / "sub").mkdir()
  good = talk(raw / "sub" / "good é.mp4", options={"movflags": "faststart"})
  data = good.read_bytes()
  (raw / "missing.mp4").symlink_to(raw / "nowhere.mp4")
  (raw / "zero.mp4").touch()
  (raw / "text.mp4").write_text("this is no video, whatever its name says\n" * 50)
  (raw / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:10,\n{good}\n#EXT-X-ENDLIST\n")
  (raw / "concat.mkv").write_text(f"ffconcat version 1.0\nfile '{good}'\n")
  (raw / "notes.txt").write_text("not a video")
  os.mkfifo(raw / "pipe.mp4")
  talk(raw / "mute.mp4", sound=False)
  write_video(raw / "silence.mp4", map(numbered, range(75)), sound=np.zeros(48000, np.float32))
  talk(raw / "three.mp4", count=3)
  (raw / "cut.mp4").write_bytes(data[: len(data) * 6 // 10])
  talk(raw / "headless.mp4")
  (raw / "headless.mp4").write_bytes((raw / "headless.mp4").read_bytes()[:-3000])  # its index was at the end
  talk(raw / "cut.mkv", count=150)
  (raw / "cut.mkv").write_bytes((raw / "cut.mkv").read_bytes()[: (raw / "cut.mkv").stat().st_size // 2])
  claims = bytearray(data)
  for box in (b"stts", b"stsz"):
    at = claims.index(box) + 12  # of the number of frames
    claims[at : at + 4] = (10**9).to_bytes(4, "big")
  (raw / "billion.mp4").write_bytes(claims)
  claims = bytearray(talk(raw / "billion.mkv").read_bytes())
  at = claims.index(b"\x44\x89\x88") + 3  # of the duration in milliseconds
  claims[at : at + 8] = struct.pack(">d", 40e9)
  (raw / "billion.mkv").write_bytes(claims)
  scratched = bytearray(data)
  for at in range(len(data) // 4, len(data) * 3 // 4, 300):
    scratched[at] ^= 255
  (raw / "scratched.mp4").write_bytes(scratched)
  talk(raw / "rows.mp4")
  np.savez(raw / "rows.faces.npz", boxes=np.zeros((7, 4)))
  (raw / os.fsdecode(b"latin-\xe9.mp4")).write_bytes(data)
  return raw


EXPECTED = {
  "missing.mp4": "missing",
  "zero.mp4": "empty",
  "text.mp4": "cannot be read",
  "list.mp4": "cannot be read",
  "concat.mkv": "cannot be read",
  "notes.txt": "not a video file",
  "pipe.mp4": "not a regular file",
  "mute.mp4": "no sound track",
  "silence.mp4": "silent",
  "three.mp4": "too short: 3 frames",
  "cut.mp4": "truncated|damaged",
  "headless.mp4": "cannot be read",
  "cut.mkv": "truncated|damaged",
  "scratched.mp4": "damaged",
  "billion.mp4": "cannot be read",
  "billion.mkv": "truncated",
}


def test_every_bad_file_is_refused_with_its_reason_and_the_rest_goes_on(bad_folder, tmp_path, capsys):
  status = app.main(["--raw", str(bad_folder), "--out", str(tmp_path), "--faces", "full_frame", "--size", str(SIZE)])
  printed = capsys.readouterr().out
  assert status == 0
  lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
  found = {line["file"]: line for line in lines}
  assert set(found) == {*EXPECTED, "sub/good é.mp4", "latin-\\xe9.mp4", "rows.mp4"}
  for name, reason in EXPECTED.items():
    assert found[name]["outcome"] == "rejected" and not found[name]["clips"], name
    assert any(part in found[name]["reason"] for part in reason.split("|")), (name, found[name]["reason"])
    assert name in printed
  assert [line["file"] for line in lines if line["outcome"] == "accepted"] == [
    "latin-\\xe9.mp4", "rows.mp4", "sub/good é.mp4",
  ]  # fmt: skip
  assert f"3 of {len(lines)} files accepted" in printed
  assert not list((tmp_path / "clips").glob(".*")), "nothing is left half-made"


def test_no_face_and_wrong_face_files_are_said(bad_folder, tmp_path):
  raw = tmp_path / "raw"
  raw.mkdir()
  for name in ("rows.mp4", "rows.faces.npz"):
    (raw / name).symlink_to(bad_folder / name)
  (raw / "faceless.mp4").symlink_to(bad_folder / "sub" / "good é.mp4")
  found = by_file(run(raw, tmp_path / "out", faces="auto"))
  assert "no face" in found["faceless.mp4"]["reason"]
  assert "7 rows, the video 75 frames" in found["rows.mp4"]["reason"]
  assert app.main(["--raw", str(raw), "--out", str(tmp_path / "out"), "--size", str(SIZE), "--json"]) == 1


def test_one_clip_holds_the_same_time_in_picture_and_sound(tmp_path):
  """29.97 fps and 44.1 kHz stereo: frame t shows what covers t / 25, and the click is heard at its sample."""
  (tmp_path / "raw").mkdir()
  fps, count = Fraction(30000, 1001), 239
  sound = clicks(8, [1.0], rate=44100, noise=0.02)
  images = map(numbered, range(count))
  write_video(tmp_path / "raw" / "a.mov", images, fps=fps, sound=sound, rate=44100, layout="stereo")
  manifest = run(tmp_path / "raw", tmp_path / "out", size=64)
  (entry,) = manifest.entries
  (clip,) = entry["clips"]
  assert clip["frames"] == 200 and entry["source"]["fps"] == pytest.approx(29.97, abs=0.01)
  record = records.open_records(tmp_path / "out", split="train")[0]
  shown = video.read_windows(record["mp4"], [0], count=200, size=64)[0]
  assert [number_of(image) for image in shown] == [int(Fraction(t, 25) * fps) for t in range(200)]
  heard = audio.decode_flac(record["flac"])
  assert len(heard) == 200 * 640
  assert abs(np.abs(heard).argmax() - 16000) <= 16


def test_gaps_cuts_and_length_divide_a_file(tmp_path):
  raw = tmp_path / "raw"
  raw.mkdir()
  rng = np.random.default_rng(0)
  shots = rng.integers(0, 255, (2, 8, 8, 3)).astype(np.uint8)
  shots[1] //= 4
  images = [np.kron(shots[int(t >= 150)], np.ones((16, 16, 1), np.uint8)) for t in range(500)]
  write_video(raw / "a.mp4", images, sound=clicks(20, [], noise=0.1))
  boxes = np.tile(np.float32([40, 30, 90, 95]), (500, 1))
  boxes[60:80] = np.nan  # no face
  np.savez(raw / "a.faces.npz", boxes=boxes)
  (entry,) = run(raw, tmp_path / "out", faces="auto", max_seconds=8).entries
  spans = [(clip["start"], clip["start"] + clip["frames"]) for clip in entry["clips"]]
  assert spans == [(0, 60), (80, 150), (150, 325), (325, 500)]
  assert entry["source"]["faces"] == "precomputed"


def test_where_the_sound_is_missing_there_is_no_clip(tmp_path):
  (tmp_path / "raw").mkdir()
  write_video(
    tmp_path / "raw" / "late.mkv", map(numbered, range(200)), sound_times=[(2.0, clicks(4, [], noise=0.1))],
    sound_codec="flac",
  )  # fmt: skip
  (entry,) = run(tmp_path / "raw", tmp_path / "out").entries
  ((start, stop),) = [(clip["start"], clip["start"] + clip["frames"]) for clip in entry["clips"]]
  assert 47 <= start <= 50 and 150 <= stop <= 153


def test_landmarks_and_truth_follow_the_crop_and_the_clock(tmp_path):
  """A 50 fps source: boxes, landmarks and truth are rows of source frames, in pixels of the source."""
  raw = tmp_path / "raw"
  (raw / "train").mkdir(parents=True)
  (raw / "corpus.json").write_text(
    json.dumps({"name": "synthtalk", "version": "1", "seed": 0, "splits": {"train": 1}, "expressions": ["calm", "joy"],
                "actions": ["nod", "turn"]})
  )  # fmt: skip
  stem = raw / "train" / "train_00000"
  count = 160
  write_video(stem.with_suffix(".mp4"), (np.full((200, 300, 3), 99, np.uint8) for _ in range(count)), fps=50,
              sound=clicks(count / 50, [], noise=0.1))  # fmt: skip
  box = np.tile(np.float32([100, 50, 180, 130]), (count, 1))
  lips = np.float32([[120, 100], [160, 120]]) + np.arange(count, dtype=np.float32)[:, None, None] / 16
  landmarks = np.concatenate([np.zeros((count, 1, 2), np.float32), lips], 1)
  np.savez(stem.with_suffix(".faces.npz"), boxes=box, landmarks=landmarks, scores=np.ones(count), schema="three",
           mouth=np.array([1, 2]))  # fmt: skip
  labels = json.dumps({"expression": "joy", "actions": ["turn"]})
  truth = np.arange(count, dtype=np.float32)[:, None]
  np.savez(stem.with_suffix(".truth.npz"), truth=truth, names=np.array(["mouth/t"]), lag=-3, identity="ann",
           voice="bob", text="hello", labels=labels)  # fmt: skip
  run(raw, tmp_path / "out", faces="auto", size=64)
  record = records.open_records(tmp_path / "out", split="train")[0]
  assert record["n_frames"] == 80 and record["truth"][:, 0].tolist() == list(range(0, 160, 2))
  assert record["truth_names"] == ["mouth/t"] and record["text"] == "hello" and record["identity"] == "ann"
  assert (record["lag"], record["has_lag"], record["emotion"], record["actions"]) == (-3, 1, "joy", ("turn",))
  assert record["landmark_schema"] == "three" and record["speaker"] == "bob" and record["words"] == ()
  side = 1.4 * 80
  corner = np.array([140, 90]) - side / 2
  np.testing.assert_allclose(record["face_box"][5], (box[0] - np.tile(corner, 2)) / side, atol=0.01)
  np.testing.assert_allclose(record["landmarks"][30, 1:], (lips[60] - corner) / side, atol=0.01)
  mouth = record["mouth_box"][30]
  assert (mouth[:2] < record["landmarks"][30, 1]).all() and (mouth[2:] > record["landmarks"][30, 2]).all()
  assert record["preprocessing"]["size"] == 64 and record["preprocessing"]["fps"] == 25


def test_synthtalk_brings_its_truth(tmp_path):
  corpus.write_corpus(tmp_path / "raw", clips={"train": 1, "test": 2}, seconds=2, size=48, workers=1, progress=False)
  (tmp_path / "raw" / "test" / "test_00000.mp4").unlink()
  found = by_file(run(tmp_path / "raw", tmp_path / "out", faces="auto"))
  assert "missing" in found["test/test_00000.mp4"]["reason"]
  (clip,) = eval_clips(tmp_path / "out", split="test", image_size=SIZE)
  known = np.load(tmp_path / "raw" / "test" / "test_00001.truth.npz")
  assert clip.corpus == "synthtalk" and clip.key == "test/test_00001.mp4#0" and clip.text == str(known["text"])
  assert clip.lag == int(known["lag"]) != 0 and clip.identity == str(known["identity"])
  assert clip.truth_names == tuple(known["names"]) and {name.split("/")[0] for name in clip.truth_names} == {
    "identity", "mouth", "ambient",
  }  # fmt: skip
  np.testing.assert_array_equal(clip.truth, known["truth"])
  assert (clip.mouth_box[:, :2] >= clip.face_box[:, :2] - 0.02).all()
  record = records.open_records(tmp_path / "out", split="train")[0]
  description = json.loads((tmp_path / "raw" / "corpus.json").read_text())
  named = np.load(tmp_path / "raw" / "train" / "train_00000.truth.npz")
  labels = json.loads(str(named["labels"]))
  assert record["emotion"] == labels["expression"] and list(record["actions"]) == labels["actions"]
  assert records.open_records(tmp_path / "out", split="train").vocabularies == {
    "emotion": description["expressions"], "actions": description["actions"],
  }  # fmt: skip
  assert record["speaker"] == str(named["voice"]) and record["text_source"] == "synthetic"
  assert " ".join(word.label for word in record["words"]) == record["text"] == str(named["text"])
  assert [list(word) for word in record["words"]] == json.loads(str(named["words"]))


def test_a_second_run_does_only_what_changed(tmp_path):
  raw, out = tmp_path / "raw", tmp_path / "out"
  raw.mkdir()
  for name in ("a.mp4", "b.mp4"):
    talk(raw / name)
  (raw / "c.mp4").write_text("no")
  first = run(raw, out)
  stamp = {path: path.stat().st_mtime_ns for path in out.glob("clips/*/done.json")}
  again = run(raw, out)
  assert again.entries == first.entries and again.records == first.records
  assert stamp == {path: path.stat().st_mtime_ns for path in out.glob("clips/*/done.json")}
  talk(raw / "b.mp4", count=100)
  changed = run(raw, out)
  redone = [path for path in stamp if path.stat().st_mtime_ns != stamp[path]]
  assert len(redone) == 1 and redone[0].parent.name.startswith("b.mp4")
  assert by_file(changed)["b.mp4"]["clips"][0]["frames"] == 100
  assert changed.records != first.records and records.find_records(out) == changed.records
  next(out.glob("clips/a.mp4*/00.flac")).unlink()  # somebody tidied up
  assert run(raw, out).entries == changed.entries
  assert by_file(run(raw, out, size=48))["a.mp4"]["outcome"] == "accepted"
  assert records.open_records(out, split="train").preprocessing["size"] == 48


def test_an_interrupted_file_leaves_nothing_and_is_done_next_time(tmp_path, monkeypatch, capsys):
  talk((tmp_path / "raw").mkdir() or tmp_path / "raw" / "a.mp4")

  def interrupt(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(video.ClipWriter, "write", interrupt)
    arguments = f"--raw {tmp_path / 'raw'} --out {tmp_path / 'out'} --faces full_frame --size 32".split()
    assert app.main(arguments) == 130
  assert "the same command goes on" in capsys.readouterr().err
  assert not list((tmp_path / "out" / "clips").iterdir()) and not (tmp_path / "out" / "manifest.jsonl").exists()
  assert app.main(arguments) == 0


def test_what_nobody_foresaw_stops_one_file_and_a_full_disk_stops_the_run(tmp_path, monkeypatch, capsys):
  talk((tmp_path / "raw").mkdir() or tmp_path / "raw" / "a.mp4")
  talk(tmp_path / "raw" / "b.mp4")
  write = video.ClipWriter.write

  def fails(error):
    def once(self, image, armed=[True]):  # noqa: B006 (one list for all calls)
      if armed:
        armed.clear()
        raise error
      write(self, image)

    return once

  with monkeypatch.context() as patch:
    patch.setattr(video.ClipWriter, "write", fails(RuntimeError("odd")))
    found = by_file(run(tmp_path / "raw", tmp_path / "out"))
  assert found["a.mp4"]["reason"] == "unexpected RuntimeError: odd" and found["b.mp4"]["outcome"] == "accepted"
  assert by_file(run(tmp_path / "raw", tmp_path / "out"))["a.mp4"]["outcome"] == "accepted", "tried again"
  with monkeypatch.context() as patch:
    patch.setattr(video.ClipWriter, "write", fails(OSError(28, "No space left on device")))
    arguments = f"--raw {tmp_path / 'raw'} --out {tmp_path / 'full'} --faces full_frame --size 32 --workers 1".split()
    assert app.main(arguments) == 2
  assert "No space left" in capsys.readouterr().err and not list((tmp_path / "full" / "clips").iterdir())


def test_wrong_arguments_are_one_sentence(tmp_path, capsys):
  for arguments, words in [
    (["--raw", str(tmp_path / "none")], "is not a folder"),
    (["--raw", str(tmp_path)], "there is no file in"),
    (["--raw", str(tmp_path), "--size", "33"], "even number"),
    (["--raw", str(tmp_path), "--min-seconds", "5", "--max-seconds", "2"], "0.04 <= min <= max"),
    (["--raw", str(tmp_path), "--min-seconds", "0.01", "--max-seconds", "0.01"], "0.04 <= min <= max"),
    (["--raw", str(tmp_path), "--workers", "0"], "at least 1"),
  ]:
    assert app.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and error.count("\n") == 1


def test_small_faces_are_refused_and_enlarged_ones_flagged(tmp_path):
  (tmp_path / "raw").mkdir()
  talk(tmp_path / "raw" / "a.mp4")  # 64 pixels
  summary = run(tmp_path / "raw", tmp_path / "out", size=96).summary()
  assert json.loads(json.dumps(summary))["upscaled_clips"] == 1
  assert "too small" in run(tmp_path / "raw", tmp_path / "out", size=256).entries[0]["reason"]


class Deadly(type(Path())):
  """A path that ends the process which unpickles it, as a fault in a decoder would."""

  def __reduce__(self):
    return os._exit, (1,)


def _hang():
  watchdog.end_process_after(0.5)
  with watchdog.watched():
    time.sleep(100)


class Endless(type(Path())):
  """A path whose reading comes to no end."""

  def __reduce__(self):
    return _hang, ()


@pytest.mark.parametrize("kind", [Deadly, Endless])
def test_a_file_that_kills_its_worker_is_refused_and_the_others_are_done(tmp_path, kind):
  (tmp_path / "raw").mkdir()
  (tmp_path / "out" / "clips").mkdir(parents=True)
  for name in ("a.mp4", "b.mp4", "c.mp4"):
    talk(tmp_path / "raw" / name)
  items = [item for item in corpora.load("folder")(tmp_path / "raw")]
  items[1] = corpora.SourceItem(**{**vars(items[1]), "path": kind(items[1].path)})
  settings = clips.Settings(size=SIZE, faces="full_frame")
  found = {entry["file"]: entry for entry in prepare._run(items, settings, tmp_path / "out", workers=2)}
  assert {name: entry["outcome"] for name, entry in found.items()} == {
    "a.mp4": "accepted", "b.mp4": "rejected", "c.mp4": "accepted",
  }  # fmt: skip
  assert "ended the process" in found["b.mp4"]["reason"] and "no end" in found["b.mp4"]["reason"]


@pytest.mark.slow
def test_ctrl_c_with_workers_keeps_what_is_done(tmp_path):
  raw, out = tmp_path / "raw", tmp_path / "out"
  raw.mkdir()
  for number in range(12):
    talk(raw / f"{number:02d}.mp4", count=500)
  command = [sys.executable, "-m", "synclipmae_jax.apps.prepare", "--raw", raw, "--out", out, "--faces", "full_frame",
             "--size", "64", "--workers", "2", "--json"]  # fmt: skip
  listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs inherit it ignored
  process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
  while not list(out.glob("clips/*/done.json")):
    time.sleep(0.05)
  process.send_signal(signal.SIGINT)
  _, error = process.communicate(timeout=30)
  assert process.returncode == 130 and "the same command goes on" in error and "Traceback" not in error
  done = len(list(out.glob("clips/*/done.json")))
  assert 0 < done < 12 and not list(out.glob("clips/.*"))
  finished = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
  assert json.loads(finished.stdout)["accepted"] == 12


def test_splits_follow_groups_and_never_divide_one(tmp_path):
  for person in range(40):
    (tmp_path / f"p{person}").mkdir()
    for name in ("a.mp4", "b.mp4"):
      (tmp_path / f"p{person}" / name).touch()
  items = list(corpora.load("folder")(tmp_path))
  splits = {}
  for item in items:
    splits.setdefault(item.split_group, set()).add(item.split)
  assert len(splits) == 40 and all(len(found) == 1 for found in splits.values())
  assert 1 <= sum(found == {"test"} for found in splits.values()) <= 12
  (tmp_path / "new").mkdir()
  (tmp_path / "new" / "c.mp4").touch()
  assert {item.key: item.split for item in corpora.load("folder")(tmp_path) if item.split_group != "new"} == {
    item.key: item.split for item in items
  }


def test_two_files_fill_both_splits(tmp_path):
  for name in "ab":
    (tmp_path / f"{name}.mp4").touch()
  assert {item.split for item in corpora.load("folder")(tmp_path)} == {"train", "test"}


def test_an_unknown_corpus_is_refused(tmp_path):
  with pytest.raises(InputError, match="unknown corpus"):
    corpora.load("imagenet")


def test_two_runs_do_not_share_a_folder_and_links_in_a_circle_end(tmp_path, capsys):
  raw, out = tmp_path / "raw", tmp_path / "out"
  raw.mkdir()
  talk(raw / "a.mp4")
  (raw / "circle.mp4").symlink_to("circle.mp4")
  talk(raw / ("long" * 62 + ".mp4"))  # there is no room for .faces.npz in a name
  out.mkdir()
  with prepare._alone(out), pytest.raises(InputError, match="another run is preparing"):
    run(raw, out)
  found = by_file(run(raw, out, faces="auto"))
  assert "symbolic links" in found["circle.mp4"]["reason"] and "no face" in found["long" * 62 + ".mp4"]["reason"]
  (tmp_path / "loop").symlink_to("loop")
  assert app.main(["--raw", str(tmp_path / "loop"), "--out", str(out)]) == 2
  assert "is not a folder" in capsys.readouterr().err


def test_clips_of_one_length_leave_a_rest(tmp_path):
  (tmp_path / "raw").mkdir()
  talk(tmp_path / "raw" / "a.mp4", count=110)
  (entry,) = run(tmp_path / "raw", tmp_path / "out", min_seconds=2, max_seconds=2).entries
  assert [(clip["start"], clip["frames"]) for clip in entry["clips"]] == [(0, 50), (50, 50)]


def test_a_killed_run_leaves_no_worker(tmp_path):
  raw, out = tmp_path / "raw", tmp_path / "out"
  raw.mkdir()
  for name in ("a.mp4", "b.mp4"):
    talk(raw / name, count=500)
  command = [sys.executable, "-m", "synclipmae_jax.apps.prepare", "--raw", raw, "--out", out, "--faces", "full_frame",
             "--size", "64", "--workers", "2"]  # fmt: skip
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
  deadline = time.monotonic() + 60
  while not list(out.glob("clips/.*")) and time.monotonic() < deadline:
    time.sleep(0.02)
  process.kill()
  process.communicate(timeout=20)  # the workers hold the pipe: it closes when the last of them has gone


def test_every_container_is_prepared_and_what_was_noted_is_in_the_manifest(tmp_path):
  (tmp_path / "raw").mkdir()
  frame = Fraction(1, 25)
  talk(tmp_path / "raw" / "a.mpg", codec="mpeg1video", sound_codec="mp2", time_base=frame)
  talk(tmp_path / "raw" / "b.flv")
  talk(tmp_path / "raw" / "c.avi", codec="mpeg4", sound_codec="pcm_s16le", time_base=frame)
  joined = talk(tmp_path / "raw" / "d.ts")
  joined.write_bytes(joined.read_bytes() * 2)
  found = by_file(run(tmp_path / "raw", tmp_path / "out"))
  assert {entry["outcome"] for entry in found.values()} == {"accepted"}
  assert [found[name]["source"]["notes"] for name in ("a.mpg", "b.flv", "c.avi")] == [[], [], []]
  assert "starts again" in found["d.ts"]["source"]["notes"][0]
  assert sum(clip["frames"] for clip in found["d.ts"]["clips"]) == pytest.approx(150, abs=4)


def test_a_damaged_picture_is_in_no_clip(tmp_path):
  (tmp_path / "raw").mkdir()
  path = talk(tmp_path / "raw" / "a.mkv", count=200, codec="mjpeg")
  with av.open(str(path)) as container:
    content = [bytes(packet) for packet in container.demux(video=0)][100]
  path.write_bytes(path.read_bytes().replace(content, bytes(len(content))))
  (entry,) = run(tmp_path / "raw", tmp_path / "out").entries
  assert [(clip["start"], clip["frames"]) for clip in entry["clips"]] == [(0, 100), (101, 99)]
  assert "damaged at 4.00 s" in entry["source"]["notes"][0]


def test_the_sound_track_is_a_setting(tmp_path, capsys):
  talk((tmp_path / "raw").mkdir() or tmp_path / "raw" / "a.mp4")
  assert by_file(run(tmp_path / "raw", tmp_path / "out", audio_track=1))["a.mp4"]["outcome"] == "accepted"
  assert "there is no track 2" in by_file(run(tmp_path / "raw", tmp_path / "out", audio_track=2))["a.mp4"]["reason"]
  assert app.main(["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "b"), "--audio-track", "0"]) == 2
  assert "counted from 1" in capsys.readouterr().err
