"""`configs/probe.py:factors` on SynthTalk and on a folder of videos: numbers, page, refusals."""

import base64
import io
import json
import re

import numpy as np
import pytest
from footage import clicks, numbered, write_video
from PIL import Image

from configs.probe import get_config
from synclipmae_jax import checkpoints
from synclipmae_jax.data.faces.facial_motion import NAMES as MOTION
from synclipmae_jax.run import factor_report, jobs
from synclipmae_jax.types import InputError
from tests.tiny_checkpoint import write_tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  place = tmp_path_factory.mktemp("factors")
  write_tiny(place / "checkpoint")
  for person in ("a", "b", "c"):
    for number in range(2):
      path = place / "raw" / person / f"{number}.mp4"
      path.parent.mkdir(parents=True, exist_ok=True)
      images = [numbered(t * 40503 % 65536 + 777 * ord(person)) for t in range(50)]
      write_video(path, images, sound=clicks(2.0, [], noise=0.1))
  (place / "raw" / "bad.mp4").write_text("not a film")
  return place


def config_of(place, **data):
  config = get_config("factors")
  config.checkpoint = str(place / "checkpoint")
  config.swaps.update(dict(count=1, frames=2))
  config.data.synthtalk.update(dict(train=6, test=6, seconds=2.0, size=64))
  config.data.update(data)
  return config


def pictures_in(page: str) -> list[np.ndarray]:
  found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
  return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


@pytest.mark.slow
def test_the_report_of_synthtalk_has_every_number_and_picture(place, tmp_path, capsys):
  jobs.run(config_of(place), tmp_path)
  report = json.loads((tmp_path / "eval.json").read_text(), parse_constant=pytest.fail)
  assert report["factors"]["tokens"].keys() == {"vocal", "ambient", "identity"} and report["people"] == 3
  assert (report["split"], report["clips"], report["measured"]) == ("test", 6, None)
  assert report["verification"]["identity"]["pairs_of_one_person"] == 3
  assert set(report["swaps"]["psnr_db"]["both"]) == set(report["swaps"]["rows"]) and report["swaps"]["swaps"] == 1
  assert 0 < report["neighbours"]["vocal"]["mouth"] < 3
  page = (tmp_path / "report.html").read_text()
  shown = pictures_in(page)
  assert len(shown) == 6 and all(min(image.shape[:2]) > 150 and image.std() > 10 for image in shown)
  drawn = {"factors", "roc", "correlation", "neighbours", "strip", "swaps"}
  assert {path.stem for path in tmp_path.glob("*.png")} == drawn
  assert "<script" not in page and "<th>PSNR face</th>" in page
  out = capsys.readouterr().out
  assert "rms r" in out and "EER" in out
  assert json.loads((tmp_path / "config.json").read_text())["config"]["task"] == "factors"


def test_footage_without_truth_has_what_needs_none(place, tmp_path, monkeypatch):
  """With landmarks that are known to the test: the jaw opens with the clip, in one frame nothing is known."""
  rng = np.random.default_rng(0)

  def landmarks(places, keys):
    assert [split for _, split in places] and len(keys) == 6
    made = {key: rng.random((1, 68, 2)) + 0.01 * rng.random((50, 68, 2)) for key in keys}
    for points in made.values():
      points[0] = np.nan
    return made

  monkeypatch.setattr(factor_report, "_landmarks", landmarks)
  config = config_of(place, raw=str(place / "raw"), faces="full_frame")
  config.swaps.count = 0
  jobs.run(config, tmp_path)
  report = json.loads((tmp_path / "eval.json").read_text(), parse_constant=pytest.fail)
  assert report["factors"] is None and report["swaps"] is None and (report["clips"], report["people"]) == (6, 3)
  assert report["measured"]["r2"]["vocal"].keys() == set(MOTION) and report["measured"]["folds_over"] == "clips"
  assert any("1 of 7 files were refused" in note for note in report["notes"])
  assert len(pictures_in((tmp_path / "report.html").read_text())) == 4  # all but the matrix and the swaps
  assert report["verification"]["vocal"]["pairs_of_one_person"] == 3


def test_landmarks_are_those_of_the_record_of_the_clip(place, tmp_path):
  from synclipmae_jax.data.prepare import prepare

  prepare(place / "raw", tmp_path, faces="full_frame", size=32, progress=False, workers=1)
  assert factor_report._landmarks([(tmp_path, "train")], {"a/0.mp4#0"}) == {}  # full_frame finds none


@pytest.mark.parametrize(("change", "sentence"), [
  (dict(raw="nowhere"), "there is no folder nowhere"),
  (dict(raw="{place}/raw", sources=(("x", 1.0),)), "not both"),
  (dict(faces="nose"), "unknown faces 'nose'"),
  (dict(sources=(("{place}/raw", 1.0),)), "there are no records in"),
])  # fmt: skip
def test_wrong_settings_are_one_sentence_and_write_nothing(place, tmp_path, change, sentence):
  config = config_of(place)
  fill = lambda value: value.replace("{place}", str(place)) if isinstance(value, str) else value
  for name, value in change.items():
    config.data[name] = tuple((fill(a), b) for a, b in value) if name == "sources" else fill(value)
  with pytest.raises(InputError, match=sentence):
    jobs.run(config, tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_numbers_of_swaps_and_a_folder_without_a_clip_are_refused(place, tmp_path):
  config = config_of(place)
  config.swaps.frames = 0
  with pytest.raises(InputError, match="swaps.frames at least 1"):
    jobs.run(config, tmp_path / "w")
  (tmp_path / "raw").mkdir()
  (tmp_path / "raw" / "bad.mp4").write_text("not a film")
  with pytest.raises(InputError, match="yields a clip .bad.mp4: it cannot be read"):
    jobs.run(config_of(place, raw=str(tmp_path / "raw"), faces="full_frame"), tmp_path / "w")


def test_a_checkpoint_without_a_decoder_is_refused(place, tmp_path):
  step = write_tiny(tmp_path / "0")
  (item,) = [path for path in step.iterdir() if path.name == "decoder"]
  assert checkpoints.load_meta(step)
  for path in sorted(item.rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  item.rmdir()
  config = config_of(place)
  config.checkpoint = str(step)
  with pytest.raises(InputError, match="decoder|damaged|no complete checkpoint"):
    jobs.run(config, tmp_path / "w")
