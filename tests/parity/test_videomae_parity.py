"""VideoMAE against that of transformers, from every released naming; MARLIN against its architecture in torch.

The weights of VideoMAE in its original naming are those of transformers under other names: the network is the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from parity.references import TOLERANCE, as_torch, converted, fill, named, relative_error  # noqa: E402

from synclipmae_jax.baselines.videomae import cut_tubes  # noqa: E402
from synclipmae_jax.convert import donor as donors  # noqa: E402
from synclipmae_jax.convert.donor import load  # noqa: E402

VISIBLE = 20  # of each of the 8 times


@pytest.fixture(autouse=True)
def exact():
  with jax.default_matmul_precision("highest"), torch.no_grad():
    yield


def hugging_face(cls, **options):
  """Reduced, but for the 224 pixels and the 16 frames, which the files do not hold."""
  config = transformers.VideoMAEConfig(
    patch_size=16, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256,
    decoder_hidden_size=64, decoder_num_hidden_layers=2, decoder_num_attention_heads=1, decoder_intermediate_size=128,
    **options,
  )  # fmt: skip
  model = cls(config)
  return model, fill(model)


def clips(size, seed=0):
  return np.random.RandomState(seed).uniform(0, 1, (2, 16, size, size, 3)).astype(np.float32)


def masks(tubes, seed=1):
  """(indices of the visible, of the masked, boolean mask) of two clips, in the order of the sequence."""
  draw = np.random.RandomState(seed)
  frame = np.stack([draw.permutation(tubes // 8) for _ in range(2)])[:, None] + tubes // 8 * np.arange(8)[:, None]
  kept = frame[..., : VISIBLE if tubes > 200 else 5].reshape(2, -1)
  masked = np.ones((2, tubes), bool)
  np.put_along_axis(masked, kept, False, axis=1)
  hidden = np.stack([np.flatnonzero(row) for row in masked])
  return jnp.asarray(np.sort(kept)), jnp.asarray(hidden), torch.from_numpy(masked)


def imagenet(pictures):
  """[b, t, s, s, 3] in 0..1 -> what transformers takes."""
  normalised = (pictures - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
  return torch.from_numpy(np.ascontiguousarray(normalised.transpose(0, 1, 4, 2, 3)))


def ours(done, items, pictures, indices, masked):
  """(tokens after the norm, pixels of the masked tubes) of the converted items."""
  modules = load(done.donor).modules(**done.sizes)
  tubes = jnp.take_along_axis(cut_tubes(jnp.asarray(pictures), done.sizes["encoder"]["patch"]), indices[..., None], 1)

  @jax.jit
  def run(items):
    encoder = modules["video_encoder"].bind(items["video_encoder"])
    tokens = encoder.norm(encoder(tubes, indices))
    return tokens, modules["video_decoder"].bind(items["video_decoder"])(tokens, indices, masked)

  return run(items)


def feature(done, items, frames):
  """The feature of a clip of bytes."""
  module = load(done.donor).modules(**done.sizes)["video_encoder"]
  return jax.jit(lambda params, frames: module.bind(params).features(frames))(items["video_encoder"], frames)[:, 0]


def original(tensors):
  """Names of VideoMAE in the memory of transformers -> names of MCG-NJU/VideoMAE, with one tensor for q, k and v."""
  renamed = named(
    tensors,
    (r"^videomae\.embeddings\.patch_embeddings\.projection\.", "encoder.patch_embed.proj."),
    (r"^videomae\.encoder\.layer\.", "encoder.blocks."),
    (r"^videomae\.layernorm\.", "encoder.norm."),
    (r"^decoder\.decoder_layers\.", "decoder.blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.attention\.query\.bias$", ".attn.q_bias"),
    (r"\.attention\.attention\.value\.bias$", ".attn.v_bias"),
    (r"\.attention\.attention\.query\.weight$", ".attn.qkv.weight"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
  )
  fused = {key: value for key, value in renamed.items() if ".attention.attention." not in key}
  for key in [key for key in fused if key.endswith(".attn.qkv.weight")]:
    stem = key.removesuffix("attn.qkv.weight")
    others = [renamed[f"{stem}attention.attention.{name}.weight"] for name in ("key", "value")]
    fused[key] = np.concatenate([fused[key], *others])
  return fused


def hub(tensors):
  """Names of the files on the hub, written by transformers 4."""
  return named(tensors, (r"\.query\.bias$", ".q_bias"), (r"\.value\.bias$", ".v_bias"))


NAMES = {"in memory": (dict, "Hugging Face"), "hub": (hub, "Hugging Face"), "original": (original, "original")}


@pytest.mark.parametrize("file", NAMES)
def test_pretrained(file, tmp_path):
  """Tokens and restored tubes. The decoder's last norm has an epsilon of 1e-6 in the original, here of 1e-5."""
  names, naming = NAMES[file]
  model, tensors = hugging_face(transformers.VideoMAEForPreTraining, use_mean_pooling=False, layer_norm_eps=1e-6)
  model.decoder.norm.eps = 1e-6
  wrapped = {"model": as_torch(names(tensors)), "epoch": 1}
  torch.save(wrapped, tmp_path / "model.pth")
  items, done, _ = converted("videomae", tmp_path / "model.pth")
  assert (done.naming, done.lossy, done.dropped) == (naming, (), ())
  pictures = clips(224)
  visible, masked, mask = masks(8 * 14 * 14)
  tokens, pixels = ours(done, items, pictures, visible, masked)
  expected = model.videomae(imagenet(pictures), bool_masked_pos=mask).last_hidden_state
  assert relative_error(tokens, expected) < TOLERANCE
  assert relative_error(pixels, model(imagenet(pictures), bool_masked_pos=mask).logits) < TOLERANCE


