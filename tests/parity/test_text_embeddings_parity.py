"""umT5 at tiny size: both namings, both precisions, against transformers on a padded batch."""

import json
import re
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from synclipmae_jax import checkpoints  # noqa: E402
from synclipmae_jax.convert.text_embeddings import clean, main, text_embeddings  # noqa: E402
from synclipmae_jax.types import InputError  # noqa: E402

WORDS = "a person talking to the camera with clear lip motion & < >".split()
PROMPTS = ("a person talking to the camera", "clear  lip\n motion &amp;lt; nowhere else", "")
ORIGINAL = (  # names of transformers -> names in Wan's file
  (r"^shared\.", "token_embedding."),
  (r"^encoder\.final_layer_norm\.", "norm."),
  (
    r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias\.",
    r"blocks.\1.pos_embedding.embedding.",
  ),
  (r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.", r"blocks.\1.attn."),
  (r"^encoder\.block\.(\d+)\.layer\.0\.layer_norm\.", r"blocks.\1.norm1."),
  (r"^encoder\.block\.(\d+)\.layer\.1\.layer_norm\.", r"blocks.\1.norm2."),
  (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_0\.", r"blocks.\1.ffn.gate.0."),
  (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_1\.", r"blocks.\1.ffn.fc1."),
  (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo\.", r"blocks.\1.ffn.fc2."),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A diffusers repository with a random encoder and a word tokenizer; returns (folder, encoder, tokenizer)."""
  folder = tmp_path_factory.mktemp("wan")
  vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {word: i + 3 for i, word in enumerate(WORDS)}
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
  words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  words.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
  )
  tokenizer.save_pretrained(folder / "tokenizer")
  torch.manual_seed(0)
  config = transformers.UMT5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=6)
  encoder = transformers.UMT5EncoderModel(config).eval()
  for parameter in encoder.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
  encoder.save_pretrained(folder / "text_encoder", max_shard_size="20KB")  # sharded, as released
  assert (folder / "text_encoder/model.safetensors.index.json").exists()
  return folder, encoder, tokenizer


def original_state(encoder) -> dict:
  """The encoder's weights under the names of Wan's file."""
  state = {}
  for key, value in encoder.state_dict().items():
    if key != "encoder.embed_tokens.weight":
      for pattern, replacement in ORIGINAL:
        key = re.sub(pattern, replacement, key)
      state[key] = value
  assert not [key for key in state if key.startswith(("encoder", "shared"))]
  return state


@pytest.fixture
def original(made, tmp_path):
  """A repository in Wan's original layout, bfloat16 as released."""
  folder, encoder, _ = made
  state = {key: value.bfloat16() for key, value in original_state(encoder).items()}
  torch.save(state, tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
  torch.save({"another": torch.ones(2)}, tmp_path / "Wan2.1_VAE.pth")
  shutil.copytree(folder / "tokenizer", tmp_path / "google/umt5-xxl")
  return tmp_path


def reference(encoder, tokenizer) -> list[np.ndarray]:
  """The call in Wan and diffusers: padded to 512, masked, cut to the true length."""
  batch = tokenizer(
    [clean(prompt) for prompt in PROMPTS], padding="max_length", max_length=512, truncation=True, return_tensors="pt"
  )
  with torch.no_grad():
    hidden = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
  lengths = batch.attention_mask.sum(1).tolist()
  assert lengths == [7, 7, 1]
  return [row[:length].float().numpy() for row, length in zip(hidden, lengths, strict=True)]


def assert_close(found, wanted, tolerance: float) -> None:
  assert [x.shape for x in found] == [y.shape for y in wanted]
  for x, y in zip(found, wanted, strict=True):
    assert np.abs(x.astype(np.float32) - y).max() <= tolerance * np.abs(y).max()


def test_the_two_namings_embed_alike(made, tmp_path):
  folder, encoder, tokenizer = made
  torch.save(original_state(encoder), tmp_path / "encoder.pth")
  theirs = text_embeddings(src=folder, prompts=PROMPTS)
  ours = text_embeddings(src=tmp_path / "encoder.pth", prompts=PROMPTS, tokenizer=folder / "tokenizer")
  assert (theirs.naming, ours.naming) == ("transformers", "Wan")
  for x, y in zip(theirs.embeddings, ours.embeddings, strict=True):
    np.testing.assert_array_equal(x, y)
  assert_close(theirs.embeddings, reference(encoder, tokenizer), 1e-5)
  assert len(theirs.source) > 2 and "model.safetensors.index.json" in theirs.source
  assert set(theirs.tokenizer) == {"tokenizer.json", "tokenizer_config.json"}


def test_bfloat16_weights_compute_in_bfloat16(made, original):
  _, encoder, tokenizer = made
  found = text_embeddings(src=original, prompts=PROMPTS)
  with_weights = transformers.UMT5EncoderModel(encoder.config).eval()
  with_weights.load_state_dict(encoder.state_dict())
  assert_close(found.embeddings, reference(with_weights.bfloat16(), tokenizer), 0.05)  # padding changes the rounding
  for embedding in found.embeddings:
    assert embedding.dtype == np.float32
    np.testing.assert_array_equal(embedding, torch.from_numpy(embedding).bfloat16().float().numpy())


def test_long_prompts_are_cut_to_512_tokens(made):
  found = text_embeddings(src=made[0], prompts=["a " * 600])
  assert found.embeddings[0].shape == (512, 32)


def test_the_command_writes_a_checkpoint(original, tmp_path, capsys):
  (tmp_path / "prompts.txt").write_text("clear  lip\n\nmotion\n")
  dst = tmp_path / "embeddings"
  command = ["--src", str(original), "--prompt", PROMPTS[0], "--prompts-file", str(tmp_path / "prompts.txt"),
             "--dst", str(dst), "--dtype", "bfloat16", "--json"]  # fmt: skip
  assert main(command) == 0
  said = json.loads(capsys.readouterr().out)
  assert said["prompts"] == [PROMPTS[0], "clear lip", "motion"] and said["shapes"] == [[7, 32], [3, 32], [2, 32]]
  item = checkpoints.load_item(dst, "text_embeddings")
  wanted = text_embeddings(src=original, prompts=said["prompts"], dtype="bfloat16").embeddings
  assert sorted(item) == ["prompt_0000", "prompt_0001", "prompt_0002"]
  for leaf, embedding in zip((item[key] for key in sorted(item)), wanted, strict=True):
    assert leaf.dtype == embedding.dtype == "bfloat16"
    np.testing.assert_array_equal(np.asarray(leaf, np.float32), np.asarray(embedding, np.float32))
  conversion = checkpoints.load_meta(dst)["conversion"]
  assert conversion["licence"] == "Apache-2.0" and conversion["naming"] == "Wan"
  assert conversion["prompts"]["prompt_0001"] == "clear lip"
  assert list(conversion["source"]) == ["models_t5_umt5-xxl-enc-bf16.pth"]
  with pytest.raises(InputError, match="already exists: name another destination"):
    main(command)


def test_prompts_are_cleaned_as_in_wan():
  assert clean(" a\t&amp;amp; b \n&lt;c&gt; ") == "a & b <c>"


def refusal(**arguments) -> str:
  with pytest.raises(InputError) as error:
    text_embeddings(**arguments)
  assert "\n" not in str(error.value)
  return str(error.value)


def test_bad_input_is_named(made, tmp_path, monkeypatch):
  folder, encoder, _ = made
  assert "no prompts" in refusal(src=folder, prompts=[])
  assert "nowhere does not exist" in refusal(src=tmp_path / "nowhere", prompts=["a"])
  assert "unknown dtype 'float8'" in refusal(src=folder, prompts=["a"], dtype="float8")
  state = original_state(encoder)
  torch.save(state, tmp_path / "a.pth")
  assert "no tokenizer beside" in refusal(src=tmp_path / "a.pth", prompts=["a"])
  tokens = {"prompts": ["a"], "tokenizer": folder / "tokenizer"}
  assert "is not a folder with a tokenizer" in refusal(src=folder, prompts=["a"], tokenizer=tmp_path / "none")
  (tmp_path / "empty").mkdir()
  assert "holds no tokenizer that transformers can open" in refusal(
    src=folder, prompts=["a"], tokenizer=tmp_path / "empty"
  )
  torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
  assert "a.pth is not a umT5 encoder of Wan or transformers: its first keys are a" in refusal(
    src=tmp_path / "a.pth", **tokens
  )
  torch.save(
    {key: value for key, value in state.items() if key != "norm.weight"} | {"x": torch.ones(1)}, tmp_path / "a.pth"
  )
  sentence = refusal(src=tmp_path / "a.pth", **tokens)
  assert "1 tensors are missing ['encoder.final_layer_norm.weight'], 1 are not known ['x'], 0 have another" in sentence
  torch.save(state | {"token_embedding.weight": torch.ones(5, 32)}, tmp_path / "a.pth")
  assert "is not the tokenizer of" in refusal(src=tmp_path / "a.pth", prompts=["lip"], tokenizer=folder / "tokenizer")
  with pytest.raises(InputError, match="prompts in .* cannot be read"):
    main(["--src", str(folder), "--prompts-file", str(tmp_path / "none"), "--dst", str(tmp_path / "out")])
  monkeypatch.setitem(__import__("sys").modules, "torch", None)
  assert "`pip install torch`" in refusal(src=folder, prompts=["a"])
