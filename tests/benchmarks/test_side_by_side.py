"""The shared functions of the benchmarks, and that their configurations are valid; nothing is timed."""

import importlib
import importlib.util
from pathlib import Path

import jax
import pytest

from synclipmae_jax import sharding
from synclipmae_jax.run.jobs import training_job_of
from synclipmae_jax.train.step import check_batch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def load():
  """A benchmark by its name, as a module. These modules do not import torch."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module


def test_every_round_runs_all_in_alternating_order(load):
  ran = []
  runs = {name: lambda name=name: ran.append(name) for name in "abc"}
  times = load("side_by_side").in_turn(runs, rounds=3)
  assert "".join(ran) == "abccbaabc"
  assert all(len(each.wall) == len(each.cpu) == 3 for each in times.values())


def test_a_ratio_is_the_median_over_rounds_and_independent_of_common_load(load):
  side_by_side = load("side_by_side")
  busy = [1.0, 10.0, 1.0, 100.0, 1.0]
  above = side_by_side.Times(wall=[3.0 * b for b in busy], cpu=[1.0] * 5)
  below = side_by_side.Times(wall=[2.0 * b for b in busy], cpu=[1.0, 2.0, 4.0, 4.0, 5.0])
  found = side_by_side.ratio(above, below)
  assert found == side_by_side.Ratio(wall=1.5, low=1.5, high=1.5, cpu=0.25, cpu_low=0.25, cpu_high=0.5)
  below.wall[0] = below.wall[1] = 0.1  # two of five rounds are outliers
  assert side_by_side.ratio(above, below).wall == 1.5 < side_by_side.ratio(above, below).high


@pytest.mark.parametrize("size", ["demo", "middle", "paper"])
def test_a_size_is_a_configuration_of_the_job(load, size):
  config = load("train_step").sized(size, dtype="float32", clips=4)
  task = training_job_of(config).build_task(config)
  mesh = sharding.make_mesh((("data", 1),), jax.devices()[:1])
  check_batch(task, 4, mesh=mesh)
  assert config.model.compute_dtype == "float32" and task.model_flops(task.abstract_batches(4)[0]) > 0


def test_the_cost_of_scaling_rows_increases(load):
  """Each row costs more than the previous row, or as much on more devices; every batch divides."""
  scaling, train_step = load("scaling"), load("train_step")

  def flops(changes):
    config = train_step.change(train_step.sized("demo", dtype="float32"), scaling.SMALLEST)
    config = train_step.change(config, {"train.mesh": (("data", 1),)} | changes)
    devices = jax.devices()[: dict(config.train.mesh).popitem()[1]]
    task, mesh = training_job_of(config).build_task(config), sharding.make_mesh(config.train.mesh, devices)
    check_batch(task, config.train.batch_clips, mesh=mesh)
    return task.model_flops(task.abstract_batches(config.train.batch_clips)[0])

  smallest = flops({})
  for name, rows in scaling.ROWS.items():
    costs = [smallest, *map(flops, rows.values())]
    assert costs == sorted(costs) and (costs[-1] == smallest) == ("devices" in name)


def test_ablations_share_their_data_and_are_told_apart(load, tmp_path):
  ablations = load("ablations")
  options = dict(preset="tiny", steps=3, more=["--config.seed=1"])
  whole, one = (ablations.command(tmp_path, name, **options) for name in ("ours", "A1"))
  assert "--config=configs/pretrain.py:tiny" in whole and not any("sources" in word for word in whole)
  assert "--config=configs/pretrain.py:tiny,A1" in one and "--config.seed=1" in one
  assert f"--config.data.sources=(('{tmp_path}/ours/data/prepared', 1.0),)" in one
  scores = {"acc": {"k1": 0.5, "k5": 0.75, "k15": None}, "r_precision": {"top1": 0.1, "top2": 0.2, "top3": 0.3}}
  report = {"split": "test", "clips": 6, "offset": {}, **scores}
  lines = ablations.table([ablations.row("A1", report)]).splitlines()
  assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
    "A1",
    "50.0",
    "75.0",
    "-",
    "10.0",
    "20.0",
    "30.0",
    "12.7",
  ]


def test_every_trial_of_the_paper_s_recipe_differs_from_it_and_can_be_built(load):
  recipe, change, resolved = load("paper_recipe"), load("train_step").change, set()
  specification = importlib.util.spec_from_file_location("pretrain", BENCHMARKS.parent / "configs" / "pretrain.py")
  presets = importlib.util.module_from_spec(specification)
  specification.loader.exec_module(presets)
  for changes in recipe.TRIALS.values():
    config = change(presets.get_config("scaled"), changes)
    training_job_of(config).build_task(config)
    resolved.add(str(config))
  assert len(resolved) == len(recipe.TRIALS)


def test_the_table_of_trials_has_scores_and_factors(load):
  row = {
    "name": "as_written",
    "acc": {"k1": 0.1, "k5": 0.25, "k15": 0.5},
    "r_precision": {"top1": 0.125},
    "factors": {"vocal": {"mouth": 0.6, "ambient": 0.01}, "ambient": {"mouth": 0.1, "ambient": 0.2}},
  }
  text = load("paper_recipe").table([row, {**row, "name": "contrast_1", "factors": None}])
  _, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
  scores = ["10.0", "25.0", "50.0", "12.5"]
  assert rows == [["as_written", *scores, "0.60/0.01, 0.10/0.20"], ["contrast_1", *scores, "-"]]
