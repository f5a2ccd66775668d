"""The visual encoder against ViT and ViTMAE of transformers, with weights from every released format of Sapiens."""

import gc
import shutil

import jax
import numpy as np
import pytest
from convert.random_weights import random_weights
from safetensors.numpy import load_file

from synclipmae_jax.convert.conversion import export
from synclipmae_jax.models.position import resize_position

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

from parity import references  # noqa: E402
from parity.references import TOLERANCE, as_torch, channels_first, converted, pictures, relative_error  # noqa: E402

SIZES = dict(image_size=64, patch=16, width=32, depth=2, heads=4, mlp_width=64)
OURS = SIZES | {"class_token": True}


@pytest.fixture(autouse=True)
def exact():
  with jax.default_matmul_precision("highest"), torch.no_grad():
    yield


@pytest.fixture(scope="module")
def released():
  """The modules of Sapiens, their tensors, and ViT of transformers with the same tensors."""
  model = references.Sapiens(**SIZES)
  tensors = references.fill(model)
  vit = references.vit(**SIZES)
  references.fill(vit, references.sapiens_as_vit(tensors))
  return model, tensors, vit


@pytest.fixture(scope="module")
def encode():
  return references.visual_encoder("sapiens", OURS)


def prefixed(tensors):
  return {f"backbone.{key}": value for key, value in as_torch(tensors).items()}


def write_clean(path, model, tensors):
  torch.save(as_torch(tensors), path / "sapiens_clean.pth")
  return path / "sapiens_clean.pth"


def write_mmengine(path, model, tensors):
  """A file with the pretraining decoder, the statistics of the pictures, and an optimizer."""
  others = random_weights({
    "neck.decoder_embed.weight": (16, 32), "neck.decoder_blocks.0.attn.qkv.weight": (48, 16), "head.loss.weight": (4,),
    "neck.mask_token": (1, 1, 16), "data_preprocessor.mean": (3, 1, 1),
  })  # fmt: skip
  meta = {"epoch": 1600, "cfg": "model = dict()"}
  value = {"meta": meta, "state_dict": prefixed(tensors) | as_torch(others), "optimizer": {"step": torch.ones(2)}}
  torch.save(value, path / "sapiens.pth")
  return path / "sapiens.pth"


def write_torchscript(path, model, tensors):
  whole = torch.nn.Module()
  whole.backbone = model
  whole.forward = lambda image: model(image)
  traced = torch.jit.trace(whole, channels_first(pictures(1, 64)), check_trace=False)
  traced.save(path / "sapiens_torchscript.pt2")
  return path / "sapiens_torchscript.pt2"


FILES = {"clean": write_clean, "mmengine": write_mmengine, "torchscript": write_torchscript}


@pytest.mark.parametrize("file", FILES)
def test_every_released_file(file, released, encode, tmp_path):
  model, tensors, vit = released
  items, done, _ = converted("sapiens", FILES[file](tmp_path, model, tensors))
  assert done.naming == "Sapiens" and len(done.dropped) == (5 if file == "mmengine" else 0)
  assert done.sizes | {"heads": 4} == OURS
  images = pictures(2, 64)
  expected = vit(channels_first(images)).last_hidden_state
  assert relative_error(encode(items["visual_encoder"], images), expected) < TOLERANCE


def test_the_torch_modules_of_these_tests_equal_vit(released):
  model, _, vit = released
  images = channels_first(pictures(2, 64))
  features = model(images).flatten(2).transpose(1, 2)
  assert relative_error(features, vit(images).last_hidden_state[:, 1:]) < TOLERANCE


def test_a_file_without_a_class_token(released, tmp_path):
  _, tensors, vit = released
  tensors = {key: value for key, value in tensors.items() if key != "cls_token"}
  tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
  items, done, _ = converted("sapiens", write_clean(tmp_path, None, tensors))
  assert done.naming == "Sapiens without a class token"
  images = pictures(2, 64)
  encode = references.visual_encoder("sapiens", OURS | {"class_token": False})
  embeddings = vit.embeddings(channels_first(images))[:, 1:]
  expected = references.through_layers(vit, embeddings)
  assert relative_error(encode(items["visual_encoder"], images), expected) < TOLERANCE


