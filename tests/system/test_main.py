"""The whole job on `tiny` from the command line: a process, a workdir, an exit status."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from synclipmae_jax.checkpoints import load_item, load_meta, save_items
from synclipmae_jax.data.prepare import prepare
from synclipmae_jax.models.position import resize_position
from synclipmae_jax.run import jobs
from synclipmae_jax.types import InputError

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("configs_pretrain", ROOT / "configs" / "pretrain.py")
CONFIG = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CONFIG)
KEYS = {f"k{k}" for k in (1, 5, 15)}


def load(preset):
  return CONFIG.get_config(preset)


def start(*arguments, preset="tiny", config="configs/pretrain.py"):
  environment = {**os.environ, "XLA_FLAGS": os.environ["FAST_COMPILE"]}  # one device, as on a laptop
  return subprocess.Popen(
    [sys.executable, "-m", "synclipmae_jax.main", f"--config={config}:{preset}", *map(str, arguments)],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def main(*arguments, **where):
  process = start(*arguments, **where)
  out, err = process.communicate(timeout=500)
  return process.returncode, out, err


def metrics(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  terms = ("loss", "contrast", "covariance", "reconstruction_video", "reconstruction_audio", "grad_norm")
  return {line["step"]: [line[name] for name in terms] for line in lines}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished run."""
  workdir = tmp_path_factory.mktemp("run") / "tiny"
  status, out, err = main(f"--workdir={workdir}")
  assert status == 0, err
  return workdir, out


def records(finished):
  return f"--config.data.sources=(('{finished[0] / 'data' / 'prepared'}', 1.0),)"


def test_a_run_from_data_to_scores(finished):
  workdir, out = finished
  report = json.loads((workdir / "eval.json").read_text())
  for row in (report, report["chance"], report["linear_baseline"], report["ceiling"], report["ci95"]):
    assert row["acc"].keys() == row["offset"].keys() == KEYS
    assert row["r_precision"].keys() == {"top1", "top2", "top3"}
  assert report["clips"] == 6
  assert 0 <= report["acc"]["k1"] <= 1
  assert report["chance"]["r_precision"] == pytest.approx({"top1": 1 / 32, "top2": 2 / 32, "top3": 3 / 32})
  factors = report["factors"]
  assert factors["fitted_on"]["clips"] == factors["judged_on"]["clips"] == 6 and factors["ceiling"]
  assert factors["tokens"].keys() == {"vocal", "ambient", "identity"}
  assert 0 <= factors["tokens"]["identity"]["retrieval"]["top1"] <= 1  # SynthTalk shows everybody twice
  # Watched on `val`, measured on `test`: the log and the checkpoint's rank are of other clips than the table.
  assert report["split"] == factors["split"] == "test" and "6 clips of the split test" in out
  logged = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
  ranked = load_meta(workdir)["metrics"]
  assert logged["sync/acc/k5"] == ranked["sync/acc/k5"] and logged["factors/vocal_mouth"] >= 0
  assert ranked["sync/offset/k1"] != report["offset"]["k1"]
  assert "| mean R²" in out and "floor: " in out and "ceiling: " in out
  for name in ("reconstruction", "similarity", "lag", "curves", "factor_swap", "factors"):
    assert (workdir / f"{name}.png").stat().st_size > 5_000
  assert sorted(metrics(workdir)) == [1, 2, 3, 4]
  assert "linear baseline" in out and "ceiling" in out and "synthetic" in out and "Next:" in out
  for part in ("synthesis", "preparing", "training", "evaluation"):
    assert part in out.split("Time:")[1]
  meta = json.loads((workdir / "checkpoints" / "4" / "meta.json").read_text())
  assert meta["preprocessing"]["fps"] == 25 and meta["preprocessing"]["image_size"] == 32
  items = {path.name for path in (workdir / "checkpoints" / "4").iterdir() if path.is_dir()}
  assert {"visual_encoder", "audio_adapter", "decoder", "contrast"} <= items


def test_a_finished_run_started_again_takes_no_step(finished):
  workdir, _ = finished
  before = metrics(workdir)
  status, out, err = main(f"--workdir={workdir}")
  assert status == 0, err
  assert metrics(workdir) == before and "linear baseline" in out


def test_a_finished_checkpoint_is_measured_as_its_run_was(finished, tmp_path):
  workdir, _ = finished
  options = records(finished), f"--config.checkpoint={workdir}"
  status, out, err = main(f"--workdir={tmp_path}", *options, config="configs/evaluate.py")
  assert status == 0, err
  before, after = (json.loads((folder / "eval.json").read_text()) for folder in (workdir, tmp_path))
  assert after["acc"] == pytest.approx(before["acc"], abs=0.02)
  for token, row in before["factors"]["tokens"].items():
    assert after["factors"]["tokens"][token]["groups"] == pytest.approx(row["groups"], abs=0.02)
  assert "| mean R²" in out and (tmp_path / "factors.png").exists()
  assert json.loads((tmp_path / "config.json").read_text())["config"]["data"]["image_size"] == 32


