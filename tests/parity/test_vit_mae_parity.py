"""The visual encoder and the decoder against ViTMAE of transformers, with weights from every released format.

Our decoder has cross-attention to prompt tokens, which the donor does not have, and no class token. With a
cross-attention that adds zero it equals the decoder of the donor on the patch tokens without the class token.
"""

import shutil

import jax
import numpy as np
import pytest
from convert.random_weights import random_weights
from safetensors.numpy import load_file

from synclipmae_jax.convert.conversion import export

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from parity import references  # noqa: E402
from parity.references import TOLERANCE, as_torch, channels_first, converted, pictures, relative_error  # noqa: E402

DECODER = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
SIZES = dict(image_size=32, patch=8, width=32, depth=2, heads=4, mlp_width=64)
ENCODER = SIZES | {"class_token": True}
OUR_DECODER = dict(grid=4, patch=8, token_width=32, width=16, depth=2, heads=2, mlp_width=32)


@pytest.fixture(autouse=True)
def exact():
  with jax.default_matmul_precision("highest"), torch.no_grad():
    yield


@pytest.fixture(scope="module")
def released():
  """The model of transformers, and its tensors with their names in memory."""
  model = references.vit_mae(decoder=DECODER, **SIZES)
  return model, references.fill(model)


@pytest.fixture(scope="module")
def encode():
  return references.visual_encoder("vit_mae", ENCODER)


@pytest.fixture(scope="module")
def decode():
  return references.patch_decoder(**OUR_DECODER)


def encoder_only(tensors):
  return {key.removeprefix("vit."): value for key, value in tensors.items() if key.startswith("vit.")}


def saved_by_transformers(path, model, tensors):
  model.save_pretrained(path / "saved")
  keys = load_file(path / "saved" / "model.safetensors")
  assert any(key.startswith("decoder.decoder_encoder.layer.0.") for key in keys)
  return path / "saved"


def torch_file(name, make):
  def write(path, model, tensors):
    torch.save(make(tensors), path / name)
    return path / name

  return write


HUB = lambda tensors: as_torch(references.hub_names(tensors))
ORIGINAL = lambda tensors: as_torch(references.original_mae_names(tensors))
FILES = {  # function that writes the file, naming
  "hub": (torch_file("pytorch_model.bin", HUB), "Hugging Face"),
  "in memory": (torch_file("model.pt", as_torch), "Hugging Face"),
  "saved by transformers 5": (saved_by_transformers, "Hugging Face"),
  "hub, encoder only": (
    torch_file("pytorch_model.bin", lambda tensors: HUB(encoder_only(tensors))), "Hugging Face, encoder only"
  ),
  "in memory, encoder only": (
    torch_file("model.pt", lambda tensors: as_torch(encoder_only(tensors))), "Hugging Face, encoder only"
  ),
  "original": (torch_file("mae.pth", ORIGINAL), "original"),
  "original, wrapped": (torch_file("mae.pth", lambda tensors: {"model": ORIGINAL(tensors)}), "original"),
  "original, encoder only": (
    torch_file("mae_pretrain.pth", lambda tensors: {"model": ORIGINAL(encoder_only(tensors))}), "original, encoder only"
  ),
}  # fmt: skip


def seen():
  """Pictures, the noise of ViTMAE for them, and the patches that it keeps."""
  noise = np.random.RandomState(1).uniform(size=(3, 16)).astype(np.float32)
  return pictures(3, 32), noise, references.kept(noise)


@pytest.mark.parametrize("file", FILES)
def test_every_released_file(file, released, encode, decode, tmp_path):
  model, tensors = released
  write, naming = FILES[file]
  items, done, _ = converted("vit_mae", write(tmp_path, model, tensors))
  assert (done.naming, done.dropped) == (naming, ())
  whole = "only" not in naming
  assert items.keys() == ({"visual_encoder", "decoder"} if whole else {"visual_encoder"})
  sizes = dict(done.sizes)
  assert not whole or sizes.pop("decoder") | {"heads": 2} == OUR_DECODER
  assert sizes | {"heads": 4} == ENCODER

  images, noise, indices = seen()
  encoded = model.vit(channels_first(images), noise=torch.from_numpy(noise))
  found = encode(items["visual_encoder"], images, indices)
  assert relative_error(found, encoded.last_hidden_state) < TOLERANCE
  if whole:
    tokens = encoded.last_hidden_state[:, 1:]
    expected = references.decoded_patches(model, tokens, encoded.ids_restore)
    assert relative_error(decode(items["decoder"], tokens.numpy(), indices), expected) < TOLERANCE


