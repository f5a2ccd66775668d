"""The resized positional table against torch, and against the resizing of ViT in transformers."""

import numpy as np
import pytest

from synclipmae_jax.models.position import resize_position, sincos_position

torch = pytest.importorskip("torch")


def interpolate(table, new):
  """The resizing of Sapiens: mmpretrain, utils/embed.py, `resize_pos_embed`."""
  old = round(len(table) ** 0.5)
  square = torch.from_numpy(table).reshape(1, old, old, -1).permute(0, 3, 1, 2)
  resized = torch.nn.functional.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
  return resized.permute(0, 2, 3, 1).reshape(new * new, -1).numpy()


@pytest.mark.parametrize(("old", "new"), [(64, 14), (64, 16), (64, 24), (14, 16), (16, 64)])
def test_sapiens_table(old, new):
  table = sincos_position(old, 1024, rows_first=True)
  np.testing.assert_allclose(resize_position(table, new), interpolate(table, new), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("old", "new"), [(9, 4), (3, 8)])
def test_any_table(old, new):
  table = np.random.RandomState(0).normal(size=(old * old, 7)).astype(np.float32)
  np.testing.assert_allclose(resize_position(table, new), interpolate(table, new), atol=2e-6, rtol=0)


def test_transformers_vit():
  transformers = pytest.importorskip("transformers")
  from transformers.models.vit.modeling_vit import ViTEmbeddings

  config = transformers.ViTConfig(hidden_size=8, image_size=32, patch_size=4)
  embeddings = ViTEmbeddings(config)
  table = np.random.RandomState(1).normal(size=(1, 65, 8)).astype(np.float32)
  embeddings.position_embeddings.data = torch.from_numpy(table)
  with torch.no_grad():
    resized = embeddings.interpolate_pos_encoding(torch.zeros(1, 26, 8), 20, 20)[0].numpy()
  np.testing.assert_array_equal(resized[:1], table[0, :1])
  np.testing.assert_allclose(resize_position(table[0, 1:], 5), resized[1:], atol=2e-6, rtol=0)
