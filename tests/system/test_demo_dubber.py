"""The dubbing model of the package: small, complete, of the embedded checkpoint, and it moves a mouth as it is told."""

import json

import pytest

from synclipmae_jax import checkpoints
from synclipmae_jax.data.synthtalk.dubbing import write_dubbing
from synclipmae_jax.dub.dubber import EMBEDDED, Dubber
from synclipmae_jax.run import dub_scores
from synclipmae_jax.run.config_files import load_config


def test_is_small_whole_and_has_its_card():
  assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) < 10 * 2**20
  card = (EMBEDDED / "README.md").read_text()
  assert card.startswith("# ") and "CC BY 4.0" in card and "Cooke" in card
  meta = checkpoints.load_meta(EMBEDDED)
  for item in ("dit", "vace", "audio_pack"):
    checkpoints.find_item(EMBEDDED, item, verify=True)
  assert meta["expected"]["mouth_gain"] > 0
  assert all(not name.startswith("/") for name, _ in meta["config"]["data"]["sources"])
  assert str(EMBEDDED.parents[2]) not in json.dumps(meta)  # no place of a machine


@pytest.mark.slow
def test_by_sound_and_by_mouth_it_opens_as_the_truth_does(tmp_path):
  """People that it has not seen, with words of another."""
  write_dubbing(tmp_path, 2, seconds=3.0)
  model = Dubber.load()
  for drive in ("audio", "drive_video"):
    (tmp_path / drive).mkdir()
    for name in ("pair_000.mp4", "pair_001.mp4"):
      done = model.dub(tmp_path / "source" / name, tmp_path / drive / name, **{drive: tmp_path / "drive" / name})
      assert done.known, done.notes
  config = load_config("dub.py:evaluate").unlock()
  config.data.truth, config.data.source = str(tmp_path / "truth"), str(tmp_path / "source")
  config.data.systems = tuple((drive, str(tmp_path / drive)) for drive in ("audio", "drive_video"))
  report = dub_scores.run(config, tmp_path / "scores")
  opening = {
    name: system["scores"]["opening_r"]["mean"] for name, system in report["systems"].items() if name != "truth"
  }
  assert min(opening["audio"], opening["drive_video"]) > max(0.4, opening["source"] + 0.2)
