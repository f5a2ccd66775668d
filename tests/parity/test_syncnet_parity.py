"""SyncNet v2 against a torch re-statement of `S(1024)`: random weights and statistics, through the converter."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from convert.random_weights import random_weights  # noqa: E402
from torch import nn  # noqa: E402

from synclipmae_jax.baselines.mfcc import int16_scale, mfcc  # noqa: E402
from synclipmae_jax.baselines.syncnet import SyncNetTokens  # noqa: E402
from synclipmae_jax.convert.conversion import convert  # noqa: E402
from synclipmae_jax.train import checkpoint  # noqa: E402
from synclipmae_jax.types import EvalClip  # noqa: E402

TOLERANCE = 1e-4
FRAMES = 10


def conv(dims, width_in, width_out, kernel, **options):
  convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
  return [convolution(width_in, width_out, kernel, **options), norm(width_out), nn.ReLU()]


def dense():
  return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))


class S(nn.Module):
  def __init__(self):
    super().__init__()
    same = dict(padding=(0, 1, 1))
    self.netcnnlip = nn.Sequential(
      *conv(3, 3, 96, (5, 7, 7), stride=(1, 2, 2)), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
      *conv(3, 96, 256, (1, 5, 5), stride=(1, 2, 2), **same), nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),
      *conv(3, 256, 256, (1, 3, 3), **same), *conv(3, 256, 256, (1, 3, 3), **same),
      *conv(3, 256, 256, (1, 3, 3), **same), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
      *conv(3, 256, 512, (1, 6, 6)),
    )  # fmt: skip
    self.netcnnaud = nn.Sequential(
      *conv(2, 1, 64, 3, padding=1), nn.MaxPool2d(1, 1),
      *conv(2, 64, 192, 3, padding=1), nn.MaxPool2d(3, (1, 2)),
      *conv(2, 192, 384, 3, padding=1), *conv(2, 384, 256, 3, padding=1),
      *conv(2, 256, 256, 3, padding=1), nn.MaxPool2d(3, 2),
      *conv(2, 256, 512, (5, 4)),
    )  # fmt: skip
    self.netfclip, self.netfcaud = dense(), dense()

  def tokens(self, frames, columns):
    """As the script: every window by itself, BGR as it is, 20 columns from column 4t."""
    pictures = torch.from_numpy(frames[..., ::-1].astype(np.float32)).permute(3, 0, 1, 2)[None]
    heard = torch.from_numpy(columns.T.astype(np.float32))[None, None]
    windows = range(len(frames) - 5)
    lips = torch.cat([self.netfclip(self.netcnnlip(pictures[:, :, t : t + 5]).flatten(1)) for t in windows])
    audio = torch.cat([self.netfcaud(self.netcnnaud(heard[..., 4 * t : 4 * t + 20]).flatten(1)) for t in windows])
    return audio.numpy(), lips.numpy()


@pytest.fixture(scope="module")
def clip():
  random = np.random.default_rng(0)
  return EvalClip(
    key="clip", corpus="noise", identity="0", frames=random.integers(0, 256, (FRAMES, 224, 224, 3), np.uint8),
    waveform=random.normal(0, 0.1, 640 * FRAMES).astype(np.float32), lag=None, truth=None,
    face_box=np.zeros((FRAMES, 4), np.float32), mouth_box=-np.ones((FRAMES, 4), np.float32),
  )  # fmt: skip


def test_released_size(clip, tmp_path):
  model = S()
  assert sum(p.numel() for p in model.parameters()) == 13_631_616
  shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
  weights = random_weights({key: shape for key, shape in shapes.items() if shape})
  weights |= {key: np.abs(value) + 0.3 for key, value in weights.items() if key.endswith("running_var")}
  for tower in ("netcnnlip", "netcnnaud"):  # keeps the size of what random weights make of 0..255 and of MFCC
    weights[f"{tower}.0.weight"] /= 100
  state = {key: torch.from_numpy(value) for key, value in weights.items()}
  state |= {key: torch.tensor(7) for key, shape in shapes.items() if not shape}  # num_batches_tracked
  model.load_state_dict(state)
  model.eval()
  torch.save(state, tmp_path / "syncnet_v2.model")

  done, _ = convert("syncnet", src=tmp_path / "syncnet_v2.model", dst=tmp_path / "item", verify=True)
  assert done.sizes == {"image_size": 224, "scale": 1.0, "width": 1024}
  assert len(done.skipped) == 14  # num_batches_tracked
  tokens = SyncNetTokens(checkpoint.load_item(tmp_path / "item", "syncnet"), **done.sizes)
  with jax.default_matmul_precision("highest"):
    found = tokens.windows(clip)
  with torch.no_grad():
    expected = model.tokens(clip.frames, mfcc(int16_scale(clip.waveform)))
  for ours, theirs in zip(found, expected, strict=True):
    assert ours.shape == theirs.shape == (FRAMES - 5, 1024)
    error = np.abs(ours - theirs).max()
    assert error < TOLERANCE * np.abs(theirs).max()
    assert error < 10 * TOLERANCE * np.ptp(theirs, axis=0).max()  # also beside what tells the windows apart
