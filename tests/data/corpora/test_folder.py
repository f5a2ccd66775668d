from __future__ import annotations

import pytest
from trees import YOUTUBE, write

from synclipmae_jax.data import corpora


def groups(raw, *files):
  for file in files:
    write(raw / file)
  return {item.key: item.split_group for item in corpora.load("folder")(raw)}


@pytest.mark.parametrize("outer", ["", "MEAD/", "data/raw/"])
def test_a_person_is_the_uppermost_folder_that_distinguishes_files(tmp_path, outer):
  files = [f"{outer}{actor}/video/{view}/001.mp4" for actor in ("M003", "W009") for view in ("front", "top")]
  found = groups(tmp_path, *files, "readme.md", f"{outer}notes.pdf")
  assert {found[file] for file in files} == {"M003", "W009"}
  assert all(found[file] == file.removeprefix(outer).split("/")[0] for file in files)
  assert found["readme.md"] == "readme.md"


def test_folders_of_splits_and_kinds_are_no_persons(tmp_path):
  found = groups(tmp_path, "train/ann/1.mp4", "test/ann/2.mp4", "train/videos/bob/3.mp4", "Test/4.mp4", "videos/5.mp4")
  assert list(found.values()) == ["Test/4.mp4", "ann", "ann", "bob", "videos/5.mp4"]
  assert set(groups(tmp_path / "flat", "videos/1.mp4", "videos/2.mp4").values()) == {"videos/1.mp4", "videos/2.mp4"}
  assert set(groups(tmp_path / "one", "ann/1.mp4", "ann/2.mp4").values()) == {"ann"}
  assert groups(tmp_path / "empty") == {}


def test_clips_of_one_youtube_video_stay_together(tmp_path):
  flat = [f"{video}_{n}.mp4" for video in YOUTUBE[:8] for n in range(5)]
  found = groups(tmp_path, *flat, "IMG_0001.mp4", "IMG_0002.mp4", f"{YOUTUBE[0]}_1_0.mp4")
  assert {found[file] for file in flat} == set(YOUTUBE[:8])
  assert found["IMG_0001.mp4"] == "IMG_0001.mp4" and found[f"{YOUTUBE[0]}_1_0.mp4"] == YOUTUBE[0]
  splits = {item.key: item.split for item in corpora.load("auto")(tmp_path)}
  assert all(len({splits[file] for file in flat if file.startswith(video)}) == 1 for video in YOUTUBE[:8])


def test_one_name_for_all_files_is_no_source(tmp_path):
  files = [f"recording_7_{n}.mp4" for n in range(5)]
  assert list(groups(tmp_path, *files).values()) == files