def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(finished, tmp_path):
  """Also tests that two runs with one seed agree for any number of data workers: the fixture uses none."""
  common = (f"--workdir={tmp_path / 'resumed'}", records(finished))
  status, _, err = main(*common, "--config.train.steps=2")  # only warm-up, for any length of the schedule
  assert status == 0, err
  status, out, err = main(*common, "--config.data.workers=2")
  assert status == 0, err
  assert "resuming" in out
  assert metrics(tmp_path / "resumed") == metrics(finished[0])


def test_footage_without_annotations(finished, tmp_path):
  """Prepares, trains and evaluates on a folder of videos without truth or known lag, with one evaluation clip."""
  raw = tmp_path / "raw"
  for source in sorted((finished[0] / "data" / "synthtalk" / "train").iterdir())[:9]:
    if not source.name.endswith(".truth.npz"):
      raw.mkdir(exist_ok=True)
      shutil.copy(source, raw)
  prepare(raw, tmp_path / "prepared", size=32, progress=False)
  workdir = tmp_path / "run"
  status, out, err = main(
    f"--workdir={workdir}", f"--config.data.sources=(('{tmp_path / 'prepared'}', 1.0),)", "--config.train.steps=1"
  )
  assert status == 0, err
  report = json.loads((workdir / "eval.json").read_text(), parse_constant=pytest.fail)
  assert report["clips"] == 1 and report["ceiling"] is None and report["r_precision"]["top1"] is None
  assert 0 <= report["acc"]["k5"] <= 1 and "lag of 1 clips is unknown" in report["note"]
  assert "factors" not in report and "mean R²" not in out
  assert "synthetic" not in out


def test_ctrl_c_saves_and_prints_how_to_resume(finished, tmp_path):
  workdir = tmp_path / "stopped"
  process = start(
    f"--workdir={workdir}", records(finished), "--config.train.steps=100000", "--config.train.checkpoint_every=100000"
  )
  while not (workdir / "metrics.jsonl").exists() or len(metrics(workdir)) < 2:
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.1)
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=120)
  assert process.returncode == 130, err
  assert "to resume, run the same command again" in out and "Traceback" not in err
  assert [path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]


