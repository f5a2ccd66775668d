"""Whole conversions at tiny size, without torch: the result, the export, and every kind of bad input."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
from convert.random_weights import donor_weights
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from synclipmae_jax import checkpoints
from synclipmae_jax.convert import conversion, donor
from synclipmae_jax.convert.__main__ import main
from synclipmae_jax.convert.conversion import convert, export
from synclipmae_jax.models.position import resize_position
from synclipmae_jax.types import InputError

SIZES = {
  "sapiens": dict(image_size=64, patch=16, width=32, depth=2, heads=1, mlp_width=64, class_token=True),
  "wav2vec2": dict(width=32, depth=2, heads=1, mlp_width=64, conv_width=16, pos_kernel=16, pos_groups=4),
  "vit_mae": dict(
    image_size=32, patch=8, width=32, depth=2, heads=1, mlp_width=64, class_token=True,
    decoder=dict(grid=4, patch=8, token_width=32, width=16, depth=2, heads=1, mlp_width=32),
  ),
}  # fmt: skip


@pytest.fixture
def sapiens(tmp_path):
  """A tiny Sapiens file and its tensors."""
  tensors = donor_weights("sapiens", SIZES["sapiens"])
  save_file(tensors, tmp_path / "sapiens.safetensors")
  return tmp_path / "sapiens.safetensors", tensors


def rewrite(path, tensors):
  save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)
  return path


# Not here: Sapiens without its class token (own test), and namings that only rename keys.
@pytest.mark.parametrize("name, naming", [("sapiens", 0), ("wav2vec2", 0), *(("vit_mae", n) for n in range(4))])
def test_conversion_and_export_are_exact_except_for_lossy_rules(name, naming, tmp_path):
  tensors = donor_weights(name, SIZES[name], naming)
  source = rewrite(tmp_path / "source.safetensors", tensors)
  done, cost = convert(name, src=source, dst=tmp_path / "item", verify=True)
  assert done.naming == donor.load(name).namings[naming].name
  assert cost.seconds > 0
  counts, left_out, _ = export(name, src=tmp_path / "item", dst=tmp_path / "back.safetensors")
  assert counts == done.items and not left_out
  back = load_file(tmp_path / "back.safetensors")
  assert back.keys() == tensors.keys()
  lossy = {key for key in tensors if re.search(r"weight_[gv]$|decoder_pos_embed$", key)}
  assert all(np.array_equal(back[key], tensors[key]) for key in tensors.keys() - lossy)
  for key in lossy & {"decoder.decoder_pos_embed", "decoder_pos_embed"}:
    np.testing.assert_array_equal(back[key][:, 1:], tensors[key][:, 1:])


def test_an_export_records_its_naming(tmp_path):
  """An export of a naming that only renames keys uses the names of the rules."""
  tensors = donor_weights("wav2vec2", SIZES["wav2vec2"])
  fairseq = {
    re.sub("^feature_projection.layer_norm", "layer_norm", re.sub("^feature_projection.projection", "post_extract_proj",
    re.sub("feed_forward.intermediate_dense", "fc1", key))): value for key, value in tensors.items()
  }  # fmt: skip
  done, _ = convert("wav2vec2", src=rewrite(tmp_path / "w.safetensors", fairseq), dst=tmp_path / "item")
  assert done.naming == "fairseq"
  export("wav2vec2", src=tmp_path / "item", dst=tmp_path / "back.safetensors")
  with safe_open(tmp_path / "back.safetensors", framework="numpy") as back:
    assert back.metadata()["naming"] == "Hugging Face" and set(back.keys()) == set(tensors)


def test_a_weight_norm_comes_back_with_the_same_product(tmp_path):
  tensors = donor_weights("wav2vec2", SIZES["wav2vec2"])
  convert("wav2vec2", src=rewrite(tmp_path / "w.safetensors", tensors), dst=tmp_path / "item")
  export("wav2vec2", src=tmp_path / "item", dst=tmp_path / "back.safetensors")
  fold = lambda t: (
    (g := "encoder.pos_conv_embed.conv.weight_g")
    and t[g] * t[g[:-1] + "v"] / np.linalg.norm(t[g[:-1] + "v"].reshape(-1, t[g].size), axis=0)
  )
  np.testing.assert_allclose(fold(load_file(tmp_path / "back.safetensors")), fold(tensors), rtol=1e-6, atol=1e-7)


def test_a_file_without_a_class_token_gives_an_item_without(tmp_path, sapiens):
  _, tensors = sapiens
  tensors = {key: value for key, value in tensors.items() if key != "cls_token"}
  tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
  done, _ = convert("sapiens", src=rewrite(tmp_path / "no.safetensors", tensors), dst=tmp_path / "item", verify=True)
  assert done.naming == "Sapiens without a class token"
  assert not {"class_token", "class_position"} & set(checkpoints.load_item(tmp_path / "item", "visual_encoder"))
  export("sapiens", src=tmp_path / "item", dst=tmp_path / "back.safetensors")
  assert all(np.array_equal(value, tensors[key]) for key, value in load_file(tmp_path / "back.safetensors").items())


def test_the_metadata_of_a_converted_checkpoint(tmp_path, sapiens):
  source, tensors = sapiens
  convert("sapiens", src=source, dst=tmp_path / "item", dtype="bfloat16")
  meta = checkpoints.load_meta(tmp_path / "item")
  said = meta["conversion"]
  assert said["donor"] == "sapiens" and said["naming"] == "Sapiens" and said["dtype"] == "bfloat16"
  assert len(said["source"][source.name]) == 64 and said["licence"] == "CC-BY-NC-4.0" and "jax" in meta["versions"]
  assert said["sizes"]["depth"] == 2 and said["dropped"] == [] and "float32 rounded to bfloat16" in said["lossy"]
  item = checkpoints.load_item(tmp_path / "item", "visual_encoder")
  assert item["norm"]["scale"].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(item["norm"]["scale"], tensors["ln1.weight"].astype(ml_dtypes.bfloat16))


def test_a_positional_table_is_kept_or_resized(tmp_path, sapiens):
  source, tensors = sapiens
  convert("sapiens", src=source, dst=tmp_path / "kept")
  done, _ = convert("sapiens", src=source, dst=tmp_path / "resized", image_size=96, verify=True)
  kept, resized = (checkpoints.load_item(tmp_path / name, "visual_encoder") for name in ("kept", "resized"))
  np.testing.assert_array_equal(kept["position"], tensors["pos_embed"][0, 1:])
  np.testing.assert_array_equal(resized["position"], resize_position(kept["position"], 6))
  np.testing.assert_array_equal(resized["class_position"], tensors["pos_embed"][0, :1])
  assert done.lossy == ("visual_encoder/position resized",) and done.sizes["image_size"] == 96
  with pytest.raises(InputError, match="multiple of the patch size 16, not 100"):
    convert("sapiens", src=source, dst=tmp_path / "x", image_size=100)


def test_prompt_tokens_of_a_trained_encoder_are_kept(tmp_path, sapiens):
  source, _ = sapiens
  convert("sapiens", src=source, dst=tmp_path / "item")
  trained = checkpoints.load_item(tmp_path / "item", "visual_encoder") | {"prompt_tokens": np.ones((3, 32), np.float32)}
  checkpoints.save_items(tmp_path / "trained", {"visual_encoder": trained}, {})
  export("sapiens", src=tmp_path / "trained", dst=tmp_path / "out.safetensors")
  assert load_file(tmp_path / "out.safetensors")["prompt_tokens"].shape == (1, 3, 32)
  convert("sapiens", src=tmp_path / "out.safetensors", dst=tmp_path / "again", verify=True)
  np.testing.assert_array_equal(checkpoints.load_item(tmp_path / "again", "visual_encoder")["prompt_tokens"], 1)


# Bad input: one sentence, exit 2, nothing at the destination


def refused(capsys, tmp_path, *words) -> str:
  """The error message of a refused command."""
  assert main([*map(str, words), "--dst", str(tmp_path / "out")]) == 2
  assert not list(tmp_path.glob("out*"))
  captured = capsys.readouterr()
  assert captured.out == "" and captured.err.startswith("convert: ")
  return captured.err


def test_a_missing_key_is_named(capsys, tmp_path, sapiens):
  _, tensors = sapiens
  del tensors["layers.1.attn.qkv.bias"]
  said = refused(capsys, tmp_path, "sapiens", "--src", rewrite(tmp_path / "a.safetensors", tensors))
  assert "missing in the file (1):\n    layers.1.attn.qkv.bias" in said and "only in the file" not in said


def test_an_extra_key_is_named(capsys, tmp_path, sapiens):
  _, tensors = sapiens
  tensors["layers.0.gamma"] = np.ones(3, np.float32)
  said = refused(capsys, tmp_path, "sapiens", "--src", rewrite(tmp_path / "a.safetensors", tensors))
  assert "only in the file (1):\n    layers.0.gamma" in said and "missing" not in said


@pytest.mark.parametrize(
  "key, shape, expected",
  [
    ("layers.1.attn.qkv.weight", (96, 31), "[96, 32]"),
    ("ln1.weight", (33,), "[32]"),
    ("cls_token", (1, 1, 8), "[1, 1, 32]"),
    ("pos_embed", (2, 17, 32), "[1, 17, 32]"),  # the second row would be cut off
  ],
)
def test_a_shape_that_differs_is_reported_from_both_sides(capsys, tmp_path, sapiens, key, shape, expected):
  _, tensors = sapiens
  tensors[key] = np.ones(shape, np.float32)
  said = refused(capsys, tmp_path, "sapiens", "--src", rewrite(tmp_path / "a.safetensors", tensors))
  assert f"{key}: {list(shape)} in the file, expected {expected}" in said


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(capsys, tmp_path, sapiens, bad):
  _, tensors = sapiens
  tensors["layers.1.ffn.layers.1.weight"][3, 4] = bad
  said = refused(capsys, tmp_path, "sapiens", "--src", rewrite(tmp_path / "a.safetensors", tensors))
  assert "layers.1.ffn.layers.1.weight in a.safetensors holds NaN or infinity" in said


@pytest.mark.parametrize("value, dtype", [(3.4e38, "bfloat16"), (1e300, "float32")])
def test_numbers_that_the_result_cannot_hold_are_refused(capsys, tmp_path, sapiens, value, dtype):
  _, tensors = sapiens
  tensors = {key: tensor.astype(np.float64) for key, tensor in tensors.items()}
  tensors["ln1.weight"][5] = value
  source = rewrite(tmp_path / "a.safetensors", tensors)
  said = refused(capsys, tmp_path, "sapiens", "--src", source, "--dtype", dtype)
  assert f"ln1.weight in a.safetensors would hold NaN or infinity as {dtype}" in said


def test_a_weight_norm_of_zero_is_refused(capsys, tmp_path):
  tensors = donor_weights("wav2vec2", SIZES["wav2vec2"])
  tensors["encoder.pos_conv_embed.conv.weight_v"][:, :, 3] = 0
  said = refused(capsys, tmp_path, "wav2vec2", "--src", rewrite(tmp_path / "a.safetensors", tensors))
  assert "weight_v in a.safetensors would hold NaN" in said


@pytest.mark.parametrize("first", ["", "backbone."])
def test_a_duplicate_key_is_named(capsys, tmp_path, sapiens, first):
  _, tensors = sapiens
  other = {"": "backbone.", "backbone.": ""}[first]
  tensors = {first + key: tensor for key, tensor in tensors.items()}
  tensors[f"{other}cls_token"] = tensors[f"{first}cls_token"] + 1
  said = refused(capsys, tmp_path, "sapiens", "--src", rewrite(tmp_path / "a.safetensors", tensors))
  assert re.search(r"only in the file \(1\):\n    (backbone\.)?cls_token\n", said)


def test_control_characters_in_a_name_are_refused(capsys, tmp_path, sapiens):
  _, tensors = sapiens
  tensors["head.\x1b[2J\nconvert: fine"] = np.ones(1, np.float32)
  said = refused(capsys, tmp_path, "sapiens", "--src", rewrite(tmp_path / "a.safetensors", tensors))
  assert r"\x1b[2J\nconvert: fine" in said and said.count("\n") == 1


def test_another_donor_s_file_is_recognised(capsys, tmp_path, sapiens):
  source, _ = sapiens
  said = refused(capsys, tmp_path, "wav2vec2", "--src", source)
  assert "its keys are those of Sapiens visual encoder" in said and "`convert sapiens`" in said


def test_a_truncated_file_is_refused(capsys, tmp_path, sapiens):
  source, _ = sapiens
  source.write_bytes(source.read_bytes()[:-1000])
  assert "truncated" in refused(capsys, tmp_path, "sapiens", "--src", source)


def test_a_missing_file(capsys, tmp_path):
  assert "does not exist" in refused(capsys, tmp_path, "sapiens", "--src", tmp_path / "none.pth")


def test_an_existing_destination_is_not_changed(capsys, tmp_path, sapiens):
  source, _ = sapiens
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "file").write_text("mine")
  assert main(["sapiens", "--src", str(source), "--dst", str(tmp_path / "mine")]) == 2
  assert "already exists" in capsys.readouterr().err and (tmp_path / "mine" / "file").read_text() == "mine"


def test_no_room_on_the_disk(capsys, tmp_path, sapiens, monkeypatch):
  source, _ = sapiens
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: usage._replace(free=1000))
  assert "no space for" in refused(capsys, tmp_path, "sapiens", "--src", source)


def test_a_destination_that_cannot_be_made(capsys, tmp_path, sapiens):
  source, _ = sapiens
  assert main(["sapiens", "--src", str(source), "--dst", str(source / "below" / "a" / "file")]) == 2
  assert "convert: [Errno" in capsys.readouterr().err and source.is_file()


def test_a_disk_that_fills_up_during_the_conversion(capsys, tmp_path, sapiens, monkeypatch):
  source, _ = sapiens

  def full(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(checkpoints.format, "_checksums", full)
  said = refused(capsys, tmp_path, "sapiens", "--src", source)
  assert "out could not be written: No space left on device\n" in said


def test_verify_catches_a_result_that_differs(capsys, tmp_path, sapiens, monkeypatch):
  source, _ = sapiens
  save = checkpoints.save_items

  def wrong(directory, items, meta):
    items["visual_encoder"]["norm"]["bias"][5] += 1e-6
    save(directory, items, meta)

  monkeypatch.setattr(checkpoints, "save_items", wrong)
  said = refused(capsys, tmp_path, "sapiens", "--src", source, "--verify")
  assert "verification failed for ln1.bias" in said


def test_an_export_of_missing_items(capsys, tmp_path, sapiens):
  source, _ = sapiens
  convert("sapiens", src=source, dst=tmp_path / "item")
  run = lambda *words: (main([*map(str, words)]), capsys.readouterr().err)
  code, said = run("export", "wan_vae", "--src", tmp_path / "item", "--dst", tmp_path / "o.safetensors")
  assert code == 2 and "holds none of the items of" in said
  code, said = run("export", "sapiens", "--src", tmp_path / "item", "--dst", tmp_path / "o.pth")
  assert code == 2 and "ends in .safetensors" in said
  code, said = run("export", "sapiens", "--src", tmp_path / "nothing", "--dst", tmp_path / "o.safetensors")
  assert code == 2 and "no complete checkpoint" in said
  assert not list(tmp_path.glob("o.*"))


# The command line


def test_inspect_reports_the_kind_of_a_file(capsys, tmp_path, sapiens):
  source, tensors = sapiens
  assert main(["inspect", str(source), "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["donor"] == "sapiens" and found["tensors"] == len(tensors) and found["sizes"]["width"] == 32
  assert found["parameters"] == sum(value.size for value in tensors.values()) and found["unused"] == []
  tensors["head.weight"] = np.ones((2, 2), np.float32)
  assert main(["inspect", str(rewrite(source, tensors))]) == 0
  assert "would be unused (1): head.weight" in capsys.readouterr().out
  assert main(["inspect", str(rewrite(source, {"a": np.ones(3, np.float32)}))]) == 1
  assert "not a checkpoint that can be converted" in capsys.readouterr().out


def test_json_is_one_object(capsys, tmp_path, sapiens):
  source, _ = sapiens
  assert main(["sapiens", "--src", str(source), "--dst", str(tmp_path / "out"), "--json", "--verify"]) == 0
  done = json.loads(capsys.readouterr().out)
  assert done["items"]["visual_encoder"] > 0 and done["verified"] and done["seconds"] > 0 and "peak_gib" in done


def test_help_lists_donors_licences_and_origins(capsys):
  with pytest.raises(SystemExit) as stop:
    main(["--help"])
  said = capsys.readouterr().out
  assert stop.value.code == 0
  for name in donor.NAMES:
    that = donor.load(name)
    assert that.licence in said and that.origin.split()[0] in said


def test_an_interrupted_conversion_leaves_nothing(tmp_path):
  """A process that is stopped while it writes leaves neither the destination nor partial files. A killed process leaves
  no destination, and the same command then succeeds."""
  tensors = donor_weights("sapiens", SIZES["sapiens"])
  rewrite(tmp_path / "s.safetensors", tensors)
  code = (
    "import sys, time\n"
    "from synclipmae_jax.checkpoints import format\n"
    "from synclipmae_jax.convert.__main__ import run\n"
    "def slow(*a):\n  print('writing', flush=True); time.sleep(60)\n"
    "format._checksums = slow\n"
    "run()"
  )
  words = ["sapiens", "--src", str(tmp_path / "s.safetensors"), "--dst", str(tmp_path / "out")]
  for number, status in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
    command = [sys.executable, "-c", code, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n" and list(tmp_path.glob("out*"))
    time.sleep(0.2)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == status
    if number != signal.SIGKILL:
      assert said == "\nconvert: stopped by a signal, partial results were removed\n"
      assert not list(tmp_path.glob("out*"))
  assert list(tmp_path.glob("out*")) and not (tmp_path / "out").exists()
  assert main([*words, "--verify"]) == 0
  assert [path.name for path in tmp_path.glob("out*")] == ["out"]
