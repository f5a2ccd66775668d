"""`configs/dub.py:evaluate` on folders: rows, the table, refusals."""

import json

import jax
import numpy as np
import pytest
from convert.random_weights import donor_weights
from footage import write_video
from photograph import picture
from safetensors.numpy import save_file

from configs.dub import get_config
from synclipmae_jax.convert.conversion import convert
from synclipmae_jax.run import dub_features, dub_scores, jobs
from synclipmae_jax.types import InputError
from tests.tiny_checkpoint import write_tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """True videos; a system that is nearly right but drifts to red; one that is another size, and lacks a video."""
  place = tmp_path_factory.mktemp("scores")
  write_tiny(place / "checkpoint")
  for folder in ("truth", "near", "small"):
    (place / folder).mkdir()
  sound = 0.3 * np.sin(np.arange(640 * 34) * 0.1).astype(np.float32)
  heads = [picture((100 + t // 8, 100, 150), width=200, height=200) for t in range(34)]
  for name in ("a", "b"):
    write_video(place / "truth" / f"{name}.mp4", heads, sound=sound)
  redder = [np.clip(head + np.array([t // 2, 0, 0]), 0, 255).astype(np.uint8) for t, head in enumerate(heads)]
  write_video(place / "near" / "a.mp4", redder, sound=sound)
  (place / "near" / "b.mp4").write_text("not a film")
  write_video(place / "small" / "a.mkv", [head[::2, ::2] for head in heads], sound=sound)
  return place


def config_of(place, *systems, **data):
  config = get_config("evaluate")
  config.checkpoint = str(place / "checkpoint")
  config.data.systems = tuple((name, str(place / name)) for name in systems)
  for name, folder in data.items():
    config.data[name] = str(place / folder)
  return config


def colours(frames):
  """Stands for a network: the mean colour, in 0..1."""
  run = lambda x: x.mean((1, 2, 3), dtype=np.float32) / 255
  return dub_features.Extractor(run=run, frames=frames, every=frames, chunk=3)


@pytest.mark.slow
def test_every_system_is_measured_in_the_box_of_the_truth(place, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(dub_scores, "load_extractors", lambda config: {"inception": colours(1), "i3d": colours(16)})
  config = config_of(place, "near", "small", truth="truth")
  config.faces = "full_frame"
  jobs.run(config, tmp_path)
  report = json.loads((tmp_path / "dub_scores.json").read_text())
  rows = {(row["system"], row["video"]): row for row in report["rows"]}
  assert set(rows) == {("truth", "a"), ("truth", "b"), ("near", "a"), ("near", "b"), ("small", "a")}
  near, small = rows["near", "a"], rows["small", "a"]
  assert near["frames"] == small["frames"] == 34 and "cannot be read" in rows["near", "b"]["error"]
  assert report["missing"] == {"small": ["b"]} and report["systems"]["near"]["failed"] == 1
  assert near["values"]["drift"] == pytest.approx(8.5, abs=1.5) and small["values"]["drift"] < 1
  assert near["values"]["ssim_mouth"] > small["values"]["ssim_mouth"] and near["values"]["psnr_face"] > 25
  assert 0 <= near["values"]["mouth_distance"] < 5 and near["values"]["identity"] > 0.9
  assert near["values"].keys() >= {"sync", "in_sync"} and rows["truth", "a"]["values"].keys() == {"sync", "in_sync"}
  sets = {name: report["systems"][name] for name in ("near", "small")}
  assert all(each["counted"] == {"pictures": 34, "clips": 2} for each in sets.values())
  value = lambda system, name: sets[system]["scores"][name]["mean"]
  assert all(value("near", name) > 2 * value("small", name) for name in ("fid", "kid", "fvd"))  # colour is all they see
  assert "fid" not in report["systems"]["truth"]["scores"] and not report["refused"]
  table = (tmp_path / "dub_scores.md").read_text()
  assert "FVD |" in table and "near 34 pictures, 2 clips" in table and "for want" not in table
  assert "| near " in table and "small lacks b" in table and "LSE" not in table
  assert table.split("\n\n", 1)[1].strip() in capsys.readouterr().out


@pytest.mark.slow
def test_without_truth_nothing_is_said_of_the_true_mouth(place, tmp_path):
  config = config_of(place, "small", source="truth")
  config.faces = "full_frame"
  jobs.run(config, tmp_path)
  report = json.loads((tmp_path / "dub_scores.json").read_text())
  (row,) = (row for row in report["rows"] if row["system"] == "small")
  assert row["values"].keys() == {"sync", "in_sync", "identity", "drift"} and report["reference"] == "source"
  assert "FID and KID (--config.inception), FVD (--config.i3d)" in (tmp_path / "dub_scores.md").read_text()


@pytest.mark.parametrize(("systems", "data", "sentence"), [
  ((), {"truth": "truth"}, "name the folders"), (("near",), {}, "true or of undubbed"),
  (("nowhere",), {"truth": "truth"}, "there is no folder"), (("checkpoint",), {"truth": "truth"}, "no video"),
])  # fmt: skip
def test_wrong_settings_are_refused_before_anything_is_written(tmp_path, systems, data, sentence):
  for folder in ("truth", "near", "checkpoint"):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / ("a.txt" if folder == "checkpoint" else "a.mp4")).touch()
  with pytest.raises(InputError, match=sentence):
    jobs.run(config_of(tmp_path, *systems, **data), tmp_path / "workdir")
  assert not (tmp_path / "workdir").exists()


def test_a_clip_has_neighbouring_frames_and_too_few_are_refused():
  extractor = lambda frames, every: dub_features.Extractor(
    run=lambda x: x.reshape(len(x), -1)[:, :5].astype(np.float32), frames=frames, every=every, chunk=3
  )
  sets = dub_features.FeatureSets({"inception": extractor(1, 2), "i3d": extractor(16, 16)})
  crop = lambda t: np.random.default_rng(t).integers(0, 256, (2, 2, 3), np.uint8)
  for system, times in {"truth": range(48), "gap": [*range(20), *range(21, 40)], "short": range(12)}.items():
    watch = sets.watch(system, "a")
    for t in times:
      watch.add(t, crop(t))
    watch.finish()
  sets.watch("broken", "a").add(0, crop(0))  # cut off by an error: nothing is counted
  scores, counts, refused = sets.compare("gap", "truth")
  # The clip after the gap begins elsewhere than the truth's.
  assert counts == {"pictures": 19, "clips": 1} and scores["fid"] == pytest.approx(0, abs=1e-6)
  assert refused == ["gap, FVD: at least 2 clips of 16 frames are needed, and there are 1"]
  assert len(sets.compare("short", "truth")[2]) == 2 and sets.compare("broken", "truth")[1] == {
    "pictures": 0,
    "clips": 0,
  }


@pytest.mark.slow
def test_converted_networks_are_loaded_and_others_refused(place, tmp_path):
  """With random weights, an eighth as wide as the released ones."""
  config = config_of(place, "near", truth="truth")
  for name, more in (("inception", {}), ("i3d", {"classes": 40})):
    save_file(donor_weights(name, {"scale": 1 / 8} | more), tmp_path / f"{name}.safetensors")
    convert(name, src=tmp_path / f"{name}.safetensors", dst=tmp_path / name)
    config[name] = str(tmp_path / name)
  for extractor, width in zip(dub_features.load_extractors(config).values(), (256, 40), strict=True):
    crops = np.zeros((2, extractor.frames, 224, 224, 3), np.uint8)
    assert jax.eval_shape(extractor.run, crops).shape == (2, width)
  config.i3d = config.inception
  with pytest.raises(InputError, match="i3d"):
    dub_scores.run(config, tmp_path / "workdir")
  assert not (tmp_path / "workdir").exists()