def test_fine_tuned_as_transformers_has_it(tmp_path):
  """The feature before the classifier. The epsilons of transformers' defaults, 1e-12 and 1e-5, differ little."""
  model, tensors = hugging_face(transformers.VideoMAEForVideoClassification, num_labels=7)
  model.save_pretrained(tmp_path / "saved")
  items, done, _ = converted("videomae", tmp_path / "saved")
  assert done.naming == "Hugging Face, fine-tuned" and set(done.dropped) == {"classifier.weight", "classifier.bias"}
  pictures = np.random.RandomState(0).randint(0, 256, (1, 16, 224, 224, 3), np.uint8)
  found = feature(done, items, pictures)
  model.fc_norm.eps = 1e-6
  expected = model.fc_norm(model.videomae(imagenet(pictures / np.float32(255))).last_hidden_state.mean(1))
  assert relative_error(found, expected) < TOLERANCE


# MARLIN, after the modules of marlin-pytorch


class Block(torch.nn.Module):
  def __init__(self, width, heads, hidden):
    super().__init__()
    self.heads = heads
    self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
    self.attn = torch.nn.Module()
    self.attn.qkv = torch.nn.Linear(width, 3 * width, bias=False)
    self.attn.q_bias, self.attn.v_bias = (torch.nn.Parameter(torch.zeros(width)) for _ in range(2))
    self.attn.proj = torch.nn.Linear(width, width)
    self.mlp = torch.nn.Module()
    self.mlp.layers = torch.nn.ModuleList(torch.nn.Module() for _ in range(2))
    self.mlp.layers[0].linear = torch.nn.Linear(width, hidden)
    self.mlp.layers[1].linear = torch.nn.Linear(hidden, width)

  def forward(self, x):
    q, k, v = self.attn.qkv(self.norm1(x)).chunk(3, dim=-1)
    split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
    q, k, v = split(q + self.attn.q_bias), split(k), split(v + self.attn.v_bias)
    attention = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
    x = x + self.attn.proj((attention @ v).transpose(1, 2).flatten(2))
    return x + self.mlp.layers[1].linear(torch.nn.functional.gelu(self.mlp.layers[0].linear(self.norm2(x))))


