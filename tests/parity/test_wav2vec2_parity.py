"""All hidden states of the speech encoder against Wav2Vec2Model of transformers, weights from every released format."""

import argparse
import functools
import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert.random_weights import random_weights
from safetensors.numpy import load_file

from synclipmae_jax.convert.conversion import export
from synclipmae_jax.models.functional import Functional
from synclipmae_jax.models.wav2vec2 import ALIGNMENTS, Wav2Vec2, halve_rate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from parity import references  # noqa: E402
from parity.references import TOLERANCE, as_torch, converted, relative_error  # noqa: E402

SIZES = dict(width=32, depth=2, heads=4, mlp_width=64, conv_width=16, pos_kernel=16, pos_groups=4)
FRAMES = 6
G, V = (f"encoder.pos_conv_embed.conv.weight_{name}" for name in "gv")
FAIRSEQ = (
  (r"^masked_spec_embed$", "mask_emb"),
  (r"^feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
  (r"^feature_extractor\.conv_layers\.0\.layer_norm\.", "feature_extractor.conv_layers.0.2."),
  (r"^feature_projection\.layer_norm\.", "layer_norm."),
  (r"^feature_projection\.projection\.", "post_extract_proj."),
  (r"^encoder\.pos_conv_embed\.conv\.", "encoder.pos_conv.0."),
  (r"^encoder\.layers\.(\d+)\.attention\.", r"encoder.layers.\1.self_attn."),
  (r"^encoder\.layers\.(\d+)\.layer_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
  (r"\.feed_forward\.intermediate_dense\.", ".fc1."),
  (r"\.feed_forward\.output_dense\.", ".fc2."),
)


@pytest.fixture(autouse=True)
def exact():
  with jax.default_matmul_precision("highest"), torch.no_grad():
    yield


@pytest.fixture(scope="module")
def released():
  """The model of transformers, and its tensors with the names of the files on the hub."""
  model = transformers.Wav2Vec2Model(references.wav2vec2_config(**SIZES))
  return model, references.hub_weight_norm(references.fill(model))


@functools.cache
def speech_encoder(alignment, **sizes):
  """f(params, waveform) -> all hidden states, [L + 1, N, T, C]."""
  functional = Functional(lambda rngs: Wav2Vec2(**sizes, alignment=alignment, include_embedding_output=True, rngs=rngs))
  run = jax.jit(lambda params, waveform: functional.bind(params)(waveform))
  return lambda params, waveform: np.asarray(run(params, waveform)).transpose(2, 0, 1, 3)


def sound(frames=FRAMES, count=2):
  """Windows with an offset and different levels, as in files."""
  noise = np.random.RandomState(0).standard_normal((count, 640 * frames + 160))
  return (0.1 * noise * np.arange(1, count + 1)[:, None] + 0.02).astype(np.float32)


def expected_states(model, waveform, alignment):
  """All hidden states of the model of transformers, composed of its parts for alignments that it does not have."""
  extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
  heard = extractor(list(waveform), sampling_rate=16_000, return_tensors="pt").input_values
  # `waveform` uses our 8 kHz sound; the other alignments use the window without half of its margin.
  heard = (
    torch.from_numpy(np.array(halve_rate(jnp.asarray(heard.numpy())))) if alignment == "waveform" else heard[:, 40:-40]
  )
  if alignment in ("waveform", "pool2"):
    states = torch.stack(model(heard, output_hidden_states=True).hidden_states)
    return states if alignment == "waveform" else states.unflatten(2, (-1, 2)).mean(3)
  features = model.feature_extractor(heard)  # channels first
  if alignment == "feature":
    features = features.unflatten(2, (-1, 2)).mean(3)
  else:
    frames = features.shape[2] // 2
    features = torch.nn.functional.interpolate(features, size=frames, mode="linear", align_corners=True)
  hidden, _ = model.feature_projection(features.transpose(1, 2))
  states = [model.encoder.layer_norm(hidden + model.encoder.pos_conv_embed(hidden))]
  for layer in model.encoder.layers:
    states.append(layer(states[-1]))
  return torch.stack(states)


def check(params, model, alignment="pool2"):
  expected = expected_states(model, sound(), alignment)
  assert len(expected) == SIZES["depth"] + 1
  assert relative_error(speech_encoder(alignment, **SIZES)(params, sound()), expected) < TOLERANCE


# Released files


def write_hub(path, tensors):
  torch.save(as_torch(tensors), path / "pytorch_model.bin")
  return path


def write_parametrized(path, tensors):
  torch.save(as_torch(references.parametrizations(tensors)), path / "pytorch_model.bin")
  return path


def write_with_head(cls, path, tensors):
  """A model with a head beside `wav2vec2.`, saved by transformers."""
  model = cls(references.wav2vec2_config(**SIZES))
  others = {key: tuple(value.shape) for key, value in model.state_dict().items() if not key.startswith("wav2vec2.")}
  inside = {f"wav2vec2.{key}": value for key, value in references.parametrizations(tensors).items()}
  references.fill(model, random_weights(others) | inside)
  model.save_pretrained(path)
  return path


def write_960h(path, tensors):
  """`-960h`: with an lm_head and the old names of the weight norm, without masked_spec_embed."""
  inside = {f"wav2vec2.{key}": value for key, value in tensors.items() if key != "masked_spec_embed"}
  head = random_weights({"lm_head.weight": (11, 32), "lm_head.bias": (11,)})
  torch.save(as_torch(inside | head), path / "pytorch_model.bin")
  return path


def write_fairseq(path, tensors):
  others = random_weights({
    "quantizer.vars": (1, 8, 4), "quantizer.weight_proj.weight": (8, 16), "quantizer.weight_proj.bias": (8,),
    "project_q.weight": (8, 8), "project_q.bias": (8,), "final_proj.weight": (8, 32), "final_proj.bias": (8,),
  })  # fmt: skip
  state = as_torch(references.named(tensors, *FAIRSEQ) | others)
  torch.save({"args": argparse.Namespace(arch="wav2vec2"), "model": state, "extra_state": {}}, path / "small.pt")
  return path / "small.pt"


def write_finetuned_fairseq(path, tensors):
  inside = {f"w2v_encoder.w2v_model.{key}": value for key, value in references.named(tensors, *FAIRSEQ).items()}
  head = random_weights({"w2v_encoder.proj.weight": (11, 32), "w2v_encoder.proj.bias": (11,)})
  torch.save({"args": argparse.Namespace(arch="wav2vec_ctc"), "model": as_torch(inside | head)}, path / "960h.pt")
  return path / "960h.pt"


FILES = {  # function that writes the file, naming, number of dropped tensors
  "hub": (write_hub, "Hugging Face", 1),
  "parametrizations": (write_parametrized, "Hugging Face", 1),
  "for pretraining": (functools.partial(write_with_head, transformers.Wav2Vec2ForPreTraining), "Hugging Face", 8),
  "for CTC": (functools.partial(write_with_head, transformers.Wav2Vec2ForCTC), "Hugging Face", 3),
  "960h": (write_960h, "Hugging Face", 2),
  "fairseq": (write_fairseq, "fairseq", 8),
  "fairseq, finetuned": (write_finetuned_fairseq, "fairseq", 3),
}


@pytest.mark.parametrize("file", FILES)
def test_every_released_file(file, released, tmp_path):
  model, tensors = released
  write, naming, dropped = FILES[file]
  items, done, _ = converted("wav2vec2", write(tmp_path, tensors))
  assert (done.naming, len(done.dropped)) == (naming, dropped), done.dropped
  assert done.sizes | {"heads": 4} == SIZES
  check(items["speech_encoder"], model)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_every_alignment(alignment, released, tmp_path):
  model, tensors = released
  items, _, _ = converted("wav2vec2", write_hub(tmp_path, tensors))
  check(items["speech_encoder"], model, alignment)


@pytest.mark.parametrize("file", ["hub", "960h", "fairseq"])
def test_round_trip(file, released, tmp_path):
  """Bit for bit except the weight norm, which has the same product. transformers loads the file."""
  model, tensors = released
  source = FILES[file][0](tmp_path, tensors)
  converted("wav2vec2", source)
  (tmp_path / "back").mkdir()
  _, left_out, _ = export("wav2vec2", src=f"{source}.orbax", dst=tmp_path / "back" / "model.safetensors")
  back = load_file(tmp_path / "back" / "model.safetensors")
  assert not left_out and back.keys() == tensors.keys() - {"masked_spec_embed"}
  for key in back.keys() - {G, V}:
    np.testing.assert_array_equal(back[key], tensors[key])
  refolded, folded = (torch._weight_norm(*map(torch.from_numpy, (x[V], x[G])), 2) for x in (back, tensors))
  assert relative_error(refolded, folded) < 1e-6

  model.config.save_pretrained(tmp_path / "back")
  again, report = transformers.Wav2Vec2Model.from_pretrained(tmp_path / "back", output_loading_info=True)
  assert set(report["missing_keys"]) == {"masked_spec_embed"} and not report["unexpected_keys"]
  heard = torch.from_numpy(sound())
  assert relative_error(again.eval()(heard).last_hidden_state, model(heard).last_hidden_state) < TOLERANCE


@pytest.mark.slow
def test_full_size(tmp_path):
  """wav2vec2-base with the names of the hub, saved for pretraining, on 2.5 seconds of sound."""
  model = transformers.Wav2Vec2ForPreTraining(transformers.Wav2Vec2Config())
  references.fill(model)
  tensors = {f"wav2vec2.{key}": value for key, value in model.wav2vec2.state_dict().items()}
  assert (len(tensors), sum(value.numel() for value in tensors.values())) == (211, 94_371_712)
  waveform = sound(62, count=1)
  expected = expected_states(model.wav2vec2, waveform, "pool2").numpy()
  source = tmp_path / "pytorch_model.bin"
  torch.save(references.hub_weight_norm(model.state_dict()), source)
  del model, tensors
  gc.collect()
  items, done, cost = converted("wav2vec2", source)
  source.unlink()
  shutil.rmtree(f"{source}.orbax")
  base = dict(width=768, depth=12, heads=12, mlp_width=3072, conv_width=512, pos_kernel=128, pos_groups=16)
  assert len(done.dropped) == 8 and done.sizes == base
  found = speech_encoder("pool2", **done.sizes)(items["speech_encoder"], waveform)
  assert len(found) == 13
  error = max(map(relative_error, found, expected))
  print(f"wav2vec2-base: relative error {error:.2e}; {cost}")
  assert error < TOLERANCE
