from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from data.footage import clicks, numbered, write_video

from synclipmae_jax.apps import cli
from synclipmae_jax.checkpoints import save_items
from synclipmae_jax.convert import donor

COLUMNS = {"lse_d", "lse_c", "lse_lag", "lse_d_masked", "lse_c_masked", "lse_lag_masked"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A SyncNet of small random weights, and a video of two seconds."""
  root = tmp_path_factory.mktemp("lse")
  draw = np.random.RandomState(0)
  module = donor.load("syncnet").modules(image_size=51, scale=1 / 16, width=8)["syncnet"]
  fill = lambda leaf: np.abs(0.3 * draw.standard_normal(leaf.shape)).astype(np.float32) + 0.01
  save_items(root / "syncnet", {"syncnet": jax.tree.map(fill, module.abstract)}, {})
  write_video(root / "video.mp4", [numbered(i) for i in range(50)], sound=clicks(2, [0.5, 1.0], noise=0.1))
  (root / "text.mp4").write_text("no video")
  return root


def lse(place, *videos, capsys):
  options = ["--syncnet", str(place / "syncnet"), "--faces=full_frame", "--size=64", "--json"]
  status = cli.main(["lse", *(str(place / video) for video in videos), *options])
  out, err = capsys.readouterr()
  return status, json.loads(out) if out else None, err


def test_a_file_has_its_numbers_and_a_broken_one_beside_it_a_sentence(place, capsys):
  status, (found, broken), err = lse(place, "video.mp4", "text.mp4", capsys=capsys)
  assert status == 1 and "text.mp4" in err and "Traceback" not in err and "error" in broken
  assert found["clips"] == 1 and found.keys() == COLUMNS | {"file", "clips"}
  assert found["lse_d"] > 0 and found["lse_c"] >= 0 and -15 <= found["lse_lag"] <= 15


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    ((), "name the weights to measure with"),
    (("--syncnet", "nowhere"), "no complete checkpoint in"),
    (("--stable-syncnet", "syncnet"), "no item 'stable_syncnet'"),
  ],
)
def test_without_weights_there_is_one_sentence(place, capsys, monkeypatch, arguments, sentence):
  monkeypatch.chdir(place)
  assert cli.main(["lse", "video.mp4", *arguments]) == 2
  err = capsys.readouterr().err
  assert err.startswith("synclipmae lse: ") and sentence in err and len(err.strip().splitlines()) == 1


def test_help_defines_what_is_printed(capsys):
  with pytest.raises(SystemExit):
    cli.main(["lse", "--help"])
  out = capsys.readouterr().out
  assert "LSE-D = min_l D(l)" in out and "stable_lse_cosine" in out