class Part(torch.nn.Module):
  """What the encoder and the decoder share: a table, blocks and a norm."""

  def __init__(self, tubes, width, heads, hidden):
    super().__init__()
    self.pos_embedding = torch.nn.Module()
    self.pos_embedding.emb = torch.nn.Parameter(torch.zeros(1, tubes, width))
    self.norm = torch.nn.LayerNorm(width)
    self.blocks = torch.nn.ModuleList(Block(width, heads, hidden) for _ in range(2))


class Marlin(torch.nn.Module):
  def __init__(self, patch, size):
    super().__init__()
    tubes, self.patch = 8 * (size // patch) ** 2, patch
    self.encoder = Part(tubes, 128, 2, 256)
    self.encoder.patch_embedding = torch.nn.Module()
    self.encoder.patch_embedding.projection = torch.nn.Conv3d(3, 128, (2, patch, patch), (2, patch, patch))
    self.decoder = Part(tubes, 64, 1, 128)
    self.decoder.mask_token = torch.nn.Parameter(torch.zeros(1, 1, 64))
    self.decoder.head = torch.nn.Linear(64, 6 * patch**2)
    self.enc_dec_proj = torch.nn.Linear(128, 64, bias=False)

  def tokens(self, video):
    part = self.encoder
    return part.patch_embedding.projection(video).flatten(2).transpose(1, 2) + part.pos_embedding.emb

  def forward(self, video, masked):
    x = self.tokens(video)[~masked].unflatten(0, (len(video), -1))
    for block in self.encoder.blocks:
      x = block(x)
    encoded = self.encoder.norm(x)
    table = self.decoder.pos_embedding.emb.expand(len(video), -1, -1)
    at = lambda mask: table[mask].unflatten(0, (len(video), -1))
    x = torch.cat([self.enc_dec_proj(encoded) + at(~masked), self.decoder.mask_token + at(masked)], dim=1)
    for block in self.decoder.blocks:
      x = block(x)
    return encoded, self.decoder.head(self.decoder.norm(x[:, -at(masked).shape[1] :]))

  def feature(self, video):
    x = self.tokens(video)
    for block in self.encoder.blocks:
      x = block(x)
    return self.encoder.norm(x.mean(dim=1))


def test_marlin(tmp_path):
  """Tokens, restored tubes, which it has with the channel first, and the feature of a clip; pixels in 0..1."""
  model = Marlin(8, 32)
  tensors = fill(model)
  critic = {"discriminator.layers.0.linear.weight": np.ones((4, 4), np.float32)}
  torch.save({"state_dict": as_torch(tensors | critic)}, tmp_path / "marlin.ckpt")
  items, done, _ = converted("marlin", tmp_path / "marlin.ckpt")
  assert (done.naming, done.dropped) == ("MARLIN", tuple(critic))
  pictures = clips(32)
  video = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 4, 1, 2, 3)))
  visible, masked, mask = masks(128)
  tokens, pixels = ours(done, items, pictures, visible, masked)
  encoded, restored = model(video, mask)
  assert relative_error(tokens, encoded) < TOLERANCE
  channel_last = restored.unflatten(-1, (3, -1)).transpose(-1, -2).flatten(-2)
  assert relative_error(pixels, channel_last) < TOLERANCE

  bytes_ = np.random.RandomState(0).randint(0, 256, (1, 16, 32, 32, 3), np.uint8)
  found = feature(done, items, bytes_)
  expected = model.feature(torch.from_numpy(bytes_.transpose(0, 4, 1, 2, 3) / np.float32(255)))
  assert relative_error(found, expected) < TOLERANCE


def test_full_size_keys_and_shapes():
  """The tensors of transformers' base model are those that we convert, and give its sizes."""
  with torch.device("meta"):
    model = transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(use_mean_pooling=False))
  shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
  match = donors.match([load("videomae")], shapes)
  sizes = donors.check(match, "videomae-base")
  assert match.naming.name == "Hugging Face"
  assert (sizes["encoder"]["heads"], sizes["decoder"]["heads"], sizes["decoder"]["tubes"]) == (12, 6, 1568)
