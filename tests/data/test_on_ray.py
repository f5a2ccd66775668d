"""`data.engines.on_ray` and `prepare --engine ray` on a real Ray: a cluster of two machines of one processor each.

The machines are processes of this one (`ray.cluster_utils`). Their workers are killed, and one of them is lost.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from preparing import by_file, contents, run, talk

from synclipmae_jax.data import engines, records
from synclipmae_jax.types import InputError

ray = pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
pytestmark = pytest.mark.slow

LONG = 120  # seconds for what takes a few on an idle machine


@pytest.fixture(scope="module")
def cluster():
  from ray.cluster_utils import Cluster

  ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # its functions run on machines without the tests
  cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
  cluster.second = cluster.add_node(num_cpus=1)
  yield cluster
  ray.shutdown()
  cluster.shutdown()


@pytest.fixture(scope="module")
def on_ray(cluster):
  """The engine; as long as it is open, `prepare` uses its connection."""
  with engines.engine("ray", ray_address=cluster.address) as run:
    yield run


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
  folder = tmp_path_factory.mktemp("ray") / "raw"
  for name in "abcdef":
    (folder / name).mkdir(parents=True)
    talk(folder / name / "1.mp4", count=50)
  (folder / "a" / "2.mp4").write_text("no")
  return folder


@pytest.fixture(scope="module")
def expected(raw, tmp_path_factory):
  """The output of the local engine, with a shard for every file."""
  out = tmp_path_factory.mktemp("ray") / "out"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(records, "SHARD_FRAMES", 1)
    run(raw, out)
  assert len(list(out.rglob("*.array_record-*"))) == 6
  return contents(out)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
  monkeypatch.setattr(records, "SHARD_FRAMES", 1)


def until(met, seconds=LONG):
  end = time.monotonic() + seconds
  while not met():
    assert time.monotonic() < end, "it takes too long"
    time.sleep(0.01)


def ours(status: str, parent: int) -> list[int]:
  """The processes below `parent` whose title begins with `status`."""
  parents, titles = {}, {}
  for process in (int(name) for name in os.listdir("/proc") if name.isdigit()):
    try:
      parents[process] = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
      titles[process] = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
      continue

  def below(process):
    while process in parents:
      if (process := parents[process]) == parent:
        return True

  return [process for process, title in titles.items() if title.startswith(status) and below(process)]


def lost(unit, reason):
  return f"{unit} is lost"


def note(place, text=""):
  Path(place, uuid.uuid4().hex).write_text(text)


# -- the engine --


def test_a_unit_that_kills_its_process_is_lost_and_the_others_are_done(on_ray, tmp_path):
  def work(unit):
    if unit == 2:
      note(tmp_path)
      os.kill(os.getpid(), signal.SIGKILL)
    return unit

  assert sorted(map(str, on_ray(work, range(5), lost=lost))) == ["0", "1", "2 is lost", "3", "4"]
  assert len(list(tmp_path.iterdir())) == 3


def test_few_units_are_in_flight(on_ray, tmp_path):
  def work(unit):
    note(tmp_path)
    return unit

  results = on_ray(work, range(30), lost=lost)
  next(results)
  time.sleep(3)
  assert 1 <= len(list(tmp_path.iterdir())) <= 4  # two a processor
  assert len(list(results)) == 29


def test_an_error_of_the_system_stops_all_units_which_clean_up(on_ray, tmp_path):
  def work(unit):
    if unit:
      until(lambda: (tmp_path / "partial").exists())
      raise OSError(28, "No space left on device", "/data/clips/x.mp4")
    try:
      (tmp_path / "partial").touch()
      until(lambda: False)
    except BaseException:
      (tmp_path / "partial").unlink()
      raise

  with pytest.raises(OSError, match="No space left") as caught:
    list(on_ray(work, range(2), lost=lost))
  assert (caught.value.errno, caught.value.filename) == (28, "/data/clips/x.mp4")
  assert not (tmp_path / "partial").exists()


# -- prepare --


def test_the_bytes_are_those_of_the_local_engine_though_a_worker_is_killed(cluster, on_ray, raw, expected, tmp_path):
  killed = []

  def kill():
    until(lambda: list((tmp_path / "out").glob("clips/.*")))
    killed.extend(ours("ray::_do", os.getpid())[:1])
    for process in killed:
      os.kill(process, signal.SIGKILL)

  thread = threading.Thread(target=kill)
  thread.start()
  manifest = run(raw, tmp_path / "out", engine="ray")
  thread.join()
  assert killed and contents(tmp_path / "out") == expected
  assert by_file(manifest)["a/2.mp4"]["outcome"] == "rejected"


def test_storage_that_all_machines_see(on_ray, raw, expected, tmp_path):
  run(f"file://{raw}", f"file://{tmp_path}/out", engine="ray")
  found = contents(tmp_path / "out")
  assert found.keys() == expected.keys()
  assert [name for name in found if found[name] != expected[name] and not name.endswith("done.json")] == []


def test_killed_on_a_ray_of_its_own_and_started_again(on_ray, raw, expected, tmp_path):
  """The command starts a Ray with two workers, is killed at work, and leaves no process. The next run continues."""
  out, mark = tmp_path / "out", uuid.uuid4().hex
  command = [sys.executable, "-m", "synclipmae_jax.apps.prepare", "--raw", raw, "--out", out, "--faces", "full_frame",
             "--size", "32", "--sync-model", "none", "--engine", "ray", "--workers", "2"]  # fmt: skip
  environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"MARK_OF_TEST": mark}
  process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  until(lambda: list(out.glob("clips/*/done.json")) or process.poll() is not None)
  process.kill()
  process.wait()
  done = {path: path.stat().st_mtime_ns for path in out.glob("clips/*/done.json")}
  assert done and not (out / "manifest.jsonl").exists()

  def alive():
    for place in Path("/proc").glob("[0-9]*"):
      try:
        if mark.encode() in (place / "environ").read_bytes():
          return True
      except OSError:
        pass
    return False

  until(lambda: not alive())
  run(raw, out, engine="ray")
  assert contents(out) == expected
  assert done.items() <= {path: path.stat().st_mtime_ns for path in out.glob("clips/*/done.json")}.items()


# -- a machine, then all are lost; the last tests: nothing is left of the cluster --


def test_what_a_lost_machine_had_is_done_again(cluster, on_ray, tmp_path):
  def work(unit):
    note(tmp_path, ray.get_runtime_context().get_node_id())
    time.sleep(0.2)
    return unit

  units, found = on_ray(work, range(120), lost=lost), []
  at_work = lambda: cluster.second.node_id in {path.read_text() for path in tmp_path.iterdir()}
  while not at_work():  # on a busy machine the first node may have done several units by then
    found.append(next(units))
  cluster.remove_node(cluster.second, allow_graceful=False)
  found += units
  assert sorted(found) == list(range(120))


def test_the_end_of_ray_is_one_sentence(cluster, on_ray, tmp_path):
  def work(unit):
    (tmp_path / "begun").touch()
    time.sleep(LONG)

  def end():
    until((tmp_path / "begun").exists)
    for node in list(cluster.list_all_nodes()):
      node.kill_raylet()

  thread = threading.Thread(target=end)
  thread.start()
  with pytest.raises(InputError, match="Ray has "):
    list(on_ray(work, range(2), lost=lost))
  thread.join()
