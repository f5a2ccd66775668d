"""`xpk.sh` with a stand-in xpk that records its arguments."""

import os
import subprocess
import sys

import pytest
from stand_in_cloud import ARGUMENTS, ROOT, script

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the workers' part of the scripts needs Linux")

XPK = ["--project=p", "--zone=z", "--cluster=c", "--accelerator=v5p-256", "--image=i", "--workdir=gs://bucket/runs/x"]


def xpk(*arguments, folder):
  return subprocess.run(
    ["bash", ROOT / "launch" / "xpk.sh", *arguments],
    env={"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)},
    capture_output=True,
    text=True,
  )


def test_xpk_submits_the_same_run(tmp_path):
  note = '#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >"$HOME/NAME"\n'
  for name in ("xpk", "python"):
    script(tmp_path / name, note.replace("NAME", f"{name}.words"))
  words = lambda name: (tmp_path / f"{name}.words").read_bytes().decode().split("\0")[:-1]
  arguments = [argument for argument in ARGUMENTS if "\n" not in argument]
  dry = xpk(*XPK, "--", *arguments, folder=tmp_path)
  assert dry.returncode == 0 and not (tmp_path / "xpk.words").exists()
  assert xpk(*XPK, "--yes", "--slices=2", "--", *arguments, folder=tmp_path).returncode == 0
  assert words("xpk")[:2] == ["workload", "create"] and {
    "--tpu-type=v5p-256",
    "--num-slices=2",
    "--docker-image=i",
  } <= {*words("xpk")}
  (command,) = [word.removeprefix("--command=") for word in words("xpk") if word.startswith("--command=")]
  assert "\n" not in command  # xpk writes it to one line of YAML
  environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
  subprocess.run(["bash", "-c", f"({command}) & wait $!"], env=environment, check=True)
  first = ["-u", "-m", "synclipmae_jax.main", "--distributed", "--config=configs/pretrain.py"]
  assert words("python") == [*first, "--workdir=/gcs/bucket/runs/x", *arguments]


@pytest.mark.parametrize(
  ("arguments", "complaint"),
  [
    (XPK[1:], "--project is missing"),
    ([*XPK, "--workdir=/data"], "pods share only the bucket"),
    ([*XPK, "--restarts=many"], "not 'many'"),
    ([*XPK, "--slices=0"], "not '0'"),
    ([*XPK, "--", "paper"], "unexpected argument 'paper' after --"),
    ([*XPK, "--", "--a=b\nc"], "line breaks"),
    ([*XPK, "what"], "unexpected argument 'what'"),
  ],
)
def test_xpk_refuses_in_one_sentence(tmp_path, arguments, complaint):
  result = xpk(*arguments, folder=tmp_path)
  assert result.returncode == 2 and complaint in result.stderr and len(result.stderr.splitlines()) == 1
