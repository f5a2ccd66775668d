"""Writes the golden files: outputs of the donors' torch classes with random weights, at tiny size.

    python tests/golden/make.py        (needs torch, transformers and diffusers; seconds on a CPU)

Each `<donor>.npz` holds `meta` (JSON: the shape of every tensor by its name in a released file, from which
tests/convert/random_weights.py makes the tensors again, and `sizes` that shapes do not show), the inputs, and the
outputs of the reference. tests/convert/test_golden.py compares this package with them, without torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import diffusers  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from convert.random_weights import random_weights  # noqa: E402
from parity import av_hubert_reference, references  # noqa: E402

from synclipmae_jax.models.wav2vec2 import halve_rate  # noqa: E402


def numbers(seed: int, *shape: int) -> np.ndarray:
  return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def write(name: str, tensors: Mapping[str, np.ndarray], arrays: Mapping[str, Any], **sizes: Any) -> None:
  meta = {"tensors": {key: list(value.shape) for key, value in tensors.items()}, "sizes": sizes}
  arrays = {key: np.asarray(value) for key, value in arrays.items()}
  np.savez_compressed(HERE / f"{name}.npz", meta=np.array(json.dumps(meta)), **arrays)
  print(f"{name}.npz: {len(tensors)} tensors, {(HERE / f'{name}.npz').stat().st_size / 1000:.0f} kB")


def fill(model: torch.nn.Module, released: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, np.ndarray]:
  """Fills the model with random weights seeded by the `released` names of its tensors; returns them by those names."""
  state = model.state_dict()
  names = released({key: key for key in state})  # released -> in memory
  tensors = random_weights({key: tuple(state[name].shape) for key, name in names.items()})
  references.fill(model, {name: tensors[key] for key, name in names.items()})
  return tensors


def with_prompts(model: torch.nn.Module, embeddings: torch.Tensor, prompts: np.ndarray) -> np.ndarray:
  """Encoded tokens without the class token, with three prompt tokens first."""
  prompts = torch.from_numpy(prompts).expand(len(embeddings), -1, -1)
  return np.delete(references.through_layers(model, torch.cat([prompts, embeddings], dim=1)), 3, axis=1)


def sapiens() -> None:
  sizes = dict(image_size=32, patch=8, width=32, depth=2, heads=4, mlp_width=64)
  tensors = references.fill(references.Sapiens(**sizes))
  model = references.vit(**sizes)
  references.fill(model, references.sapiens_as_vit(tensors))
  images, prompts = references.pictures(1, 48), numbers(1, 3, 32)
  embeddings = model.embeddings(references.channels_first(images), interpolate_pos_encoding=True)
  indices = np.array([[34, 3, 19, 0, 12]])
  visible = embeddings[:, [0, *(1 + indices[0])]]
  encoded = with_prompts(model, visible, prompts)
  write("sapiens", tensors, dict(images=images, prompts=prompts, indices=indices, tokens=encoded), heads=4)


def wav2vec2() -> None:
  sizes = dict(width=32, depth=2, heads=4, mlp_width=64, conv_width=16, pos_kernel=16, pos_groups=4)
  model = transformers.Wav2Vec2Model(references.wav2vec2_config(**sizes))
  tensors = fill(model, references.hub_weight_norm)
  waveform = 0.1 * numbers(0, 1, 640 * 4 + 160)
  extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
  heard = extractor(list(waveform), sampling_rate=16_000, return_tensors="pt").input_values
  heard = torch.from_numpy(np.array(halve_rate(heard.numpy())))
  states = torch.stack(model(heard, output_hidden_states=True).hidden_states, dim=2)
  write("wav2vec2", tensors, dict(waveform=waveform, states=states), heads=4)


def vit_mae() -> None:
  sizes = dict(image_size=32, patch=8, width=32, depth=2, heads=4, mlp_width=64)
  decoder = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
  model = references.vit_mae(decoder=decoder, **sizes)
  tensors = fill(model, references.hub_names)
  images, prompts = references.pictures(1, 32), numbers(1, 3, 32)
  noise = np.random.RandomState(2).uniform(size=(1, 16)).astype(np.float32)
  embeddings, _, ids_restore = model.vit.embeddings(references.channels_first(images), noise=torch.from_numpy(noise))
  tokens = with_prompts(model.vit, embeddings, prompts)
  write(
    "vit_mae", tensors,
    dict(
      images=images, prompts=prompts, indices=references.kept(noise), tokens=tokens,
      pixels=references.decoded_patches(model, torch.from_numpy(tokens[:, 3:]), ids_restore),
    ),
    heads=4, decoder=dict(heads=2),
  )  # fmt: skip


def wan_vace() -> None:
  model = diffusers.WanVACETransformer3DModel(
    num_attention_heads=2, attention_head_dim=12, ffn_dim=32, num_layers=4, vace_layers=[0, 2], text_dim=32
  )
  tensors = references.fill(model)
  latents, context, text = numbers(0, 1, 2, 4, 6, 16), numbers(1, 1, 2, 4, 6, 96), numbers(2, 1, 5, 32)
  t, scale = np.array([123.456], np.float32), np.array([1.0, 0.6], np.float32)
  channels_first = lambda x: torch.from_numpy(np.moveaxis(x, -1, 1).copy())
  velocity = model(
    channels_first(latents), torch.from_numpy(t), torch.from_numpy(np.pad(text, ((0, 0), (0, 512 - 5), (0, 0)))),
    control_hidden_states=channels_first(context), control_hidden_states_scale=torch.from_numpy(scale),
  ).sample.moveaxis(1, -1)  # fmt: skip
  write(
    "wan_vace", tensors,
    dict(latents=latents, context=context, text=text, t=t, scale=scale, velocity=velocity),
    heads=2,
  )  # fmt: skip


def wan_vae() -> None:
  model = diffusers.AutoencoderKLWan(base_dim=4, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
  tensors = references.fill(model)
  video = np.random.RandomState(0).uniform(-1, 1, (1, 5, 16, 16, 3)).astype(np.float32)
  latents = numbers(1, 1, 2, 2, 2, 4)
  channels_first = lambda x: torch.from_numpy(np.moveaxis(x, -1, 1).copy())
  moments = model.encode(channels_first(video)).latent_dist.parameters.moveaxis(1, -1)
  decoded = model.decode(channels_first(latents)).sample.moveaxis(1, -1)
  assert (decoded.abs() == 1).float().mean() < 0.1  # the output is clipped
  write("wan_vae", tensors, dict(video=video, latents=latents, moments=moments, decoded=decoded))


def av_hubert() -> None:
  encoder = dict(in_features=12, sound=6, width=16, depth=2, heads=1, mlp_width=24, pos_kernel=8, pos_groups=4)
  decoder = dict(vocabulary=9, width=16, depth=1, heads=4, mlp_width=24)
  model = av_hubert_reference.SequenceToSequence(widths=(4, 6, 8, 12), encoder=encoder, decoder=decoder)
  tensors = references.fill(model)
  for key in tensors:  # variances are positive
    if key.endswith("running_var"):
      tensors[key] = np.abs(tensors[key]) + 0.5
  references.fill(model, tensors)
  crops, tokens = numbers(0, 1, 5, 24, 24), np.array([[2, 5, 3, 8]])
  theirs = model.encoder.w2v_model
  states = theirs(theirs.feature_extractor_video.resnet(torch.from_numpy(crops)))
  logits = model.decoder(torch.from_numpy(tokens), states)
  write(
    "av_hubert", tensors, dict(crops=crops, tokens=tokens, states=states, logits=logits), encoder={}, decoder={}
  )  # fmt: skip


if __name__ == "__main__":
  torch.set_num_threads(1)  # the same sums in the same order
  with torch.no_grad(), jax.default_matmul_precision("highest"):
    for make in (sapiens, wav2vec2, vit_mae, wan_vace, wan_vae, av_hubert):
      make()