@pytest.mark.parametrize(
  ("argument", "sentence"),
  [
    ("--config.model.dpeth=3", "no such field: --config.model.dpeth=3"),
    ("--config.train.steps=many", "invalid literal"),
    ("--config.train.batch_clips=7", "batch of 7 examples"),
    ("--config.model.speech_encoder.kind=wav2vec2", "--config.init.speech_encoder=DIR"),
  ],
)
def test_bad_input_prints_one_sentence_and_writes_nothing(tmp_path, argument, sentence):
  status, _, err = main(f"--workdir={tmp_path / 'w'}", argument)
  assert status == 2
  assert sentence in err and len(err.strip().splitlines()) == 1, err
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
  ("field", "value", "sentence"),
  [
    ("train.mesh", (("data", 3),), "needs 3 devices"),
    ("train.mesh", ("data", 3), "a mesh is a tuple"),
    ("train.accumulation", 3, "does not divide"),
    ("model.mask_ratio", 1.0, "mask ratio"),
    ("model.speech_encoder.kind", "hubert", "unknown speech encoder 'hubert'"),
    ("model.remat", "some", "unknown remat policy"),
    ("model.compute_dtype", "float33", "float33"),
    ("model.decoder.depth", 0, "at least one block"),
    ("model.visual_encoder.patch", 0, "no model can be built"),
    ("loss.contrast_form", "sum", "contrast_form"),
    ("loss.positive_window", -1, "positive_window"),
    ("loss.negatives_clips", 3, "must be even"),
    ("data.sources", ("a", 1.0), "tuple of (directory, weight)"),
    ("data.sources", (("nowhere", 1.0),), "there are no records in nowhere"),
    ("seed", -1, "seed must be 0 or more"),
  ],
)
def test_an_invalid_configuration_is_refused_before_anything_is_written(tmp_path, field, value, sentence):
  config = load("tiny")
  *path, name = field.split(".")
  node = config
  for part in path:
    node = node[part]
  node[name] = value
  with pytest.raises(InputError, match=re.escape(sentence)):
    jobs.run(config, tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_unknown_preset_and_missing_weights(tmp_path):
  status, _, err = main(f"--workdir={tmp_path}", preset="huge")
  assert status == 2 and "unknown preset 'huge'" in err
  with pytest.raises(InputError, match="--config.init.speech_encoder=DIR"):
    config = load("paper")
    config.train.mesh = (("data", -1),)
    jobs.run(config, tmp_path / "w")


def test_a_workdir_of_another_model_is_refused_with_both_sides(finished, tmp_path):
  workdir = tmp_path / "copy"
  shutil.copytree(finished[0], workdir)
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
  status, _, err = main(f"--workdir={workdir}", "--config.model.decoder.width=24", "--config.train.steps=6")
  assert status == 2 and "model.decoder.width 16 -> 24" in err
  with pytest.raises(InputError, match="jitter"):  # another model with the same shapes
    jobs.run(load("tiny,A3"), workdir)
  assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def donate(directory, **items):
  optional = {
    "visual_encoder/prompt_tokens": "the donor has no prompt tokens",
    "visual_encoder/class_(token|position)": "only one side has a class token",
  }
  save_items(directory, items, {"conversion": {"donor": "sapiens", "optional": optional}})


def test_starts_from_a_converted_donor_and_from_a_workdir(finished, tmp_path):
  """Without steps or evaluation clips the run saves its initial parameters."""
  there = finished[0] / "checkpoints" / "4"
  item = load_item(there, "visual_encoder")
  grown = resize_position(item["position"], 8)
  donor = {name: leaf for name, leaf in item.items() if name != "prompt_tokens"} | {"position": grown}
  donate(tmp_path / "sapiens", visual_encoder=donor | {"class_token": np.ones((1, 32), np.float32)})
  workdir = tmp_path / "run"
  status, out, err = main(
    f"--workdir={workdir}",
    records(finished),
    f"--config.init.visual_encoder={tmp_path / 'sapiens'}",
    f"--config.init.decoder={finished[0]}",
    "--config.train.steps=0",
    "--config.data.eval_clips=0",
  )
  assert status == 0, err
  lines = out.splitlines()
  assert lines[0].startswith("decoder: ") and lines[0].endswith(f"from {there}")
  assert lines[1].startswith("visual_encoder: ") and lines[1].endswith(f"from sapiens, {tmp_path / 'sapiens'}")
  assert lines[2:5] == [
    "  position resized from 8 x 8 to 4 x 4",
    "  freshly initialised: prompt_tokens (the donor has no prompt tokens)",
    "  left out: class_token (only one side has a class token)",
  ]
  assert lines[5] == "audio_adapter, contrast: freshly initialised (always)"
  assert load_meta(workdir)["donors"]["visual_encoder"]["donor"] == "sapiens"
  report = json.loads((workdir / "initialisation.json").read_text())
  assert report["decoder"]["conversion"] is None and len(report["decoder"]["loaded"]) > 20

  started = load_item(workdir, "visual_encoder")
  assert not np.array_equal(started["prompt_tokens"], item["prompt_tokens"])
  np.testing.assert_array_equal(started["position"], resize_position(grown, 4))
  kept = lambda tree: {name: leaf for name, leaf in tree.items() if name not in ("prompt_tokens", "position")}
  jax.tree.map(np.testing.assert_array_equal, kept(started), kept(item))
  jax.tree.map(np.testing.assert_array_equal, load_item(workdir, "decoder"), load_item(there, "decoder"))


def test_a_directory_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
  donate(tmp_path / "wan", dit={"kernel": np.zeros(2)}, vace={"kernel": np.zeros(2)})
  donate(tmp_path / "other", visual_encoder={"neck": np.zeros(2)})
  for field, directory, sentence in (
    ("decoder", "nowhere", "--config.init.decoder={}: no complete checkpoint in {}"),
    ("visual_encoder", "wan", "checkpoint {} has no item 'visual_encoder'; it has ['dit', 'vace']"),
    ("visual_encoder", "other", "item 'visual_encoder' of {} does not fit:\n  only in the checkpoint (1):"),
    ("speech_encoder", "other", "this model has no item 'speech_encoder' to start from {}; it has ['audio_adapter',"),
  ):
    config = load("tiny")
    config.init[field] = str(tmp_path / directory)
    with pytest.raises(InputError, match=re.escape(sentence.replace("{}", str(tmp_path / directory)))):
      jobs.run(config, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_help_lists_the_flags():
  status = subprocess.run(
    [sys.executable, "-m", "synclipmae_jax.main", "--help"], cwd=ROOT, capture_output=True, text=True
  )
  assert "--workdir" in status.stdout and "resumes" in status.stdout
  status = subprocess.run([sys.executable, "-m", "synclipmae_jax.apps.cli"], cwd=ROOT, capture_output=True, text=True)
  assert "prepare" in status.stdout and status.returncode == 2
