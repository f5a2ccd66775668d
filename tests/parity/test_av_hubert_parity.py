"""AV-HuBERT against its architecture in torch, from files in the released namings to the logits of every part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from parity import av_hubert_reference as reference  # noqa: E402
from parity.references import TOLERANCE, as_torch, converted, fill, relative_error  # noqa: E402

from synclipmae_jax.convert.donor import abstract_shapes, load  # noqa: E402

ENCODER = dict(
  in_features=24, sound=10, width=32, depth=2, heads=1, mlp_width=48, pos_kernel=8, pos_groups=4
)  # heads are as wide as those of the released sizes
WIDTHS = (8, 12, 16, 24)
DECODER = dict(vocabulary=11, width=32, depth=2, heads=4, mlp_width=24)


@pytest.fixture(autouse=True)
def exact():
  with jax.default_matmul_precision("highest"), torch.no_grad():
    yield


def released(model):
  """Random weights of the model, variances positive, as a file of fairseq has them."""
  tensors = fill(model)
  for key in tensors:
    if key.endswith("running_var"):
      tensors[key] = np.abs(tensors[key]) + 0.5
  fill(model, tensors)
  return as_torch(tensors)


def check_encoder(theirs, modules, items):
  """Returns the states of clips, from crops and sound to the last norm, that both sides compute."""
  draw = np.random.RandomState(0)
  crops = draw.normal(size=(2, 7, 40, 40)).astype(np.float32)
  sound = draw.normal(size=(2, 7, ENCODER["sound"])).astype(np.float32)
  ours = lambda name: modules[name].bind(items[name])
  features = theirs.feature_extractor_video.resnet(torch.from_numpy(crops))
  found = jax.jit(lambda x: ours("lip_resnet")(x))(jnp.asarray(crops))
  assert relative_error(found, features) < TOLERANCE
  lips = jnp.asarray(features.numpy())
  both = theirs(features, torch.from_numpy(sound))
  assert relative_error(jax.jit(lambda x, s: ours("av_hubert")(x, s))(lips, jnp.asarray(sound)), both) < TOLERANCE
  states = theirs(features)
  assert relative_error(jax.jit(lambda x: ours("av_hubert")(x))(lips), states) < TOLERANCE
  return states


def test_sequence_to_sequence(tmp_path):
  model = reference.SequenceToSequence(widths=WIDTHS, encoder=ENCODER, decoder=DECODER)
  state = released(model) | {"decoder.embed_positions._float_tensor": torch.zeros(1)}
  torch.save({"args": None, "model": state}, tmp_path / "large_vox_433h.pt")
  items, done, _ = converted("av_hubert", tmp_path / "large_vox_433h.pt")
  assert done.sizes == dict(widths=WIDTHS, encoder=ENCODER, decoder=DECODER, ctc=None)
  assert set(done.items) == {"lip_resnet", "av_hubert", "text_decoder"}
  modules = load("av_hubert").modules(**done.sizes)
  states = check_encoder(model.encoder.w2v_model, modules, items)

  tokens = np.random.RandomState(1).randint(2, DECODER["vocabulary"], (2, 5))
  logits = model.decoder(torch.from_numpy(tokens), states)
  decoder = modules["text_decoder"].bind(items["text_decoder"])
  memory, length = jnp.asarray(states.numpy()), jnp.full(2, 7)
  found = jax.jit(lambda t, x: decoder(t, x, length))(jnp.asarray(tokens), memory)
  assert relative_error(found, logits) < TOLERANCE
  # One token after the other, as a beam search asks for them.
  step, state = jax.jit(decoder.step), decoder.start(memory, length, beam=1, steps=5)
  for place in range(5):
    log_p, state = step(state, jnp.asarray(tokens[:, place : place + 1]), place)
    assert relative_error(log_p[:, 0], logits[:, place].log_softmax(-1)) < TOLERANCE


def test_ctc_and_pretrained(tmp_path):
  model = reference.Ctc(widths=WIDTHS, encoder=ENCODER, ctc=9)
  torch.save({"model": released(model)}, tmp_path / "ctc.pt")
  items, done, _ = converted("av_hubert", tmp_path / "ctc.pt")
  modules = load("av_hubert").modules(**done.sizes)
  states = check_encoder(model.w2v_encoder.w2v_model, modules, items)
  head = modules["ctc_head"].bind(items["ctc_head"])
  expected = model.w2v_encoder.proj(states).log_softmax(-1)
  assert relative_error(jax.jit(lambda x: head(x))(jnp.asarray(states.numpy())), expected) < TOLERANCE

  pretrained = reference.AvHubert(WIDTHS, ENCODER)
  torch.save({"model": released(pretrained) | {"label_embs_concat": torch.zeros(5, 8)}}, tmp_path / "base.pt")
  items, done, _ = converted("av_hubert", tmp_path / "base.pt")
  assert done.naming == "fairseq, pretrained" and "label_embs_concat" in done.dropped
  check_encoder(pretrained, load("av_hubert").modules(**done.sizes), items)


def test_the_released_size():
  sizes = dict(
    widths=(64, 128, 256, 512),
    encoder=dict(in_features=512, width=1024, depth=24, heads=16, mlp_width=4096),
    decoder=dict(vocabulary=1_000, width=1024, depth=9, heads=8, mlp_width=4096),
    ctc=None,
  )
  shapes = abstract_shapes(load("av_hubert").modules(**sizes))
  count = sum(int(np.prod(shape)) for path, shape in shapes.items() if not path.endswith(("/mean", "/var")))
  assert 476e6 < count < 479e6  # the paper: 325 M of the encoder; the decoder has 9 layers of 16.8 M
