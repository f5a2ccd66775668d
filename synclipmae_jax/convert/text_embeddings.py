"""umT5-xxl embeddings of prompts, computed offline on the CPU with transformers. The encoder itself is not ported.

    python -m synclipmae_jax.convert text-embeddings --src Wan2.1-VACE-1.3B/ --prompt "A person talks." --dst DIR

Dubbing uses few, fixed prompts, and the encoder has 5.7 G parameters. It therefore runs once. DIR holds the item
`text_embeddings` with one leaf [n, 4096] for each prompt, from `prompt_0000` on; n is the number of tokens of the
prompt. The diffusion transformer takes them padded with zeros to 512 and attends to the padding too.

As in Wan (wan/modules/t5.py), HTML entities are resolved twice, white space is reduced to single spaces, at most 512
tokens are used, and the encoder runs in the dtype of its weights. Wan also repairs broken Unicode with ftfy; this
module does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import html
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tqdm import tqdm

from synclipmae_jax import checkpoints
from synclipmae_jax.convert.conversion import DTYPES
from synclipmae_jax.convert.destination import refuse_existing, whole_or_nothing
from synclipmae_jax.convert.source import Source, open_source
from synclipmae_jax.types import InputError

MAX_TOKENS = 512
LICENCE = "Apache-2.0"

_ORIGINAL = "models_t5_umt5-xxl-enc-bf16.pth"  # in the repositories of Wan, beside google/umt5-xxl
# Wan's names -> those of transformers, which never begin with `blocks.` or `token_embedding`.
_RENAME = (
  (r"^token_embedding\.", "shared."),
  (r"^norm\.", "encoder.final_layer_norm."),
  (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
  (r"^blocks\.(\d+)\.attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
  (r"^blocks\.(\d+)\.pos_embedding\.embedding\.", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
  (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
  (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
  (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
  (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)


@dataclasses.dataclass(frozen=True)
class TextEmbeddings:
  """`prompts` after cleaning; `embeddings`: [n, 4096] for each; `source`, `tokenizer`: sha256 by file name."""

  prompts: tuple[str, ...]
  embeddings: tuple[np.ndarray, ...]
  naming: str
  source: Mapping[str, str]
  tokenizer: Mapping[str, str]


def text_embeddings(
  *,
  src: str | Path,
  prompts: Sequence[str],
  tokenizer: str | Path | None = None,
  dtype: str = "float32",
  progress: bool = False,
) -> TextEmbeddings:
  """Embeds prompts with the encoder in `src`; nothing is downloaded.

  `src`: a repository of Wan in diffusers' form (text_encoder/, tokenizer/) or in the original form, or the encoder's
  file or folder alone; `tokenizer`: folder of the google/umt5-xxl tokenizer, if it does not lie beside the encoder.
  bfloat16 weights stay bfloat16: 11.4 GB for umT5-xxl. Raises InputError for missing packages, missing prompts, and
  files that are not a umT5 encoder.
  """
  if not prompts:
    raise InputError("no prompts: at least one is needed")
  if dtype not in DTYPES:
    raise InputError(f"unknown dtype {dtype!r}: {' or '.join(DTYPES)}")
  try:
    import torch
    import transformers
  except ImportError as error:
    raise InputError(f"this step runs a torch model: `pip install torch` ({error})") from None
  if not Path(src).exists():
    raise InputError(f"{src} does not exist")
  src = Path(src) / _ORIGINAL if (Path(src) / _ORIGINAL).is_file() else Path(src)
  folder = _find_tokenizer(src) if tokenizer is None else Path(tokenizer)
  tokenize = _open_tokenizer(transformers, folder)
  prompts = tuple(clean(prompt) for prompt in prompts)
  with open_source(src, folders=("text_encoder",)) as source, torch.no_grad():
    naming = "Wan" if "token_embedding.weight" in source.shapes else "transformers"
    encoder = _open_encoder(torch, transformers, source, src)
    total = sum(file.stat().st_size for file in source.files)
    with tqdm(desc="hashing", total=total, unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
      hashes = source.sha256(progress=bar.update)
    embeddings = []
    for prompt in tqdm(prompts, desc="embedding", disable=not progress, leave=False):
      # One at a time and without padding: equal to padding, masking and cutting, with fewer tokens.
      tokens = tokenize(prompt, max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
      if (largest := int(tokens.input_ids.max())) >= encoder.config.vocab_size:
        raise InputError(f"{folder} is not the tokenizer of {src}: token {largest} of {encoder.config.vocab_size}")
      hidden = encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
      embeddings.append(hidden[0].float().numpy().astype(DTYPES[dtype]))
  files = (folder / name for name in ("tokenizer.json", "spiece.model", "tokenizer_config.json"))
  sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
  return TextEmbeddings(prompts, tuple(embeddings), naming, hashes, sums)


def save_text_embeddings(dst: str | Path, made: TextEmbeddings) -> None:
  """Writes the checkpoint that the module's docstring describes; prompts, licence and hashes go into its meta.json."""
  leaves = {f"prompt_{i:04d}": embedding for i, embedding in enumerate(made.embeddings)}
  conversion: dict[str, Any] = {
    "donor": "umt5-xxl",
    "naming": made.naming,
    "licence": LICENCE,
    "source": dict(made.source),
    "tokenizer": dict(made.tokenizer),
    "dtype": made.embeddings[0].dtype.name,
    "items": {"text_embeddings": sum(leaf.size for leaf in leaves.values())},
    "prompts": dict(zip(leaves, made.prompts, strict=True)),
  }
  with whole_or_nothing(Path(dst)) as place:
    checkpoints.save_items(place, {"text_embeddings": leaves}, {"conversion": conversion})


