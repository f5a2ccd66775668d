"""Converted donors against stored outputs of their torch classes (tests/golden/make.py), without torch."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert.random_weights import random_weights
from safetensors.numpy import save_file

from synclipmae_jax import checkpoints
from synclipmae_jax.convert import donor
from synclipmae_jax.convert.conversion import convert
from synclipmae_jax.models.masking import patchify
from synclipmae_jax.models.wan import vace
from synclipmae_jax.sharding import tree_paths
from synclipmae_jax.train.initialisation import fill

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-5
DIT_TOLERANCE = 2e-5


class Golden:
  """The arrays of one golden file, and `modules` and `items` of a conversion of its weights."""

  def __init__(self, name, folder, *, variances=False, **options):
    with np.load(GOLDEN / f"{name}.npz") as file:
      self.arrays = dict(file)
    meta = json.loads(self.arrays.pop("meta").item())
    source, destination = folder / f"{name}.safetensors", folder / name
    tensors = random_weights({key: tuple(shape) for key, shape in meta["tensors"].items()})
    if variances:
      tensors |= {key: np.abs(value) + np.float32(0.5) for key, value in tensors.items() if key.endswith("running_var")}
    save_file(tensors, source)
    done, _ = convert(name, src=source, dst=destination, **options)
    sizes = {key: value | meta["sizes"][key] if isinstance(value, dict) else meta["sizes"].get(key, value)
             for key, value in done.sizes.items()}  # fmt: skip
    self.modules = functools.partial(donor.load(name).modules, **sizes)
    self.items = {item: checkpoints.load_item(destination, item) for item in done.items}


@pytest.fixture
def golden(tmp_path):
  with jax.default_matmul_precision("highest"):
    yield lambda name, **options: Golden(name, tmp_path, **options)


def assert_close(found, expected, tolerance=TOLERANCE):
  assert found.shape == expected.shape
  error = np.abs(found - expected).max() / np.abs(expected).max()
  assert error < tolerance


def encoded(golden):
  """All tokens except the class token, in the order of the sequence."""
  arrays = golden.arrays
  encoder = golden.modules()["visual_encoder"]
  params = golden.items["visual_encoder"] | {"prompt_tokens": arrays["prompts"]}
  patches = patchify(jnp.asarray(arrays["images"]), 8)
  visible = np.take_along_axis(patches, arrays["indices"][..., None], axis=1)
  run = jax.jit(lambda *args: vars(encoder.bind(params)(*args)))
  tokens = run(visible[None], arrays["indices"][None])
  prompts = np.stack([tokens[name][0] for name in ("identity", "vocal", "ambient")], axis=1)
  return np.concatenate([prompts, tokens["patches"][0]], axis=1)


def test_sapiens(golden):
  """The table of 4 x 4 patches is resized to 6 x 6; a few patches are visible."""
  golden = golden("sapiens", image_size=48)
  assert_close(encoded(golden), golden.arrays["tokens"])


def test_wav2vec2(golden):
  golden = golden("wav2vec2")
  encoder = golden.modules(include_embedding_output=True)["speech_encoder"]
  states = jax.jit(lambda params, waveform: encoder.bind(params)(waveform))
  assert_close(states(golden.items["speech_encoder"], golden.arrays["waveform"]), golden.arrays["states"])


def test_vit_mae(golden):
  """The donor's decoder has no prompt tokens: all leaves that it lacks are zero, so attention to them adds zero."""
  golden = golden("vit_mae")
  arrays = golden.arrays
  assert_close(encoded(golden), arrays["tokens"])

  decoder = golden.modules()["decoder"]
  zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), decoder.abstract)
  params = fill(zeros, dict(tree_paths(golden.items["decoder"])))
  identity, vocal, ambient = (jnp.asarray(arrays["tokens"][None, :, i]) for i in range(3))
  pixels = jax.jit(
    lambda params, patches, indices: decoder.bind(params)(
      patches, indices, identity=identity, ambient=ambient, conditioning=vocal[:, :, None]
    )
  )(params, arrays["tokens"][None, :, 3:], arrays["indices"][None])
  assert_close(pixels[0, :, 0], arrays["pixels"])


def test_wan_vace(golden):
  golden = golden("wan_vace")
  dit, path = (golden.modules()[item] for item in ("dit", "vace"))
  run = jax.jit(lambda params, *args, scale: vace.wan_vace(
    dit.bind(params["dit"]), path.bind(params["vace"]), *args, scale=scale
  ))  # fmt: skip
  inputs = [golden.arrays[name] for name in ("latents", "context", "text", "t")]
  velocity = run(golden.items, *inputs, scale=golden.arrays["scale"])
  assert_close(velocity, golden.arrays["velocity"], DIT_TOLERANCE)


def test_wan_vae(golden):
  golden = golden("wan_vae")
  vae, params = golden.modules()["vae"], golden.items["vae"]
  moments = jax.jit(lambda params, video: vae.bind(params).moments(video))(params, golden.arrays["video"])
  assert_close(moments, golden.arrays["moments"])
  decoded = jax.jit(lambda params, latents: vae.bind(params).decode(latents))(params, golden.arrays["latents"])
  assert_close(decoded, golden.arrays["decoded"])


def test_av_hubert(golden):
  golden = golden("av_hubert", variances=True)
  crops, tokens, states, logits = (golden.arrays[name] for name in ("crops", "tokens", "states", "logits"))
  modules, items = golden.modules(), golden.items
  run = jax.jit(lambda items, crops: modules["av_hubert"].bind(items["av_hubert"])(
    modules["lip_resnet"].bind(items["lip_resnet"])(crops)
  ))  # fmt: skip
  assert_close(run(items, crops), states)
  decoder = modules["text_decoder"]
  length = jnp.full(1, states.shape[1])
  decoded = jax.jit(lambda params, tokens, states: decoder.bind(params)(tokens, states, length))
  assert_close(decoded(items["text_decoder"], tokens, states), logits)
