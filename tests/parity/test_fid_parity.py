"""InceptionV3 of FID and I3D against their architectures in torch, from files in the released naming to features."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from parity import fid_references, sync_references  # noqa: E402
from parity.references import TOLERANCE, as_torch, converted, relative_error  # noqa: E402

from synclipmae_jax.convert.donor import load  # noqa: E402


@pytest.fixture(autouse=True)
def exact():
  with jax.default_matmul_precision("highest"), torch.no_grad():
    yield


def ours(name, model, folder, inputs, *, dropped):
  torch.save(as_torch(sync_references.fill(model)), folder / f"{name}.pth")
  items, done, _ = converted(name, folder / f"{name}.pth")
  assert set(done.dropped) == dropped and not done.lossy
  module = load(name).modules(**done.sizes)[name]
  return done.sizes, np.asarray(jax.jit(lambda params, x: module.bind(params)(x))(items[name], inputs))


def test_inception(tmp_path):
  """An eighth as wide; one side of the pictures is enlarged and the other made smaller."""
  check_inception(1 / 8, (96, 320), 2, tmp_path)


def check_inception(scale, shape, count, folder):
  model = fid_references.InceptionV3(scale)
  pictures = np.random.RandomState(0).uniform(0, 255, (count, *shape, 3)).astype(np.float32)
  sizes, found = ours("inception", model, folder, pictures, dropped={"fc.weight", "fc.bias"})
  expected = model(torch.from_numpy(pictures / 255).permute(0, 3, 1, 2))
  error = relative_error(found, expected)
  print(f"InceptionV3 x {scale:g}: relative error {error:.1e}")
  assert sizes == {"scale": scale} and error < TOLERANCE and np.ptp(found, axis=0).max() > 1e-4 * found.max()


def test_i3d(tmp_path):
  """An eighth as wide; the numbers of frames on the way are 18, 9, 5 and 3, padded on one side or on both."""
  check_i3d(1 / 8, 40, 18, tmp_path)


def check_i3d(scale, classes, frames, folder):
  model = fid_references.I3D(classes, scale)
  clips = np.random.RandomState(1).uniform(0, 255, (1, frames, 224, 224, 3)).astype(np.float32)
  sizes, found = ours("i3d", model, folder, clips, dropped=set())
  expected = model(torch.from_numpy(clips / 127.5 - 1).permute(0, 4, 1, 2, 3)).mean(2)
  error = relative_error(found, expected)
  print(f"I3D x {scale:g}, {frames} frames: relative error {error:.1e}")
  assert sizes == {"classes": classes, "scale": scale} and error < TOLERANCE


def test_full_size_keys_and_shapes():
  """The released files: 472 tensors of 94 convolutions and a classifier; 57 convolutions with batch norm, and one."""
  with torch.device("meta"):
    models = {"inception": fid_references.InceptionV3(), "i3d": fid_references.I3D()}
  for name, count, key, shape in (
    ("inception", 472, "Mixed_6c.branch7x7dbl_3.conv.weight", (160, 160, 1, 7)),
    ("i3d", 57 * 5 + 2, "Mixed_4f.b1b.conv3d.weight", (320, 160, 3, 3, 3)),
  ):
    shapes = {k: tuple(x.shape) for k, x in models[name].state_dict().items() if "num_batches" not in k}
    assert len(shapes) == count and shapes[key] == shape
    rules = {rule.source for rule in load(name).namings[0].rules}
    assert rules == {k for k in shapes if not k.startswith("fc.")}
