"""The Ray job of launch/prepare_ray.yaml: its command is one of ours, its Ray the tested one."""

import re
from pathlib import Path

import pytest

from synclipmae_jax.apps import prepare as app
from synclipmae_jax.data.prepare import Manifest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (it comes with the extra `ray`)")
ROOT = Path(__file__).parents[2]
NOTHING = Manifest(entries=[], records=None)


def test_the_job_runs_our_command_on_the_tested_ray(monkeypatch):
  job = yaml.safe_load((ROOT / "launch" / "prepare_ray.yaml").read_text())["spec"]
  called = {}
  monkeypatch.setattr(app, "prepare", lambda raw, out, **known: called.update(known, raw=raw, out=out) or NOTHING)
  program, command, *arguments = job["entrypoint"].split()
  assert (program, command) == ("synclipmae", "prepare") and app.main(arguments) == 1
  assert called["engine"] == "ray" and called["workers"] is called["ray_address"] is None
  assert called["raw"].startswith("gs://") and called["out"].startswith("gs://")
  cluster = job["rayClusterSpec"]
  assert re.search(rf"^ray=={re.escape(cluster['rayVersion'])}$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
  assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
