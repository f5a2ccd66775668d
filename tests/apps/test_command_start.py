"""What a command imports and keeps: `--help` loads no model code, and the cache of compilations is never fatal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synclipmae_jax.apps import footage
from synclipmae_jax.apps.cli import COMMANDS

SLOW = {"jax", "flax", "orbax", "ai_edge_litert", "scipy", "matplotlib", "skimage", "librosa", "transformers"}
MEASURES = "calibrate"  # it fits for minutes: its imports are no part of the waiting
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "SYNCLIPMAE_"))}


def python(code: str, *words: object, **variables: object) -> subprocess.CompletedProcess[str]:
  environment = {**PLAIN, "JAX_PLATFORMS": "cpu", **{name: str(value) for name, value in variables.items()}}
  root = Path(footage.__file__).parents[2]
  return subprocess.run(
    [sys.executable, "-c", code, *map(str, words)], cwd=root, env=environment, capture_output=True, text=True
  )


def test_help_loads_no_model_code():
  code = """
import contextlib, io, sys
from synclipmae_jax.apps.cli import main
for name in sys.argv[1:]:
  with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
    main([name, "--help"][name == "synclipmae":])
  assert len(said.getvalue()) > 200, name
  print(name, *sorted({module.split(".")[0] for module in sys.modules}))
"""
  done = python(code, "synclipmae", *(name for name in COMMANDS if name != MEASURES))
  assert not done.returncode, done.stderr
  loaded = {line.split()[0]: SLOW & set(line.split()[1:]) for line in done.stdout.splitlines()}
  assert len(loaded) == len(COMMANDS) and not any(loaded.values()), loaded


def test_the_start_of_sync_leaves_jax_to_the_thread():
  """The modules that stand between the command line and the first picture."""
  code = (
    "import sys, synclipmae_jax.apps.sync, synclipmae_jax.sync.ready, synclipmae_jax.sync.report; print(*sys.modules)"
  )
  done = python(code)
  assert "synclipmae_jax.inference.stream" in done.stdout and not SLOW & set(done.stdout.split())


def test_a_command_starts_no_blas_threads_unless_told():
  code = """
import contextlib, os, sys
if not sys.argv[1:]: os.environ.pop("OPENBLAS_NUM_THREADS", None)
from synclipmae_jax.apps.cli import main
with contextlib.redirect_stdout(None), contextlib.suppress(SystemExit):
  main(["sync", "--help"])
import numpy, threadpoolctl
print(*(library["num_threads"] for library in threadpoolctl.threadpool_info() if library["internal_api"] == "openblas"))
"""
  assert set(python(code).stdout.split()) <= {"1"}  # of a numpy that comes with OpenBLAS
  assert set(python(code, "given", OPENBLAS_NUM_THREADS=2).stdout.split()) <= {"2"}


COMPILE = """
import sys
from synclipmae_jax.apps.footage import keep_compiled
if sys.argv[1:]: import jax
keep_compiled()
import jax
print(float(jax.jit(lambda x: (x * 3).sum())(jax.numpy.arange(5.0))), jax.config.jax_compilation_cache_dir)
"""


def compiled(folder: Path) -> list[str]:
  return sorted(path.name for path in folder.rglob("*-cache"))


@pytest.mark.slow
def test_compilations_are_kept_whether_or_not_jax_is_there(tmp_path):
  first = python(COMPILE, SYNCLIPMAE_CACHE=tmp_path)
  names = compiled(tmp_path)
  assert names and not first.stderr, first.stderr
  second = python(COMPILE, "imported", SYNCLIPMAE_CACHE=tmp_path)
  assert compiled(tmp_path) == names and second.stdout == first.stdout and not second.stderr


@pytest.mark.slow
def test_two_processes_at_once_and_a_damaged_entry_are_safe(tmp_path):
  environment = {**PLAIN, "JAX_PLATFORMS": "cpu", "SYNCLIPMAE_CACHE": str(tmp_path)}
  root = Path(footage.__file__).parents[2]
  start = lambda: subprocess.Popen(
    [sys.executable, "-c", COMPILE],
    cwd=root,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  for process in [start() for _ in range(2)]:
    said, complaint = process.communicate(timeout=120)
    assert said.startswith("30.0") and not complaint
  for path in tmp_path.rglob("*-cache"):
    path.write_bytes(path.read_bytes()[:50])
  assert python(COMPILE, SYNCLIPMAE_CACHE=tmp_path).stdout.startswith("30.0")


@pytest.mark.parametrize("place", ["off", "file", "below a file"])
def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch, place):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv(
    footage.CACHE, {"off": "off", "file": str(tmp_path / "file")}.get(place, str(tmp_path / "file" / "x"))
  )
  assert footage.cache_folder() is None
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  footage.keep_compiled()
  assert "JAX_COMPILATION_CACHE_DIR" not in os.environ and list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_folder_that_cannot_be_written_is_none(tmp_path, monkeypatch):
  monkeypatch.setenv(footage.CACHE, str(tmp_path))
  assert footage.cache_folder().parent == tmp_path
  monkeypatch.setattr(footage.os, "access", lambda *_: False)
  assert footage.cache_folder() is None


def test_folders_of_other_versions_go_when_they_have_not_been_used_for_long(tmp_path, monkeypatch):
  monkeypatch.setenv(footage.CACHE, str(tmp_path))
  old, recent, foreign = (tmp_path / name for name in ("versions-0.0.1-0.9-0.9", "versions-0.0.2-0.9-0.9", "holiday"))
  for folder, days in ((old, 90), (recent, 1), (foreign, 900)):
    folder.mkdir()
    (folder / "x").write_text("")
    os.utime(folder, (time.time() - 86_400 * days,) * 2)
  folder = footage.cache_folder()
  assert sorted(tmp_path.iterdir()) == sorted([recent, folder, foreign])
