"""HDTF, VFHQ and Hallo3: corpora without labels, whose names and tables say which video a clip is from."""

from __future__ import annotations

import pytest
from trees import YOUTUBE, hallo3, hdtf, vfhq, write

from synclipmae_jax.data import corpora
from synclipmae_jax.types import InputError


def listed(raw, corpus="auto"):
  return {item.path.stem: item for item in corpora.load(corpus)(raw)}


def test_the_tables_of_hdtf_and_both_styles_of_names(tmp_path):
  found = listed(hdtf(tmp_path))
  assert found["Radio1_0"].provenance == {"video": "Radio1", "url": "https://a", "start_s": "30", "end_s": "60"}
  missing = found["Radio11_0"]
  assert not missing.path.exists() and missing.identity == "Radio11"
  assert missing.provenance == {
    "video": "Radio11", "url": "https://b", "start_s": "30", "end_s": "60", "box": "412 0 1011 599 pixels",
    "enlarged": "1.2",
  }  # fmt: skip
  walz = found["TimWalz0_0"], found["WDA_TimWalz1_000"], found["WDA_TimWalz1_001"]
  assert {item.split_group for item in walz} == {"TimWalz"}
  assert walz[0].provenance["start_s"] == "3630" and walz[0].provenance["url"] == "https://d", "without its mark"
  assert walz[1].provenance == {"video": "TimWalz1", "url": "https://e", "set": "WDA"}, "30 s number 0, no stretch"
  assert "TimWalz1_0" not in found and "Radio11" not in found and found["RD_Radio7_000"].identity == "Radio7"
  assert found["Radio11_1"].provenance["end_s"] == "150"


def test_two_names_of_one_address_are_one_group(tmp_path):
  write(tmp_path / "RD_video_url.txt", "Radio1 https://a\nRadio2 https://a\n")
  for name in ("RD_Radio1_000", "RD_Radio2_000"):
    write(tmp_path / f"{name}.mp4")
  assert {item.split_group for item in listed(tmp_path).values()} == {"Radio1"}


@pytest.mark.parametrize(
  ("table", "content", "words"),
  [
    ("RD_annotion_time.txt", "Radio1.mp4 00:30\n", "Radio1.mp4 has the time '00:30', which is not like 00:30-01:00"),
    ("RD_annotion_time.txt", "Radio1.mp4\n", "line 1: 2 values are expected"),
    ("WRA_annotion_time.txt", "../../a.mp4 00:30-01:00\n", "names a file outside its folder"),
    ("RD_crop_wh.txt", "Radio1_0.mp4 1 x 3 4\n", "Radio1_0.mp4 has no crop"),
    ("RD_crop_wh.txt", "Radio1_0.mp4 1 0 3 4\n", "is no box"),
    ("RD_video_url.txt", b"\xff\xfe", "cannot be read"),
  ],
)
def test_damaged_tables_of_hdtf_are_one_sentence(tmp_path, table, content, words):
  write(hdtf(tmp_path) / "HDTF_dataset" / table, content)
  with pytest.raises(InputError, match=words):
    listed(tmp_path, "hdtf")


def test_the_fields_of_vfhq(tmp_path):
  raw = vfhq(tmp_path)
  stem = f"Clip+{YOUTUBE[1]}+P1+C1+F100-150"
  (raw / "clips" / f"{stem}.mp4").unlink()  # as pictures in a folder, without sound
  write(raw / "clips" / stem / "00000.png")
  item = listed(raw)[stem]
  assert (item.identity, item.split_group, item.path.exists()) == (f"{YOUTUBE[1]}+P1", YOUTUBE[1], False)
  assert item.provenance == {
    "youtube": YOUTUBE[1], "first_frame": "100", "last_frame": "150", "height": "1080", "width": "1920", "fps": "29.97",
    "box": "100 50 612 562 pixels",
  }  # fmt: skip


@pytest.mark.parametrize("content", ["FPS\n", "CROP 1 2 3\n", "CROP 4 3 2 1\n", b"\xff", "H tall\n"], ids=str)
def test_a_damaged_text_of_vfhq_is_named_and_costs_nothing(tmp_path, content):
  raw = vfhq(tmp_path)
  stem = f"Clip+{YOUTUBE[0]}+P0+C0+F100-150"
  write(raw / "meta_info" / f"{stem}.txt", content)
  found = listed(raw)
  assert len(found) == 2 * len(YOUTUBE) and found[stem].path.exists()
  assert found[stem].provenance["damaged"] and "fps" not in found[stem].provenance
  (raw / "meta_info" / f"{stem}.txt").unlink()
  write(raw / "other" / f"{stem}.mkv")
  assert listed(raw)[stem].provenance == {
    "youtube": YOUTUBE[0], "first_frame": "100", "last_frame": "150", "doubles": f"other/{stem}.mkv"
  }  # fmt: skip


def test_captions_of_hallo3_are_no_transcripts(tmp_path):
  raw = hallo3(tmp_path)
  (raw / "caption" / "0003.txt").unlink()
  write(raw / "part2" / "videos" / "0001.mp4")
  write(raw / "audios" / "0001.mp4")
  found = {item.key: item for item in corpora.load("auto")(raw)}
  assert len(found) == 25 and "audios/0001.mp4" not in found
  assert found["videos/0001.mp4"].text == "" and found["videos/0001.mp4"].provenance == {"caption": "caption/0001.txt"}
  assert found["videos/0003.mp4"].provenance == {"caption": "missing"}
  assert found["part2/videos/0001.mp4"].split_group == found["videos/0001.mp4"].split_group
