"""Auto-AVSR against its architecture in torch, from a file in the released naming to the logits of every part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from parity.auto_avsr_reference import AutoAvsr  # noqa: E402
from parity.references import TOLERANCE, as_torch, converted, fill, relative_error  # noqa: E402

from synclipmae_jax.convert.donor import abstract_shapes, load  # noqa: E402

SIZES = dict(
  widths=(8, 12, 16, 24),
  vocabulary=11,
  conformer=dict(in_features=24, width=16, depth=2, heads=2, mlp_width=32, kernel=5),
  text_decoder=dict(width=16, depth=2, heads=2, mlp_width=24),
)


@pytest.fixture(autouse=True)
def exact():
  with jax.default_matmul_precision("highest"), torch.no_grad():
    yield


def test_every_part_computes_the_same(tmp_path):
  model = AutoAvsr(**SIZES)
  tensors = fill(model)
  for key in tensors:  # variances are positive
    if key.endswith("running_var"):
      tensors[key] = np.abs(tensors[key]) + 0.5
  fill(model, tensors)
  state = {f"model.{key}": value for key, value in as_torch(tensors).items()}
  torch.save(state, tmp_path / "vsr.pth")
  items, done, _ = converted("auto_avsr", tmp_path / "vsr.pth")
  assert done.sizes == SIZES and not done.lossy and all("num_batches_tracked" in key for key in done.dropped)
  modules = load("auto_avsr").modules(**done.sizes)
  ours = lambda name: modules[name].bind(items[name])

  draw = np.random.RandomState(0)
  crops = draw.normal(size=(2, 7, 40, 40)).astype(np.float32)
  tokens = draw.randint(0, SIZES["vocabulary"], (2, 5))
  features = model.frontend(torch.from_numpy(crops))
  states = model.encoder(model.proj_encoder(features))
  logits = model.decoder(torch.from_numpy(tokens), states)

  length = jnp.full(2, 7)
  found = jax.jit(lambda x: ours("lip_resnet")(x))(jnp.asarray(crops))
  assert relative_error(found, features) < TOLERANCE
  found = jax.jit(lambda x: ours("conformer")(x, length))(jnp.asarray(features.numpy()))
  assert relative_error(found, states) < TOLERANCE
  memory = jnp.asarray(states.numpy())
  found = jax.jit(lambda x: ours("ctc_head")(x))(memory)
  assert relative_error(found, model.ctc.ctc_lo(states).log_softmax(-1)) < TOLERANCE
  found = jax.jit(lambda t, x: ours("text_decoder")(t, x, length))(jnp.asarray(tokens), memory)
  assert relative_error(found, logits) < TOLERANCE


def test_the_released_size():
  sizes = dict(
    widths=(64, 128, 256, 512),
    vocabulary=5_049,
    conformer=dict(in_features=512, width=768, depth=12, heads=12, mlp_width=3072, kernel=31),
    text_decoder=dict(width=768, depth=6, heads=12, mlp_width=3072),
  )
  shapes = abstract_shapes(load("auto_avsr").modules(**sizes))
  count = sum(int(np.prod(shape)) for path, shape in shapes.items() if not path.endswith(("/mean", "/var")))
  assert round(count / 1e6, 2) == 250.38
