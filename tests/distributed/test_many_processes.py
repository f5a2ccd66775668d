"""Two and four real processes give the losses, the checkpoint and the scores of a single process."""

from __future__ import annotations

import json
import pathlib
import signal

import jax
import numpy as np
import pytest
from footage import write_video
from toy_run import evaluate, main, note_reads, run_toy, start, train

from synclipmae_jax import checkpoints
from synclipmae_jax.data.prepare import prepare


def log_of(workdir: pathlib.Path) -> dict[int, dict]:
  return {line["step"]: line for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())}


def agree(workdir: pathlib.Path, other: pathlib.Path, *, until: int | None = None, rtol: float = 1e-6) -> None:
  """Compares every step, not bit for bit, because Gloo sums in another order than a single process."""
  one, two = log_of(workdir), log_of(other)
  assert one.keys() == two.keys()
  for step in range(1, (until or max(one)) + 1):
    for name in ("loss", "contrast", "grad_norm"):
      np.testing.assert_allclose(one[step][name], two[step][name], rtol=rtol, err_msg=f"{name} at step {step}")


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_resumes_with_any_number_of_processes_and_on_any_mesh(tmp_path, count):
  """Several processes, stopped by a SIGTERM to one of them; then one process, whose last step is damaged; then several
  again."""
  workdir = tmp_path / "w"
  with run_toy(workdir, count, total=10**6, every=10**6, pause=0.01) as children:
    children[0].wait_for(lambda: "step 3/" in children[0].said)
    children[-1].kill(signal.SIGTERM)
    assert children.wait() == [143] * count, children.said
  assert "sigterm: saved step" in children[0].said and "to resume" in children[0].said
  assert "saved step" not in children[1].said
  saved = [path.name for path in (workdir / "checkpoints").iterdir()]
  step = checkpoints.load_meta(workdir)["step"]
  assert sorted(saved) == [str(step), "frozen"]

  for more in (2, 3):
    train(workdir, total=step + more, every=10**6, mesh=(("data", 2), ("fsdp", 4)))
  saved = (path for path in (workdir / "checkpoints" / str(step + 3) / "head").rglob("*") if path.is_file())
  damaged = max(saved, key=lambda path: path.stat().st_size)
  content = damaged.read_bytes()
  damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  with run_toy(workdir, count, total=step + 4, every=10**6, mesh=(("data", count),)) as children:
    assert children.wait() == [0] * count, children.said
  assert f"checkpoint {step + 3} is damaged (changed head/" in children[0].said
  assert f"resuming {workdir} at step {step + 2}" in children[0].said and "damaged" not in children[1].said
  train(tmp_path / "whole", total=step + 4, every=10**6, mesh=(("fsdp", count),))
  agree(workdir, tmp_path / "whole", until=step)
  agree(workdir, tmp_path / "whole", rtol=2e-5)  # also the steps on other meshes
  saved = {path.name for path in (workdir / "checkpoints").iterdir()}
  assert saved == {str(step + 2), f"{step + 3}.damaged", str(step + 4), "frozen"}
  assert checkpoints.resolve_step(workdir).name == str(step + 4)
  for name in checkpoints.list_items(tmp_path / "whole"):
    one, other = (checkpoints.load_item(folder, name) for folder in (workdir, tmp_path / "whole"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, other)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_scores_are_those_of_a_single_process_to_the_last_bit(tmp_path, count):
  """Five clips of several lengths: shares are unequal, and one share has only a clip that is too short."""
  for name in ("one", "many"):
    (tmp_path / name).mkdir()
  evaluate(tmp_path / "one", clips=5, devices=1)
  with start(count, 2, evaluate, str(tmp_path / "many"), clips=5) as children:
    assert children.wait() == [0] * count, children.said
  shares = {2: [3, 2], 4: [2, 1, 1, 1]}[count]
  assert all(f"{share} clips" in child.said for share, child in zip(shares, children, strict=True))
  report = json.loads((tmp_path / "one" / "eval.json").read_text())
  assert report["clips"] == 4 and report["skipped"] == ["clip 0"] and report["ceiling"]
  factors = report["factors"]
  assert factors["judged_on"] == {"people": 3, "clips": 4} and factors["fitted_on"] == {"people": 3, "clips": 12}
  assert factors["tokens"]["vocal"]["r2"]["mouth/jaw"] < 0.5 and factors["ceiling"]["r2"]
  assert (tmp_path / "many" / "eval.json").read_bytes() == (tmp_path / "one" / "eval.json").read_bytes()


# The whole job with the preset `tiny`.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Records of eight clips of 48 to 76 frames, five of them in the split `train`."""
  raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared")
  for number in range(8):
    rng, count = np.random.default_rng(number), 48 + 4 * number
    images = (np.kron(rng.integers(0, 256, (8, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8)) for _ in range(count))
    sound = rng.normal(0, 0.2, 640 * count).astype(np.float32)
    write_video(raw / f"{number}.mkv", images, sound=sound, sound_codec="flac")
  prepare(raw, out, faces="full_frame", size=32, progress=False)
  return out


def whole_job(folder, prepared, count: int, *, devices: int, **overrides) -> pathlib.Path:
  """Runs the program in `count` processes; FOLDER/run is its workdir, FOLDER/reads/<index> its reads."""
  (folder / "reads").mkdir(parents=True)
  splits = {"data.val_split": "train", "data.eval_split": "train"}
  fields = {"data.sources": ((str(prepared), 1.0),), **splits, **overrides}
  arguments = [f"--config.{name}={value}" for name, value in fields.items()]
  reads = {"folder": str(folder / "reads")}
  with start(
    count, devices, main, str(folder / "run"), arguments=arguments, patch=note_reads, options=reads
  ) as children:
    assert children.wait(500) == [0] * count, children.said
  return folder / "run"


@pytest.mark.slow
def test_the_job_in_four_processes_trains_alike_and_each_reads_its_share(tmp_path, prepared):
  count = 4
  # The paper's terms: ours divide by the deviations of tokens, which hardly deviate yet and magnify the order of a sum.
  ours = {"loss.normalised_covariance": False} | {
    f"loss.weights.{term}": 0.0 for term in ("subject", "frame", "spread")
  }
  options = {"train.steps": 3, "data.eval_clips": 0, **ours}
  one = whole_job(tmp_path / "one", prepared, 1, devices=count, **options)
  many = whole_job(tmp_path / "many", prepared, count, devices=1, **options)
  agree(one, many)
  assert sorted(path.name for path in (many / "checkpoints").iterdir()) == ["2", "3"]
  assert checkpoints.resolve_step(many).name == "3"

  pairs = 8 // 2 // count  # records of a process in the batch of each step
  alone = dict(line.split() for line in (tmp_path / "one" / "reads" / "0").read_text().splitlines())
  needed = set()
  for index in range(count):
    read = dict(line.split() for line in (tmp_path / "many" / "reads" / str(index)).read_text().splitlines())
    assert all(int(position) // pairs % count == index for position in read), "read from another's share"
    assert all(alone.get(position, key) == key for position, key in read.items())
    needed |= read.keys()
  assert {str(position) for position in range(3 * 8 // 2)} <= needed


@pytest.mark.slow
def test_the_job_in_many_processes_scores_alike(tmp_path, prepared):
  """Five clips in one process and in four, with the model at step 0: identical files."""
  reports = []
  for count in (1, 4):
    run = whole_job(tmp_path / str(count), prepared, count, devices=1, **{"train.steps": 0, "data.eval_clips": 5})
    reports.append((run / "eval.json").read_bytes())
  assert json.loads(reports[0])["clips"] == 5
  assert reports[0] == reports[1]


@pytest.mark.parametrize(
  ("workdir", "arguments", "sentence"),
  [
    ("w", ["--distributed"], "--distributed finds no other processes"),
    ("gs://bucket/run", [], "--workdir=gs://bucket/run is not a folder: mount the bucket"),
  ],
)
def test_wrong_input_prints_one_sentence(tmp_path, monkeypatch, workdir, arguments, sentence):
  monkeypatch.chdir(tmp_path)
  with start(1, 1, main, workdir, arguments=arguments) as (child,):
    assert child.wait() == 2, child.said
  assert sentence in child.said and len(child.said.strip().splitlines()) == 1
  assert not list(tmp_path.iterdir())
