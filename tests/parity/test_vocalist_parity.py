"""VocaLiST against its architecture in torch, from a file in the released format to the scores of pairs."""

import jax
import librosa
import numpy as np
import pytest
import scipy.signal

torch = pytest.importorskip("torch")

from parity import sync_references  # noqa: E402
from parity.references import TOLERANCE, as_torch, converted, relative_error  # noqa: E402

from synclipmae_jax.baselines.mel import log_mel  # noqa: E402
from synclipmae_jax.baselines.vocalist import WIDTHS, VocalistJudge  # noqa: E402
from synclipmae_jax.convert.donor import load  # noqa: E402

REDUCED = dict(widths=(8, 16, 24, 32, 64), depth=2)
FULL = dict(widths=WIDTHS, depth=4)


@pytest.fixture(autouse=True)
def exact():
  with jax.default_matmul_precision("highest"), torch.no_grad():
    yield


def windows(count):
  draw = np.random.RandomState(0)
  mel = draw.uniform(-4, 4, (count, 80, 16)).astype(np.float32)
  return mel, draw.uniform(0, 1, (count, 5, 48, 96, 3)).astype(np.float32)


def write(path, tensors, prefix=""):
  state = {f"{prefix}{key}": value for key, value in as_torch(tensors).items()}
  state[f"{prefix}vid_prenet.0.conv_block.1.num_batches_tracked"] = torch.tensor(7)
  torch.save({"state_dict": state, "optimizer": None, "global_step": 7, "global_epoch": 1}, path / "vocalist.pth")
  return path / "vocalist.pth"


def check(sizes, folder, count, **options):
  model = sync_references.Vocalist(**sizes)
  source = write(folder, sync_references.fill(model), **options)
  mel, pictures = windows(count)
  frames = torch.from_numpy(pictures).permute(0, 1, 4, 2, 3).flatten(1, 2)
  heard = torch.from_numpy(mel)[:, None]
  audio, video = model.features(frames, heard)
  if sizes == REDUCED:  # the padding rule of the positions applies: some first channels are zero
    for features in (audio, video):
      assert 0 < (features[..., 0] == 0).float().mean() < 1
  expected = model(frames, heard).numpy()
  items, done, _ = converted("vocalist", source)
  assert done.sizes == sizes and len(done.dropped) == 6
  module = load("vocalist").modules(**done.sizes)["vocalist"]
  params = items["vocalist"]
  ours = jax.jit(lambda params, pictures: module.bind(params).video(pictures))(params, pictures)
  assert relative_error(ours, video) < TOLERANCE
  scores = VocalistJudge(module, params, chunk=len(mel)).scores(mel, pictures)
  error = relative_error(scores, expected)
  print(f"VocaLiST {sizes['widths']}: relative error {error:.1e}")
  assert error < TOLERANCE and np.ptp(expected) > 1e-3


def test_reduced(tmp_path):
  check(REDUCED, tmp_path, 3)


def test_a_file_of_data_parallel_training(tmp_path):
  check(REDUCED, tmp_path, 2, prefix="module.")


def test_full_size_keys_and_shapes():
  with torch.device("meta"):
    model = sync_references.Vocalist(**FULL)
  assert sum(value.numel() for value in model.parameters()) == 80_106_561
  assert model.av_transformer.layers[3].self_attn.in_proj_weight.shape == (1536, 512)


@pytest.mark.parametrize("authors", ["VocaLiST", "LatentSync"])
def test_mel(authors):
  """The arithmetic of test_lrs2.py (torch.stft) and of latentsync/utils/audio.py (a filter of scipy, and librosa)."""
  wave = 0.1 * np.random.RandomState(0).standard_normal(16_000).astype(np.float32)
  wave[4000:8000] = 0
  if authors == "VocaLiST":
    options = dict(preemphasis=0.0, pad_mode="reflect")
    stft = torch.stft(torch.from_numpy(wave), 800, 200, 800, torch.hann_window(800), return_complex=True).numpy()
  else:
    options = dict(preemphasis=0.97, pad_mode="constant")
    stft = librosa.stft(scipy.signal.lfilter([1, -0.97], [1], wave), n_fft=800, hop_length=200, win_length=800)
  mel = librosa.filters.mel(sr=16_000, n_fft=800, n_mels=80, fmin=55, fmax=7600) @ np.abs(stft)
  level = 20 * np.log10(np.maximum(mel, 1e-5)) - 20
  expected = np.clip(8 * (level + 100) / 100 - 4, -4, 4)
  found = log_mel(wave, **options)
  np.testing.assert_allclose(found, expected, atol=2e-4)
  assert found.min() == -4 and found.max() > 0


@pytest.mark.slow
def test_full_size(tmp_path):
  check(FULL, tmp_path, 4)