@pytest.mark.parametrize("image_size", [48, 96])
def test_a_resized_table(image_size, released, tmp_path):
  """The tokens equal those of ViT with its resized table. The converter resizes with `resize_position`."""
  model, tensors, vit = released
  source = write_clean(tmp_path, model, tensors)
  items, done, _ = converted("sapiens", source, image_size=image_size)
  encode = references.visual_encoder("sapiens", OURS | {"image_size": image_size})
  images = pictures(2, image_size)
  expected = vit(channels_first(images), interpolate_pos_encoding=True).last_hidden_state
  assert relative_error(encode(items["visual_encoder"], images), expected) < TOLERANCE
  table = resize_position(tensors["pos_embed"][0, 1:], image_size // 16)
  np.testing.assert_array_equal(items["visual_encoder"]["position"], table)


def test_masked(released, encode, tmp_path):
  """The patches that ViTMAE keeps, without prompt tokens, then with prompt tokens before those of ViTMAE."""
  model, tensors, _ = released
  items, _, _ = converted("sapiens", write_clean(tmp_path, model, tensors))
  mae = references.vit_mae(cls=transformers.ViTMAEModel, **SIZES)
  references.fill(mae, references.sapiens_as_vit(tensors))
  images = pictures(3, 64)
  noise = np.random.RandomState(1).uniform(size=(3, 16)).astype(np.float32)
  indices = references.kept(noise)
  inputs = dict(pixel_values=channels_first(images), noise=torch.from_numpy(noise))
  found = encode(items["visual_encoder"], images, indices)
  assert relative_error(found, mae(**inputs).last_hidden_state) < TOLERANCE

  prompts = np.random.RandomState(2).standard_normal((3, 32)).astype(np.float32)
  embeddings = torch.cat([torch.from_numpy(prompts).expand(3, 3, 32), mae.embeddings(**inputs)[0]], dim=1)
  expected = references.through_layers(mae, embeddings)
  found = encode(items["visual_encoder"], images, indices, prompts)
  assert relative_error(found, np.delete(expected, 3, axis=1)) < TOLERANCE


@pytest.mark.parametrize("file", FILES)
def test_round_trip(file, released, tmp_path):
  """Bit for bit, with the names of the cleaned file, which the original modules load."""
  model, tensors, _ = released
  source = FILES[file](tmp_path, model, tensors)
  converted("sapiens", source)
  _, left_out, _ = export("sapiens", src=f"{source}.orbax", dst=tmp_path / "back.safetensors")
  assert not left_out
  back = load_file(tmp_path / "back.safetensors")
  assert back.keys() == tensors.keys()
  for key, value in tensors.items():
    np.testing.assert_array_equal(back[key], value)
  references.Sapiens(**SIZES).load_state_dict(as_torch(back), strict=True)


@pytest.mark.slow
def test_full_size(tmp_path):
  """Sapiens-0.3B from its cleaned file, with its table of 64 x 64 patches resized for pictures of 256 pixels."""
  sizes = SIZES | dict(image_size=1024, width=1024, depth=24, heads=16, mlp_width=4096)
  with torch.device("meta"):
    model = references.Sapiens(**sizes)
  tensors = random_weights({key: tuple(value.shape) for key, value in model.state_dict().items()})
  assert (len(tensors), sum(value.size for value in tensors.values())) == (294, 307_295_232)
  source = write_clean(tmp_path, None, tensors)
  vit = references.vit(**sizes)
  references.fill(vit, references.sapiens_as_vit(tensors))
  del tensors
  images = pictures(2, 256)
  expected = vit(channels_first(images), interpolate_pos_encoding=True).last_hidden_state.numpy()
  del vit
  gc.collect()
  items, done, cost = converted("sapiens", source, image_size=256)
  source.unlink()
  shutil.rmtree(f"{source}.orbax")
  assert done.sizes == sizes | {"class_token": True, "image_size": 256}
  encode = references.visual_encoder("sapiens", done.sizes)
  error = relative_error(encode(items["visual_encoder"], images), expected)
  print(f"Sapiens-0.3B: relative error {error:.2e}; {cost}")
  assert error < TOLERANCE
