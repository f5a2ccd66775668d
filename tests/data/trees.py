"""Small trees of every corpus in its true layout, of empty files, for the tests."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

from synclipmae_jax.data.corpora import celebv

APPEARANCES = ("blurry", "male", "young", "wearing_hat")
YOUTUBE = [f"id{number:02d}-_AbcXY" for number in range(24)]  # 11 characters, with those that ids may have


def write(path: Path, content: str | bytes = "") -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def celebv_entry(video, **known):
  box = {"top": 0.1, "bottom": 0.6, "left": 0.2, "right": 0.5}
  return {"ytb_id": video, "duration": {"start_sec": 1.5, "end_sec": 9.25}, "bbox": box, "version": "v0.1"} | known


def hq_attributes(emotion, *, actions=(), appearance=()):
  return {
    "appearance": [int(name in appearance) for name in APPEARANCES],
    "action": [int(name in actions) for name in celebv.ACTIONS],
    "emotion": emotion,
  }


def celebvhq(raw: Path, *, clips: dict | None = None) -> Path:
  neutral = {"sep_flag": False, "labels": "neutral"}
  if clips is None:
    clips = {
      f"{video}_{n}": celebv_entry(video, attributes=hq_attributes(neutral)) for video in YOUTUBE for n in (0, 1)
    }
  meta = {"appearance_mapping": list(APPEARANCES), "action_mapping": list(celebv.ACTIONS)}
  write(raw / "celebvhq_info.json", json.dumps({"meta_info": meta, "clips": clips}))
  for key in clips:
    write(raw / "processed" / f"{key}.mp4")
  return raw


def celebvtext(raw: Path) -> Path:
  pixels = {"top": 100, "bottom": 612, "left": 40, "right": 552}
  clips = {f"{video}_{n}": celebv_entry(video, bbox=pixels) for video in YOUTUBE for n in (0, 1)}
  first, *rest = clips
  second = {first: celebv_entry("other")}
  write(raw / "celebvtext_info.json", json.dumps({"clips_set1": clips, "clips_set2": second}))
  acts = {f"{key}_0": [["talk", [0.0, 2.5, 2.5, 0]], ["shake_head", [1.0, 1.5, 0.5, 1]]] for key in clips}
  write(raw / "annotations.pkl", pickle.dumps({"act": acts, "app": {"scar": [first]}}))
  for key in rest:
    write(raw / "processed" / f"{key}.mp4")
  write(raw / "processed" / f"{first}_0.mp4")
  return raw


def hdtf(raw: Path) -> Path:
  tables = raw / "HDTF_dataset"
  write(tables / "RD_video_url.txt", "Radio1 https://a\nRadio11 https://b\nRadio24 https://c\n")
  write(tables / "RD_annotion_time.txt", "Radio1.mp4 00:30-01:00  \nRadio11.mp4 00:30-01:00 01:30-02:30 \n")
  write(tables / "RD_crop_wh.txt", "Radio11_0.mp4 412 599 0 599\n")
  write(tables / "RD_crop_ratio.txt", "Radio11_0.mp4 1.2\n")
  write(tables / "WDA_video_url.txt", b"\xef\xbb\xbfTimWalz0 https://d\r\nTimWalz1 https://e\r\n")
  write(tables / "WDA_annotion_time.txt", "TimWalz0.mp4 1:00:30-1:01:00\nTimWalz1.mp4 00:30-01:00\n")
  for name in ("Radio1_0", "Radio11_1", "TimWalz0_0", "WDA_TimWalz1_000", "WDA_TimWalz1_001", "RD_Radio7_000"):
    write(raw / "clips" / f"{name}.mp4")
  for name in "ABCDEFGHIJKLMNOP":
    write(raw / "clips" / f"WRA_Person{name}0_000.mp4")
    write(raw / "clips" / f"WRA_Person{name}1_000.mp4")
  write(raw / "videos" / "Radio11.mp4")
  return raw


def vfhq(raw: Path) -> Path:
  for number, video in enumerate(YOUTUBE):
    for person in (0, 1):
      stem = f"Clip+{video}+P{person}+C{number}+F100-150"
      write(raw / "meta_info" / f"{stem}.txt", "H 1080\nW 1920\nFPS 29.97\nCROP box 100 50 612 562\n")
      write(raw / "clips" / f"{stem}.mp4")
  return raw


def hallo3(raw: Path) -> Path:
  for number in range(24):
    write(raw / "videos" / f"{number:04d}.mp4")
    write(raw / "caption" / f"{number:04d}.txt", "A woman in a red dress talks.")
  write(raw / "face_emb" / "0001.pt")
  return raw


def mead(raw: Path) -> Path:
  for actor in (*(f"M{number:03d}" for number in range(3, 15)), "W009", "W021"):
    extra = "1/" if actor == "W021" else ""
    for view in ("front", "left_30"):
      for emotion in ("happy", "disgusted"):
        write(raw / actor / f"video/{extra}{view}/{emotion}/level_1/001.mp4")
    write(raw / actor / "audio/happy/level_1/001.m4a")
    write(raw / actor / "audio/disgusted/level_1/001.m4a")
  return raw


def ravdess(raw: Path) -> Path:
  for actor in range(1, 25):
    for modality, suffix in (("01", "mp4"), ("02", "mp4"), ("03", "wav")):
      write(raw / f"Actor_{actor:02d}" / f"{modality}-01-06-02-02-01-{actor:02d}.{suffix}")
    write(raw / f"Actor_{actor:02d}" / f"01-02-02-01-01-02-{actor:02d}.mp4")
  return raw


def cremad(raw: Path) -> Path:
  for actor in range(1001, 1021):
    for name in ("DFA_ANG_XX", "IEO_SAD_LO", "ITH_HAP_X"):
      write(raw / "VideoFlash" / f"{actor}_{name}.flv")
      write(raw / "AudioWAV" / f"{actor}_{name}.wav")
  write(raw / "VideoDemographics.csv", '"ActorID","Age"\n')
  return raw


TRANSCRIPT = (
  "Text:  SO {WE} WENT\nConf:  5\n\nWORD START END ASDSCORE\nSO 0.10 0.32 7.1\n{WE} 0.4 0.5 5\nWENT 0.5 0.9 3\n"
)


def lrs2(raw: Path) -> Path:
  programmes = {
    split: [f"{digit}53541569906879{n}" for n in range(4)] for digit, split in enumerate(("train", "val", "test"))
  }
  for split, names in programmes.items():
    suffix = " NF" if split == "test" else ""
    write(raw / f"{split}.txt", "".join(f"{name}/{n:05d}{suffix}\n" for name in names for n in (1, 2)))
    for name in names:
      for n in (1, 2):
        write(raw / "main" / name / f"{n:05d}.mp4")
        write(raw / "main" / name / f"{n:05d}.txt", "Text:  SO WE WENT\n")
  programme = programmes["train"][0]
  write(raw / "pretrain.txt", f"\ufeff{programme}/00007\n{programmes['test'][0]}/00008\n")
  for name in (f"{programme}/00007", f"{programmes['test'][0]}/00008"):
    write(raw / "pretrain" / f"{name}.mp4")
    write(raw / "pretrain" / f"{name}.txt", TRANSCRIPT)
  return raw


def lrs3(raw: Path) -> Path:
  for folder, talks in (("pretrain", YOUTUBE[:16]), ("trainval", YOUTUBE[8:20]), ("test", YOUTUBE[19:])):
    for talk in talks:
      write(raw / folder / talk / "00001.mp4")
      write(raw / folder / talk / "00001.txt", TRANSCRIPT)
  return raw


def grid(raw: Path) -> Path:
  for speaker in range(1, 25):
    for sentence in ("bbaf2n", "lwbf2n"):
      write(raw / f"s{speaker}" / f"{sentence}.mpg")
      write(raw / "align" / f"s{speaker}" / f"{sentence}.align", "0 12500 sil\n12500 25000 bin\n25000 50000 sil\n")
  return raw


def folder(raw: Path) -> Path:
  for video in YOUTUBE:
    for n in (0, 1, 2):
      write(raw / f"{video}_{n}.mp4")
  return raw


MAKERS = {
  make.__name__: make
  for make in (grid, celebvhq, celebvtext, hdtf, vfhq, hallo3, mead, ravdess, cremad, lrs2, lrs3, folder)
}  # fmt: skip
