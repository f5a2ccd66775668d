"""StableSyncNet against its architecture in torch, from a file in the released format to unit vectors of windows."""

import gc

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from parity import sync_references  # noqa: E402
from parity.references import TOLERANCE, as_torch, converted, relative_error  # noqa: E402

from synclipmae_jax.baselines.stable_syncnet import SYNCNET_16_PIXEL, SYNCNET_16_PIXEL_ATTN  # noqa: E402
from synclipmae_jax.convert.donor import load  # noqa: E402

WIDTHS = {"audio_encoder": (32, 64, 96, 128, 160, 192, 224), "visual_encoder": (32, 64, 96, 96, 128, 160, 224, 224)}


def reduced(config):
  return {name: encoder | {"block_out_channels": WIDTHS[name]} for name, encoder in config.items()}


@pytest.fixture(autouse=True)
def exact():
  with jax.default_matmul_precision("highest"), torch.no_grad():
    yield


def windows(count):
  draw = np.random.RandomState(0)
  mel = draw.uniform(-4, 4, (count, 80, 52)).astype(np.float32)
  return mel, draw.uniform(-1, 1, (count, 16, 128, 256, 3)).astype(np.float32)


def write(path, tensors):
  torch.save({"global_step": 1000, "state_dict": as_torch(tensors)}, path / "stable_syncnet.pt")
  return path / "stable_syncnet.pt"


def check(config, naming, folder, count):
  model = sync_references.StableSyncNet(config)
  source = write(folder, sync_references.fill(model))
  mel, pictures = windows(count)
  expected = (
    model.audio_encoder(torch.from_numpy(mel)[:, None]).numpy(),
    model.visual_encoder(torch.from_numpy(pictures).permute(0, 1, 4, 2, 3).flatten(1, 2)).numpy(),
  )
  del model
  gc.collect()
  items, done, _ = converted("stable_syncnet", source)
  assert (done.naming, done.sizes, done.dropped) == (naming, config, ())
  module = load("stable_syncnet").modules(**done.sizes)["stable_syncnet"]
  params = items["stable_syncnet"]
  audio = jax.jit(lambda params, mel: module.bind(params).audio(mel))(params, mel)
  visual = jax.jit(lambda params, pictures: module.bind(params).visual(pictures))(params, pictures)
  errors = [relative_error(found, want) for found, want in zip((audio, visual), expected, strict=True)]
  print(f"{naming}: relative errors {errors[0]:.1e} (audio), {errors[1]:.1e} (visual)")
  assert max(errors) < TOLERANCE
  np.testing.assert_allclose(np.linalg.norm(visual, axis=1), 1, rtol=1e-5)
  assert audio.shape == visual.shape and not np.allclose(visual[0], visual[1])


@pytest.mark.parametrize(
  ("config", "naming"), [(SYNCNET_16_PIXEL_ATTN, "syncnet_16_pixel_attn"), (SYNCNET_16_PIXEL, "syncnet_16_pixel")]
)
def test_reduced(config, naming, tmp_path):
  check(reduced(config), naming, tmp_path, 2)


def test_full_size_keys_and_shapes():
  with torch.device("meta"):
    model = sync_references.StableSyncNet(SYNCNET_16_PIXEL_ATTN)
  shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
  assert sum(map(np.prod, shapes.values())) == 401_306_080
  assert shapes["visual_encoder.conv_in.weight"] == (64, 48, 3, 3)
  assert shapes["visual_encoder.down_blocks.7.ff.net.0.proj.weight"] == (8192, 1024)


@pytest.mark.slow
def test_full_size(tmp_path):
  check(SYNCNET_16_PIXEL_ATTN, "syncnet_16_pixel_attn", tmp_path, 2)