def clean(prompt: str) -> str:
  """The prompt as it is passed to the tokenizer."""
  return " ".join(html.unescape(html.unescape(prompt)).split())


def main(argv: Sequence[str]) -> int:
  """Runs the command `text-embeddings`; returns its exit status. Raises InputError."""
  description, _, details = (__doc__ or "").partition("\n\n")
  parser = argparse.ArgumentParser(
    prog="python -m synclipmae_jax.convert text-embeddings", description=description, epilog=details,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument("--src", required=True, help="repository of Wan (diffusers' or original), or the encoder alone")
  parser.add_argument("--tokenizer", help="folder of the google/umt5-xxl tokenizer (default: beside the encoder)")
  parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be repeated")
  parser.add_argument("--prompts-file", help="UTF-8 text with one prompt per line; appended to those of --prompt")
  parser.add_argument("--dst", required=True, help="new directory: an Orbax checkpoint with item text_embeddings")
  parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="result dtype (default float32)")
  parser.add_argument("--json", action="store_true", help="print one JSON object and no progress bar")
  args = parser.parse_args(argv)
  refuse_existing(Path(args.dst))  # first, because the encoder runs for minutes
  prompts = args.prompt + (_lines(args.prompts_file) if args.prompts_file else [])
  progress = sys.stderr.isatty() and not args.json
  made = text_embeddings(src=args.src, prompts=prompts, tokenizer=args.tokenizer, dtype=args.dtype, progress=progress)
  save_text_embeddings(args.dst, made)
  shapes = [list(embedding.shape) for embedding in made.embeddings]
  if args.json:
    print(json.dumps({"dst": args.dst, "dtype": args.dtype, "prompts": made.prompts, "shapes": shapes}))
    return 0
  print(f"{args.dst}: {len(shapes)} prompts ({made.naming} encoder), {args.dtype}, licence {LICENCE}")
  for prompt, (tokens, width) in zip(made.prompts, shapes, strict=True):
    print(f"  {tokens} tokens x {width}: {prompt if len(prompt) < 80 else prompt[:77] + '...'}")
  return 0


def _lines(path: str) -> list[str]:
  try:
    return [line for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"the prompts in {path} cannot be read: {error}") from None


def _find_tokenizer(src: Path) -> Path:
  places = (src / "tokenizer", src.parent / "tokenizer", src.parent / "google/umt5-xxl")
  for place in places:
    if place.is_dir():
      return place
  raise InputError(f"no tokenizer beside {src} ({', '.join(map(str, places))}): name its folder with --tokenizer")


def _open_tokenizer(transformers, folder: Path):
  if not folder.is_dir():
    raise InputError(f"{folder} is not a folder with a tokenizer")
  try:
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
  except (OSError, ValueError, ImportError) as error:
    reason = " ".join(str(error).split())[:200]
    raise InputError(f"{folder} holds no tokenizer that transformers can open: {reason}") from None


def _open_encoder(torch, transformers, source: Source, src: Path):
  """The encoder of transformers with the weights of `source`; its sizes come from their shapes."""
  keys = {}
  for key in source.shapes:
    name = key
    for pattern, replacement in _RENAME:
      name = re.sub(pattern, replacement, name)
    keys[name] = key
  if "shared.weight" not in keys and "encoder.embed_tokens.weight" in keys:
    keys["shared.weight"] = keys["encoder.embed_tokens.weight"]
  if "shared.weight" in keys:
    keys["encoder.embed_tokens.weight"] = keys["shared.weight"]  # one table, stored under one name or under both
  shapes = {name: source.shapes[key] for name, key in keys.items()}
  layer = "encoder.block.0.layer."
  try:
    vocabulary, width = shapes["shared.weight"]
    buckets, heads = shapes[f"{layer}0.SelfAttention.relative_attention_bias.weight"]
    config = transformers.UMT5Config(
      vocab_size=vocabulary, d_model=width, num_heads=heads, relative_attention_num_buckets=buckets,
      d_kv=shapes[f"{layer}0.SelfAttention.q.weight"][0] // heads, d_ff=shapes[f"{layer}1.DenseReluDense.wo.weight"][1],
      num_layers=sum(name.endswith(".SelfAttention.q.weight") for name in shapes), feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
      encoder = transformers.UMT5EncoderModel(config).eval()
  except (KeyError, ValueError, IndexError, ZeroDivisionError):
    begin = ", ".join(list(source.shapes)[:3])
    raise InputError(f"{src} is not a umT5 encoder of Wan or transformers: its first keys are {begin}") from None
  wanted = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
  if shapes != wanted:
    lacking, extra = sorted(set(wanted) - set(shapes)), sorted(set(shapes) - set(wanted))
    other = sorted(name for name in set(wanted) & set(shapes) if wanted[name] != shapes[name])
    raise InputError(
      f"{src} is not a umT5 encoder: {len(lacking)} tensors are missing {lacking[:2]}, {len(extra)} are not known "
      f"{extra[:2]}, {len(other)} have another shape {other[:2]}"
    )
  weights = {name: _to_torch(torch, source.read(key)) for name, key in keys.items() if name != "shared.weight"}
  weights["shared.weight"] = weights["encoder.embed_tokens.weight"]
  encoder.load_state_dict(weights, assign=True)
  return encoder


def _to_torch(torch, array: np.ndarray):
  """bfloat16 is kept; float16 becomes float32, because umT5 overflows in float16."""
  if array.dtype == ml_dtypes.bfloat16:
    return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
  return torch.from_numpy(np.ascontiguousarray(array, np.float32))
