"""MEAD, RAVDESS and CREMA-D: actors, whose files say in their names what is played."""

from __future__ import annotations

import numpy as np
import pytest
from footage import clicks, numbered, write_video
from trees import cremad, mead, ravdess, write

from synclipmae_jax.data import corpora, prepare
from synclipmae_jax.data.corpora import reading
from synclipmae_jax.data.media.containers import open_media
from synclipmae_jax.data.pipeline import eval_clips


def listed(raw, corpus="auto"):
  return {item.key: item for item in corpora.load(corpus)(raw)}


def test_takes_and_views_of_mead(tmp_path):
  raw = mead(tmp_path)
  write(raw / "M003" / "audio" / "happy" / "level_1" / "001.mp4")  # a sound, not a view
  write(raw / "M003" / "video" / "notes.mp4")
  write(raw / "readme" / "001.mp4")
  (raw / "M004" / "audio" / "happy" / "level_1" / "001.m4a").unlink()
  found = listed(raw)
  assert len(found) == 14 * 4 + 1
  item = found["W021/video/1/left_30/disgusted/level_1/001.mp4"]
  assert (item.identity, item.speaker, item.split_group, item.emotion) == ("W021", "W021", "W021", "disgust")
  assert item.sound_path == raw / "W021/audio/disgusted/level_1/001.m4a"
  assert item.provenance == {
    "view": "left_30", "level": "level_1", "sound": "W021/audio/disgusted/level_1/001.m4a"
  }  # fmt: skip
  assert item.vocabularies == {"emotion": reading.EMOTIONS}
  alone = found["M004/video/front/happy/level_1/001.mp4"]
  assert alone.sound_path is None and alone.provenance["sound"] == "missing" and alone.emotion == "happy"
  unnamed = found["M003/video/notes.mp4"]
  assert (unnamed.emotion, unnamed.identity, unnamed.sound_path) == ("", "M003", None)


def test_mead_is_no_folder_of_persons_on_two_sides(tmp_path):
  for corpus in ("mead", "folder"):
    found = listed(mead(tmp_path), corpus).values()
    actors = {}
    for item in found:
      actors.setdefault(item.key.split("/")[0], set()).add(item.split)
    assert all(len(splits) == 1 for splits in actors.values())
    assert set.union(*actors.values()) == {"train", "val", "test"}


@pytest.mark.parametrize("separate", [True, False])
def test_mead_from_raw_files_to_records(tmp_path, separate):
  """The sound of its own file stays on its clock; a video with sound keeps its own."""
  raw = tmp_path / "raw"
  clicked = clicks(3, [1.0], noise=0.02)
  for actor in ("M003", "W009", "W021"):
    take = "happy/level_1/001"
    video, sound = raw / actor / f"video/front/{take}.mp4", raw / actor / f"audio/{take}.m4a"
    for path in (video, sound):
      path.parent.mkdir(parents=True)
    write_video(video, map(numbered, range(75)), sound=None if separate else clicked)
    if separate:
      write_video(tmp_path / "with.mp4", map(numbered, range(75)), sound=clicked)
      _only_sound(tmp_path / "with.mp4", sound)
    else:
      sound.write_bytes(b"no sound at all")
  manifest = prepare.prepare(raw, tmp_path / "out", faces="full_frame", size=32, progress=False)
  assert [entry["outcome"] for entry in manifest.entries] == 3 * ["accepted"], manifest.entries
  for split in ("train", "val", "test"):
    (clip,) = eval_clips(tmp_path / "out", split=split, image_size=32)
    assert (clip.corpus, clip.emotion, clip.whole, len(clip.frames)) == ("mead", "happy", True, 75)
    assert abs(int(np.abs(clip.waveform).argmax()) - 16000) < 320, "within half a frame"
  folders = [entry["folder"] for entry in manifest.entries]
  assert all(
    {path.suffix for path in (tmp_path / "out" / "clips" / name).iterdir()} == {".mp4", ".flac", ".npz", ".json"}
    for name in folders
  )


def _only_sound(source, out):
  import av

  with open_media(source) as container, av.open(str(out), "w", format="mp4") as target:
    stream = container.streams.audio[0]
    copy = target.add_stream_from_template(stream)
    for packet in container.demux(stream):
      if packet.size:
        packet.stream = copy
        target.mux(packet)


def test_a_sound_that_cannot_be_read_refuses_its_file_only(tmp_path):
  raw = tmp_path / "raw"
  for actor, content in (("M003", b"x"), ("W009", b"")):
    video = raw / actor / "video/front/happy/level_1/001.mp4"
    video.parent.mkdir(parents=True)
    write_video(video, map(numbered, range(50)))
    write(raw / actor / "audio/happy/level_1/001.m4a", content)
  manifest = prepare.prepare(raw, tmp_path / "out", faces="full_frame", size=32, progress=False)
  reasons = [entry["reason"] for entry in manifest.entries]
  assert reasons[0].startswith("its sound, 001.m4a: it cannot be read as a video")
  assert reasons[1] == "its sound, 001.m4a: the file is empty (0 bytes)"
  write_video(tmp_path / "with.mp4", map(numbered, range(50)), sound=clicks(2, [], noise=0.1))
  _only_sound(tmp_path / "with.mp4", raw / "W009" / "audio/happy/level_1/001.m4a")
  again = prepare.prepare(raw, tmp_path / "out", faces="full_frame", size=32, progress=False)
  assert [entry["outcome"] for entry in again.entries] == ["rejected", "accepted"], "a changed sound is read again"


def test_the_names_of_ravdess(tmp_path):
  raw = ravdess(tmp_path)
  twice = write(raw / "Video_Song_Actor_07" / "Actor_07" / "01-02-02-01-01-02-07.mp4")
  for name in ("01-01-09-01-01-01-01", "01-01-03-01-01-01-25", "01-01-03-01-01-01-00", "notes"):
    write(raw / "Actor_01" / f"{name}.mp4")
  found = listed(raw)
  assert len(found) == 48 and twice.relative_to(raw).as_posix() not in found
  spoken = found["Actor_07/01-01-06-02-02-01-07.mp4"]
  assert (spoken.identity, spoken.speaker, spoken.emotion) == ("Actor_07", "Actor_07", "fear")
  assert spoken.text == "dogs are sitting by the door" and spoken.text_source == "human"
  assert spoken.provenance == {"channel": "speech", "intensity": "strong", "repetition": "01"}
  sung = found["Actor_07/01-02-02-01-01-02-07.mp4"]
  assert (sung.emotion, sung.text) == ("calm", "kids are talking by the door")
  assert sung.provenance == {
    "channel": "song", "intensity": "normal", "repetition": "02",
    "doubles": "Video_Song_Actor_07/Actor_07/01-02-02-01-01-02-07.mp4",
  }  # fmt: skip


def test_the_names_of_cremad(tmp_path):
  found = listed(cremad(tmp_path))
  assert len(found) == 60 and all(key.startswith("VideoFlash/") for key in found)
  item = found["VideoFlash/1003_IEO_SAD_LO.flv"]
  assert (item.identity, item.speaker, item.emotion, item.text) == ("1003", "1003", "sadness", "it's eleven o'clock")
  assert item.provenance == {"level": "LO"} and found["VideoFlash/1003_ITH_HAP_X.flv"].provenance == {"level": "X"}
  assert item.vocabularies["emotion"] == ("anger", "disgust", "fear", "happy", "neutral", "sadness")
