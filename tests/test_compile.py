"""The command that compiles the train step for an absent TPU."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from synclipmae_jax.run import ahead_of_time, hlo, sources, training
from synclipmae_jax.run.jobs import training_job_of
from synclipmae_jax.train import loop
from synclipmae_jax.train.state import abstract_state
from synclipmae_jax.train.step import make_train_step
from synclipmae_jax.types import InputError

ROOT = Path(__file__).parents[1]
GOLDEN = sorted((ROOT / "tests" / "golden").glob("compile_*.json"))
DUBBING = sorted((ROOT / "tests" / "golden").glob("dub_*.json"))


def load(name):
  """A file of configs/ as a module."""
  spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


CONFIG = load("pretrain")
without_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu")


def run(preset, *arguments, config="pretrain"):
  """Runs the command without the compiler flags of the tests."""
  environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))}
  file = ROOT / "configs" / f"{config}.py"
  command = [sys.executable, "-m", "synclipmae_jax.compile", f"--config={file}:{preset}"]
  return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)


def tiny(**model):
  config = CONFIG.get_config("tiny")
  config.model.update(model)
  config.optimizer.name = "adamw"  # the matrix products of Muon are not model FLOPs
  return config


def build_task(config):
  return training_job_of(config).build_task(config)


def model_flops(config):
  task = build_task(config)
  return task.model_flops(task.abstract_batches(config.train.batch_clips)[0])


def lower(config):
  step = training.build_training(training_job_of(config), config, jax.devices())
  [(_, lowered)] = ahead_of_time.lower_steps(step)
  return lowered


def lowered_flops(config):
  """Matrix FLOPs of the whole step, over all devices, before compilation."""
  return hlo.read_cost(lower(config).compiler_ir("hlo").as_hlo_text()).flops


@pytest.mark.slow
def test_the_step_counts_the_same_scanned_and_unrolled_and_nearly_the_model_flops():
  scanned = lowered_flops(tiny(unroll=False))
  assert scanned == lowered_flops(tiny(unroll=True))
  # The model FLOPs include gradients of pixels and speech features, which the step does not compute.
  assert 0.93 < scanned / model_flops(tiny()) <= 1


@pytest.mark.slow
def test_it_is_the_step_that_main_runs(monkeypatch, tmp_path):
  """The compiled step has the task, optimizer and mesh that the job passes to its loop."""
  given = {}

  class Enough(Exception):
    pass

  def capture(task, **options):
    given.update(options, task=task)
    raise Enough

  monkeypatch.setattr(loop, "run", capture)
  nothing = SimpleNamespace(preprocessing={}, shown=())
  monkeypatch.setattr(sources, "open_clips", lambda *_: nothing)
  config = tiny(unroll=False)
  config.train.mesh, config.train.batch_clips = (("data", 2), ("fsdp", 4)), 16
  with pytest.raises(Enough):
    training_job_of(config).run(config, tmp_path)
  step = make_train_step(given["task"], given["optimizer"], mesh=given["mesh"], accumulation=given["accumulation"])
  state, frozen = abstract_state(given["task"], given["optimizer"], given["mesh"])
  [batch] = given["task"].abstract_batches(given["batch_size"])
  key = jax.eval_shape(lambda: jax.random.key(0))
  assert lower(config).as_text() == step.lower(state, frozen, batch, key).as_text()


@pytest.mark.slow
def test_the_paper_without_its_donor_weights():
  """Shapes are enough, also at the size of a pod. Beyond the model FLOPs, forward passes of blocks are repeated."""
  config = CONFIG.get_config("paper")
  assert config.init.require and config.model.remat == "attention"
  ratio = lowered_flops(config) / model_flops(config)
  assert 1.1 < ratio < 1.2
  config.model.remat = "full"
  assert ratio + 0.05 < lowered_flops(config) / model_flops(config) < 4 / 3


@pytest.mark.parametrize(
  ("topology", "complaint"),
  [
    ("v5p-256", "the chips are v4, v5e, v5p"),
    ("v9:2x2", "try v5p:4x4x8"),
    ("v5e:32x32", "at most 256 chips"),
    ("v5p:16x8", "a torus of 3 axes"),
    ("v5p:0x4x4", "unknown topology"),
    ("", "unknown topology"),
  ],
)
def test_an_unknown_topology(topology, complaint):
  with pytest.raises(InputError, match=complaint) as caught:
    ahead_of_time.tpu_devices(topology)
  assert "\n" not in str(caught.value)


def test_without_the_tpu_compiler(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
  with pytest.raises(InputError, match=rf'pip install "jax\[tpu\]=={jax.__version__}"'):
    ahead_of_time.tpu_devices("v5p:4x4x8")


def test_a_mesh_that_does_not_divide_the_topology():
  config = tiny()
  config.train.mesh = (("data", -1), ("fsdp", 3))
  with pytest.raises(InputError, match="does not divide 8 devices; use for example --config.train.mesh"):
    lower(config)


def test_wrong_flags_print_one_sentence():
  done = run("tiny", "--topology=v5p")
  assert done.returncode == 2 and "unknown topology 'v5p'" in done.stderr and not done.stdout
  assert len(done.stderr.strip().splitlines()) == 1


def report(clips=8, peak=10.0, **changes):
  return ahead_of_time.Report(
    topology="v5e:4x4",
    chips=16,
    peak_hbm_gib=peak,
    hbm_gib=15.75,
    fits=peak <= 15.75,
    collectives={"all-gather": {"count": 3, "bytes": 2e9}},
    model_flops=1e12 * clips,
    compiled_flops=1.2e12 * clips,
    roofline={"compute_s": 0.5, "hbm_s": 0.25, "interconnect_s": 0.125},
    mfu_bound=0.8,
    days=2.0,
    **changes,
  )


@pytest.mark.parametrize(
  ("memory", "largest"),
  [
    (lambda clips: 2 + 0.01 * clips, 1344),
    (lambda clips: 2 + 0.01 * clips + (0.4 if clips % 128 else 0), 1312),  # not exactly linear
    (lambda clips: 1e-9 * clips**3, 2496),
    (lambda clips: min(15.7, 0.02 * clips) if clips < 1500 else 99.0, 1472),  # the compiler saves memory, then fails
    (lambda clips: 20.0, 0),
  ],
)
def test_the_search_finds_the_largest_batch(memory, largest):
  tried = []

  def try_batch(clips):
    assert clips % 32 == 0 and clips not in tried
    tried.append(clips)
    return report(clips, memory(clips))

  clips, found = ahead_of_time.search_batch(try_batch, start=256, unit=32)
  assert len(tried) <= 14
  if largest == 0:
    assert clips == 32 and not found.fits
  else:
    assert found.fits and found.model_flops == 1e12 * clips
    assert clips == largest


@pytest.mark.parametrize(
  ("peaks", "chosen"),
  [
    (dict(none=90.0, dots=40.0, attention=12.0, full=5.0), "attention"),
    (dict(none=8.0, dots=7.0, attention=6.0, full=5.0), "none"),
    (dict(none=90.0, dots=80.0, attention=70.0, full=60.0), "full"),  # which needs least
  ],
)
def test_the_search_finds_the_quickest_remat_that_fits(peaks, chosen):
  seconds = dict(none=0.25, dots=0.3, attention=0.4, full=0.5)

  def attempt(policy):
    roofline = {"compute_s": seconds[policy], "hbm_s": 0.1, "interconnect_s": 0.1}
    return dataclasses.replace(report(peak=peaks[policy]), roofline=roofline)

  policy, found = ahead_of_time.search_remat(attempt)
  assert policy == chosen and found.peak_hbm_gib == peaks[chosen]


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("as_json", [True, False])
def test_the_printed_report(monkeypatch, capsys, fits, as_json):
  monkeypatch.setattr(ahead_of_time, "tpu_devices", lambda *_: [])
  monkeypatch.setattr(ahead_of_time, "report_steps", lambda *_: [report(peak=10.0 if fits else 31.0)])
  config = tiny(remat="none")
  config.train.update(batch_clips=256)
  status = ahead_of_time.run(config, topology="v5e:4x4", as_json=as_json, search=None)
  out = capsys.readouterr().out
  assert status == (0 if fits else 1)
  if as_json:
    assert json.loads(out).keys() == {field.name for field in dataclasses.fields(ahead_of_time.Report)} - {
      "parts",
      "slices",
      "dcn_bytes",
    }
  elif fits:
    assert "MFU at most 80%" in out and "3 all-gather (2.00 GB)" in out and "1.20 x" in out
  else:
    assert "31.0 GiB of 15.8" in out
    for way_out in ("--config.model.remat=full", "--config.train.accumulation=2", "--search=batch"):
      assert way_out in out


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_paper_on_a_pod(path):
  """The committed results against the targets and against the current model FLOPs."""
  golden = json.loads(path.read_text())
  golden.pop("remat", None)
  clips = golden.pop("batch_clips", CONFIG.get_config("paper").train.batch_clips)
  report = ahead_of_time.Report(**golden)
  config = CONFIG.get_config("paper")
  config.train.batch_clips = clips
  assert report.fits and report.model_flops == model_flops(config)
  assert report.compiled_flops <= 1.35 * report.model_flops
  kinds = {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}
  # A few gradients change their layout on the way.
  assert report.collectives.keys() <= kinds | {"all-to-all"}
  assert report.collectives.get("all-to-all", {"bytes": 0})["bytes"] < 1e7
  # Only weights are gathered: trained ones in the forward pass, its repetition and the gradient, frozen ones once.
  trainable, frozen = jax.eval_shape(build_task(config).init, jax.random.key(0))
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert report.collectives["all-gather"]["bytes"] <= 2 * (3 * count(trainable) + count(frozen))
  if report.topology == "v5p:4x4x8":
    assert report.chips == 128 and clips == 6144
    assert report.peak_hbm_gib <= 80 and report.mfu_bound >= 0.8 and report.days <= 3.3
  if report.topology == "v6e:16x16":
    assert report.chips == 256 and clips == 6144
    assert report.mfu_bound >= 0.5 and report.days <= 1.4
  if report.topology == "v5e:16x16":
    assert report.mfu_bound >= 0.65


@pytest.mark.parametrize("path", DUBBING, ids=lambda path: path.stem)
def test_dubbing_on_a_pod(path):
  """The committed results of configs/dub.py:paper: they fit, and are of the current model."""
  report = ahead_of_time.Report(**json.loads(path.read_text()))
  config = load("dub").get_config("paper")
  assert report.fits and report.chips == config.train.batch_clips == 128
  assert report.model_flops == model_flops(config)
  # Both paths are computed again for the gradient, the scores of 7,168 tokens twice more (flash attention).
  # The backbone has no gradient of its own.
  assert 1.3 < report.compiled_flops / report.model_flops < 1.75
  assert report.mfu_bound == pytest.approx(
    report.roofline["compute_s"] / report.step_s * report.model_flops / report.compiled_flops
  )


def test_goldens_exist():
  assert "compile_v5p_4x4x8" in [path.stem for path in GOLDEN]
  assert [path.stem for path in DUBBING] == ["dub_v5p_4x4x8", "dub_v6e_8x16"]


def check_compiled(path, preset, *, config):
  """Compiles a step anew, and compares it with its committed result, whose `remat` is not always the preset's."""
  golden = json.loads(path.read_text())
  remat = [f"--config.model.remat={golden.pop('remat')}"] if "remat" in golden else []
  done = run(preset, f"--topology={golden['topology']}", "--json", *remat, config=config)
  assert done.returncode == 0, done.stderr
  now = json.loads(done.stdout)
  print(f"{config}:{preset} on {golden['topology']}: MFU at most {now['mfu_bound']:.1%}, {now['peak_hbm_gib']:.1f} GiB")
  assert now.keys() == golden.keys()
  assert now["model_flops"] == golden["model_flops"]
  assert now["compiled_flops"] == pytest.approx(golden["compiled_flops"], rel=1e-3)
  assert now["peak_hbm_gib"] == pytest.approx(golden["peak_hbm_gib"], rel=0.02)
  assert now["collectives"].keys() == golden["collectives"].keys()
  for kind, expected in golden["collectives"].items():
    assert now["collectives"][kind] == pytest.approx(expected, rel=0.02)
  assert now["mfu_bound"] == pytest.approx(golden["mfu_bound"], rel=0.02)


