from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from synclipmae_jax.evaluation import pictures
from synclipmae_jax.metrics.sync import ClipTokens, LagState


def read_png(path) -> np.ndarray:
  """Pixels of a PNG; checks that it has a minimum size and is not of one colour."""
  from matplotlib.image import imread

  assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
  image = imread(path)
  assert min(image.shape[:2]) > 200
  assert len(np.unique(image.reshape(-1, image.shape[-1])[::17], axis=0)) > 20
  return image


@pytest.fixture(scope="module")
def clips() -> list[ClipTokens]:
  rng = np.random.default_rng(0)
  made = []
  for i, lag in enumerate((0, 4, None)):
    source = rng.normal(size=(70, 8))
    made.append(ClipTokens(key=f"clip{i}", audio=source[5:65], vocal=source[5 - (lag or 0) :][:60], lag=lag))
  return made


def test_reconstruction(tmp_path):
  rng = np.random.default_rng(1)
  original = rng.integers(0, 255, size=(4, 16, 16, 3), dtype=np.uint8)
  decoded = rng.uniform(-0.2, 1.2, size=original.shape)
  visible = rng.random((4, 16)) < 0.25
  pictures.reconstruction(
    tmp_path / "reconstruction.png",
    original=original,
    uniform_visible=visible,
    face_view=original / 255,
    face_visible=~visible,
    video_driven=decoded,
    audio_driven=decoded[::-1],
    titles=["0.0 s", "0.2 s", "0.4 s", "0.6 s"],
  )
  read_png(tmp_path / "reconstruction.png")
  assert [p.name for p in tmp_path.iterdir()] == ["reconstruction.png"]


def test_visible_patches_are_drawn_at_their_positions():
  visible = np.zeros((1, 4), bool)
  visible[0, 1] = True  # the upper right patch in row order
  mask = pictures._pixels(visible, 6)[0, :, :, 0]
  assert mask[:3, 3:].all() and mask.sum() == 9
  with pytest.raises(ValueError, match="do not tile"):
    pictures._pixels(np.ones((1, 5), bool), 10)


def test_similarity_and_lag(tmp_path, clips):
  state = LagState()
  for clip in clips:
    state = state.merge(LagState.from_clip(clip))
  pictures.similarity(tmp_path / "similarity.png", clips)
  pictures.lag(tmp_path / "lag.png", clips[:2], state=state)
  read_png(tmp_path / "similarity.png")
  read_png(tmp_path / "lag.png")
  pictures.lag(tmp_path / "none.png", [], state=LagState())
  assert not (tmp_path / "none.png").exists()


def test_curves(tmp_path):
  records = [{"step": s, "loss": {"contrast": 5 / (s + 1)}, "lr": 1e-3} for s in range(100)]
  records += [{"step": s, "eval/acc/k5": 0.1 + s / 200} for s in (30, 60, 90)]
  panels = [
    pictures.Panel(title="loss", series={"contrast": "loss/contrast"}, log=True),
    pictures.Panel(title="Acc K=5", series={"model": "eval/acc/k5"}, references={"chance": 0.097, "linear": 0.3}),
    pictures.Panel(title="never logged", series={"absent": "nothing/here"}),
    pictures.Panel(title="learning rate", series={"lr": "lr"}),
  ]
  pictures.curves(tmp_path / "curves.png", records, panels=panels)
  read_png(tmp_path / "curves.png")


def test_nested_and_flat_keys_are_found():
  assert pictures._lookup({"a/b": 1}, "a/b") == 1
  assert pictures._lookup({"a": {"b": {"c": 2}}}, "a/b/c") == 2
  assert pictures._lookup({"a": 3}, "a/b") is None


def test_factor_swap(tmp_path):
  rng = np.random.default_rng(2)
  images = rng.random((4, 5, 12, 12, 3))
  pictures.factor_swap(
    tmp_path / "factor_swap.png", identity_of=images[0], mouth_of=images[1], pose_of=images[2], decoded=images[3]
  )
  read_png(tmp_path / "factor_swap.png")


def test_matplotlib_is_imported_only_when_a_picture_is_drawn():
  code = "import sys, synclipmae_jax.evaluation.pictures; sys.exit('matplotlib' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_confusion_and_class_bars(tmp_path):
  counts = np.array([[30, 2, 0], [5, 9, 1], [0, 0, 0]])  # a class without clips
  pictures.confusion(tmp_path / "confusion.png", counts, ("happy", "sad", "calm"))
  pictures.confusion(tmp_path / "other.png", counts.T, ("happy", "sad", "calm"))
  one, other = (read_png(tmp_path / name) for name in ("confusion.png", "other.png"))
  assert one.shape == other.shape and (one != other).any()
  bars = {f"class {k}": k / 12 for k in range(12)} | {"absent": float("nan")}
  pictures.class_bars(tmp_path / "bars.png", bars, label="AUC", chance=0.5)
  assert read_png(tmp_path / "bars.png").shape[0] > 400
