"""SyncNet v2 against `S(1024)` in torch: random weights and statistics, through the converter."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from convert.random_weights import random_weights  # noqa: E402
from parity.sync_references import SyncNet  # noqa: E402

from synclipmae_jax import checkpoints  # noqa: E402
from synclipmae_jax.baselines.mfcc import int16_scale, mfcc  # noqa: E402
from synclipmae_jax.baselines.syncnet import SyncNetTokens  # noqa: E402
from synclipmae_jax.convert.conversion import convert  # noqa: E402
from synclipmae_jax.types import EvalClip  # noqa: E402

TOLERANCE = 1e-4
FRAMES = 10


@pytest.fixture(scope="module")
def clip():
  random = np.random.default_rng(0)
  return EvalClip(
    key="clip", corpus="noise", identity="0", frames=random.integers(0, 256, (FRAMES, 224, 224, 3), np.uint8),
    waveform=random.normal(0, 0.1, 640 * FRAMES).astype(np.float32), lag=None, truth=None,
    face_box=np.zeros((FRAMES, 4), np.float32), mouth_box=-np.ones((FRAMES, 4), np.float32),
  )  # fmt: skip


def test_released_size(clip, tmp_path):
  model = SyncNet()
  assert sum(p.numel() for p in model.parameters()) == 13_631_616
  shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
  weights = random_weights({key: shape for key, shape in shapes.items() if shape})
  weights |= {key: np.abs(value) + 0.3 for key, value in weights.items() if key.endswith("running_var")}
  for tower in ("netcnnlip", "netcnnaud"):  # compensates for the large inputs, 0..255 and MFCC
    weights[f"{tower}.0.weight"] /= 100
  state = {key: torch.from_numpy(value) for key, value in weights.items()}
  state |= {key: torch.tensor(7) for key, shape in shapes.items() if not shape}  # num_batches_tracked
  model.load_state_dict(state)
  model.eval()
  torch.save(state, tmp_path / "syncnet_v2.model")

  done, _ = convert("syncnet", src=tmp_path / "syncnet_v2.model", dst=tmp_path / "item", verify=True)
  assert done.sizes == {"image_size": 224, "scale": 1.0, "width": 1024}
  assert len(done.skipped) == 14  # num_batches_tracked
  tokens = SyncNetTokens(checkpoints.load_item(tmp_path / "item", "syncnet"), **done.sizes)
  with jax.default_matmul_precision("highest"):
    found = tokens.windows(clip)
  with torch.no_grad():
    expected = model.tokens(clip.frames, mfcc(int16_scale(clip.waveform)))
  for ours, theirs in zip(found, expected, strict=True):
    assert ours.shape == theirs.shape == (FRAMES - 5, 1024)
    error = np.abs(ours - theirs).max()
    assert error < TOLERANCE * np.abs(theirs).max()
    assert error < 10 * TOLERANCE * np.ptp(theirs, axis=0).max()  # small relative to the differences of windows