# CI compiles one of them, `make test-tpu`; `make test-tpu-all` the others too, and dubbing: minutes each.
@pytest.mark.slow
@without_libtpu
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_compiler_agrees_with_the_golden(path):
  check_compiled(path, "paper", config="pretrain")


@pytest.mark.slow
@without_libtpu
@pytest.mark.parametrize("path", DUBBING, ids=lambda path: path.stem)
def test_the_dubbing_step_compiles_as_committed(path):
  check_compiled(path, "paper", config="dub")


@pytest.mark.slow
@without_libtpu
def test_two_slices_exchange_a_shard_of_the_gradients_each():
  mesh = "--config.train.mesh=(('slice', 2), ('data', 1), ('fsdp', -1))"
  done = run("tiny", "--topology=v5e:2x2", "--slices=2", mesh, "--config.train.batch_clips=32", "--json")
  assert done.returncode == 0, done.stderr
  report = json.loads(done.stdout)
  assert report["chips"] == 8 and report["slices"] == 2
  trainable, _ = jax.eval_shape(build_task(tiny()).init, jax.random.key(0))
  count = sum(leaf.size for leaf in jax.tree.leaves(trainable))
  assert count < report["dcn_bytes"] < 4 * count  # float32; most of them divide over the four chips of a slice
  assert report["roofline"]["dcn_s"] == pytest.approx(report["dcn_bytes"] / (25e9 / 8))
  assert "slice" in run("tiny", "--topology=v5e:2x2", "--slices=2", "--config.train.batch_clips=32").stderr


@pytest.mark.slow
@without_libtpu
def test_a_step_too_large_for_its_chips():
  large = ("--config.train.batch_clips=8192", "--config.data.image_size=256")
  done = run("tiny", "--topology=v5e:2x2", *large)
  assert done.returncode == 1 and "It does not fit" in done.stdout and "--config.model.remat=full" in done.stdout