def test_prompt_tokens_before_the_donors(released, encode, tmp_path):
  model, tensors = released
  items, _, _ = converted("vit_mae", FILES["hub"][0](tmp_path, model, tensors))
  images, noise, indices = seen()
  prompts = np.random.RandomState(2).standard_normal((3, 32)).astype(np.float32)
  embeddings, _, _ = model.vit.embeddings(channels_first(images), noise=torch.from_numpy(noise))
  embeddings = torch.cat([torch.from_numpy(prompts).expand(3, 3, 32), embeddings], dim=1)
  expected = np.delete(references.through_layers(model.vit, embeddings), 3, axis=1)
  assert relative_error(encode(items["visual_encoder"], images, indices, prompts), expected) < TOLERANCE


@pytest.mark.parametrize("file", FILES)
def test_round_trip(file, released, tmp_path):
  """Bit for bit, with the released names of the naming of the file.

  The first row of the decoder's table is zero, because our decoder does not have it.
  """
  model, tensors = released
  write, naming = FILES[file]
  source = write(tmp_path, model, tensors)
  converted("vit_mae", source)
  (tmp_path / "back").mkdir()
  _, left_out, _ = export("vit_mae", src=f"{source}.orbax", dst=tmp_path / "back" / "model.safetensors")
  back = load_file(tmp_path / "back" / "model.safetensors")
  released_names = references.hub_names if naming.startswith("Hugging") else references.original_mae_names
  kept = tensors if "only" not in naming else {key: x for key, x in tensors.items() if key.startswith("vit.")}
  expected = released_names(kept)
  assert not left_out and back.keys() == expected.keys()
  for key, value in expected.items():
    if key.endswith("decoder_pos_embed"):
      np.testing.assert_array_equal(back[key][:, 1:], value[:, 1:])
      assert not back[key][:, 0].any()
    else:
      np.testing.assert_array_equal(back[key], value)
  if naming == "Hugging Face":
    model.config.save_pretrained(tmp_path / "back")
    _, report = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_the_head_of_a_fine_tuned_original_is_dropped(released, tmp_path):
  model, tensors = released
  head = random_weights({"head.weight": (5, 32), "head.bias": (5,)})
  torch.save({"model": ORIGINAL(encoder_only(tensors)) | as_torch(head)}, tmp_path / "mae.pth")
  _, done, _ = converted("vit_mae", tmp_path / "mae.pth")
  assert done.dropped == ("head.weight", "head.bias")


@pytest.mark.slow
def test_base(tmp_path):
  """ViTMAE-base with the names of the hub and a quarter of the patches, as in its pretraining."""
  decoder = dict(hidden_size=512, num_hidden_layers=8, num_attention_heads=16, intermediate_size=2048)
  sizes = dict(image_size=224, patch=16, width=768, depth=12, heads=12, mlp_width=3072)
  model = references.vit_mae(decoder=decoder, **sizes)
  tensors = references.fill(model)
  assert sum(value.size for value in tensors.values()) == 111_907_840
  images = pictures(2, 224)
  noise = np.random.RandomState(1).uniform(size=(2, 196)).astype(np.float32)
  encoded = model.vit(channels_first(images), noise=torch.from_numpy(noise))
  tokens = encoded.last_hidden_state[:, 1:]
  expected = references.decoded_patches(model, tokens, encoded.ids_restore)
  source = FILES["hub"][0](tmp_path, model, tensors)
  del model, tensors
  items, done, cost = converted("vit_mae", source)
  source.unlink()
  shutil.rmtree(f"{source}.orbax")
  ours = dict(done.sizes)
  decode = references.patch_decoder(**ours.pop("decoder"))
  encode = references.visual_encoder("vit_mae", ours)
  indices = references.kept(noise)
  errors = (
    relative_error(encode(items["visual_encoder"], images, indices), encoded.last_hidden_state),
    relative_error(decode(items["decoder"], tokens.numpy(), indices), expected),
  )
  print(f"ViTMAE-base: relative errors {errors[0]:.2e} (encoder), {errors[1]:.2e} (decoder); {cost}")
  assert max(errors) < TOLERANCE
