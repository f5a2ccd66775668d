"""VideoMAE and MARLIN: every tensor of a released file is converted and exported bit for bit."""

import json

import numpy as np
import pytest
from convert.random_weights import donor_weights
from safetensors.numpy import load_file, save_file

from synclipmae_jax import checkpoints
from synclipmae_jax.convert.__main__ import main
from synclipmae_jax.convert.conversion import convert, export
from synclipmae_jax.convert.donor import load
from synclipmae_jax.types import InputError

BLOCKS = dict(depth=2, heads=2, mlp_width=256)
MARLIN = dict(patch=8, epsilon=1e-5, position_table=True)
VIDEOMAE = dict(patch=8, epsilon=1e-6, position_table=False)


def sizes_of(name, image_size, *, decoder):
  shared = MARLIN if name == "marlin" else VIDEOMAE
  sizes = {"encoder": shared | BLOCKS | dict(image_size=image_size, frames=16, width=128, normalise=name == "videomae")}
  if decoder:
    tubes = 8 * (image_size // 8) ** 2
    sizes["decoder"] = shared | BLOCKS | dict(tubes=tubes, token_width=128, width=64, heads=1, mlp_width=128)
  return sizes


NAMINGS = [(name, naming.name) for name in ("videomae", "marlin") for naming in load(name).namings]


def written(name, naming):
  """(tensors with random values, the sizes that the converter should find)."""
  names = [each.name for each in load(name).namings]
  sizes = sizes_of(name, 224 if name == "videomae" else 32, decoder="," not in naming)
  return donor_weights(name, sizes, names.index(naming)), sizes


@pytest.mark.parametrize(("name", "naming"), NAMINGS)
def test_conversion_and_export_are_exact(name, naming, tmp_path, capsys):
  tensors, sizes = written(name, naming)
  source = tmp_path / "source.safetensors"
  extra = {"original, fine-tuned": "head.weight", "Hugging Face, fine-tuned": "classifier.bias"}.get(naming)
  save_file(tensors | ({extra: np.ones((3,), np.float32)} if extra else {}), source)
  assert main(["inspect", str(source), "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found["donor"], found["naming"], found["missing"]) == (name, naming, [])
  assert found["sizes"] == sizes

  done, _ = convert(name, src=source, dst=tmp_path / "item", verify=True)
  assert (done.naming, done.sizes, done.lossy) == (naming, sizes, ())
  assert list(done.dropped) == ([extra] if extra else [])
  assert list(done.items) == [f"video_{part}" for part in sizes]
  bias = checkpoints.load_item(tmp_path / "item", "video_encoder")["blocks"]["attention"]["qkv"]["bias"]
  assert not bias[:, 128:256].any() and bias[:, :128].all() and bias[:, 256:].all()  # keys have none
  export(name, src=tmp_path / "item", dst=tmp_path / "back.safetensors")
  back = load_file(tmp_path / "back.safetensors")
  assert back.keys() == tensors.keys()
  assert all(np.array_equal(back[key], tensors[key]) for key in tensors)


def test_keys_of_the_released_files():
  """A few keys, from the authors' modules and those of transformers."""
  for (name, naming), keys in {
    ("videomae", "original"): {
      "encoder.patch_embed.proj.weight": (128, 3, 2, 8, 8),
      "encoder.blocks.1.attn.qkv.weight": (384, 128),
      "encoder.blocks.0.attn.q_bias": (128,),
      "encoder_to_decoder.weight": (64, 128),
      "mask_token": (1, 1, 64),
      "decoder.blocks.1.mlp.fc2.weight": (64, 128),
      "decoder.head.bias": (384,),
    },
    ("videomae", "original, fine-tuned"): {"blocks.0.attn.v_bias": (128,), "fc_norm.weight": (128,)},
    ("videomae", "Hugging Face"): {
      "videomae.embeddings.patch_embeddings.projection.weight": (128, 3, 2, 8, 8),
      "videomae.encoder.layer.0.attention.attention.query.weight": (128, 128),
      "videomae.encoder.layer.1.output.dense.weight": (128, 256),
      "decoder.decoder_layers.0.attention.output.dense.weight": (64, 64),
    },
    ("marlin", "MARLIN"): {
      "encoder.patch_embedding.projection.bias": (128,),
      "encoder.pos_embedding.emb": (1, 128, 128),
      "encoder.blocks.0.mlp.layers.1.linear.weight": (128, 256),
      "enc_dec_proj.weight": (64, 128),
      "decoder.mask_token": (1, 1, 64),
    },
  }.items():
    tensors, _ = written(name, naming)
    short = {"blocks.0.attn.v_bias": "encoder.blocks.0.attn.v_bias", "fc_norm.weight": "encoder.fc_norm.weight"}
    for key, shape in keys.items():
      assert tensors[short.get(key, key) if "fine" in naming else key].shape == shape, key


@pytest.mark.parametrize(
  ("name", "naming", "rename"),
  [
    ("videomae", "original, fine-tuned", lambda key: key.removeprefix("encoder.")),
    ("videomae", "Hugging Face", lambda key: key.replace("query.bias", "q_bias").replace("value.bias", "v_bias")),
    ("videomae", "Hugging Face, encoder only", lambda key: key.removeprefix("videomae.")),
    ("marlin", "MARLIN, encoder only", lambda key: f"marlin.{key}"),
  ],
)
def test_other_names_of_released_files(name, naming, rename, tmp_path):
  """Names as on the Hugging Face hub, in bare models and of classifiers."""
  tensors, _ = written(name, naming)
  renamed = {rename(key): value for key, value in tensors.items()}
  assert renamed.keys() != tensors.keys()
  save_file(renamed, tmp_path / "source.safetensors")
  done, _ = convert(name, src=tmp_path / "source.safetensors", dst=tmp_path / "item", verify=True)
  assert done.naming == naming and not done.dropped


@pytest.mark.parametrize(("name", "naming"), [("videomae", "original"), ("marlin", "MARLIN")])
def test_what_is_missing_or_left_over_is_named(name, naming, tmp_path):
  tensors, _ = written(name, naming)
  value = tensors.pop("encoder.blocks.1.attn.v_bias")
  save_file(tensors | {"encoder.blocks.1.attn.k_bias": value}, tmp_path / "source.safetensors")
  with pytest.raises(InputError) as error:
    convert(name, src=tmp_path / "source.safetensors", dst=tmp_path / "item")
  said = str(error.value)
  assert "missing in the file (1):\n    encoder.blocks.1.attn.v_bias" in said
  assert "only in the file (1):\n    encoder.blocks.1.attn.k_bias" in said
  assert not (tmp_path / "item").exists()


def test_each_is_told_from_the_other(tmp_path):
  save_file(written("marlin", "MARLIN")[0], tmp_path / "source.safetensors")
  with pytest.raises(InputError, match="its keys are those of MARLIN .*use `convert marlin`"):
    convert("videomae", src=tmp_path / "source.safetensors", dst=tmp_path / "item")
