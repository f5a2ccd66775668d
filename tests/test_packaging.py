"""What `pip install` promises: pins within the ranges, a wheel that holds the configurations, a run from anywhere."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from synclipmae_jax.run import config_files
from synclipmae_jax.types import InputError

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What the project is said to stand on: each is installed by default.
NAMED = {
  "clu", "einops", "flax", "grain", "jax", "librosa", "ml-collections", "numpy", "optax", "orbax-checkpoint",
  "tensorflow-datasets", "transformers",
}  # fmt: skip


def normal(name: str) -> str:
  return re.sub(r"[-_.]+", "-", name).lower()


def requirements(lines) -> dict[str, Requirement]:
  found = [Requirement(line.partition(" #")[0]) for line in lines if line.strip() and not line.startswith("#")]
  return {normal(requirement.name): requirement for requirement in found}


def pins(file: str) -> dict[str, str]:
  pinned = requirements((ROOT / file).read_text().splitlines())
  assert all(str(requirement.specifier).startswith("==") for requirement in pinned.values())
  return {name: str(requirement.specifier).removeprefix("==") for name, requirement in pinned.items()}


def test_every_dependency_is_pinned_within_its_range():
  pinned, wanted = pins("requirements.txt"), requirements(PROJECT["dependencies"])
  assert pinned.keys() == wanted.keys() and wanted.keys() >= NAMED
  for name, requirement in wanted.items():
    assert pinned[name] in requirement.specifier, requirement
    assert {"<", ">"} <= {specifier.operator[0] for specifier in requirement.specifier}, requirement


def test_what_the_extras_bring_is_pinned_within_its_range_and_stays_optional():
  pinned = pins("requirements.txt") | pins("constraints.txt")
  default = pins("requirements.txt")
  for extra in PROJECT["optional-dependencies"].values():
    for name, requirement in requirements(extra).items():
      if name != "synclipmae-jax":
        assert pinned[name] in requirement.specifier, requirement
  assert not default.keys() & {"torch", "diffusers", "pytest", "ruff", "mypy"}


def test_a_configuration_is_found_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("configs/pretrain.py:tiny,A1", "pretrain.py:tiny,A1"):
    file, _, preset = config_files.find_config(name).partition(":")
    assert Path(file).samefile(ROOT / "configs" / "pretrain.py") and preset == "tiny,A1"
  (tmp_path / "pretrain.py").touch()  # one's own comes first
  assert config_files.find_config("pretrain.py") == "pretrain.py"
  contained = "dub.py, evaluate.py, pretrain.py, probe.py, sync.py"
  for name in ("configs/none.py:tiny", "elsewhere/pretrain.py"):
    with pytest.raises(InputError, match=f"does not exist; the package contains {contained}"):
      config_files.find_config(name)


def test_a_configuration_is_loaded_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert config_files.load_config("configs/pretrain.py:tiny,A1").model.views == "uniform"
  assert config_files.load_config("pretrain.py").train.steps == 400_000
  with pytest.raises(InputError, match="unknown preset 'none'"):
    config_files.load_config("pretrain.py:none")


@pytest.mark.parametrize(
  "given", [["--config=pretrain.py:tiny"], ["--config", "pretrain.py:tiny"], ["-config=pretrain.py:tiny"]]
)
def test_the_flag_in_every_spelling(given, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found = config_files.with_config_found(["main", *given, "--config.train.steps=3", "--workdir", "x"])
  assert sum(str(ROOT / "configs" / "pretrain.py:tiny") in argument for argument in found) == 1
  assert found[0] == "main" and found[-3:] == ["--config.train.steps=3", "--workdir", "x"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Built from this checkout by what the test environment has; nothing is downloaded."""
  folder = tmp_path_factory.mktemp("wheel")
  build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
  subprocess.run([sys.executable, *build], check=True, cwd=folder)
  (path,) = folder.glob("*.whl")
  return path


@pytest.mark.slow
def test_the_wheel_holds_all_that_a_run_needs(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
  wanted = {name for name in tracked if name.startswith("synclipmae_jax/")}
  wanted |= {f"synclipmae_jax/{name}" for name in tracked if name.startswith("configs/")}
  assert "synclipmae_jax/configs/pretrain.py" in wanted and "synclipmae_jax/py.typed" in wanted
  assert wanted <= names
  assert not [name for name in names if not name.startswith(("synclipmae_jax/", "synclipmae_jax-"))]


@pytest.mark.slow
def test_the_installed_wheel_trains_in_an_empty_folder(wheel, tmp_path):
  site, place = tmp_path / "site", tmp_path / "place"
  place.mkdir()
  install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
  subprocess.run(install, check=True)
  environment = {**os.environ, "PYTHONPATH": str(site)}
  where = [sys.executable, "-c", "import synclipmae_jax; print(synclipmae_jax.__file__)"]
  shown = subprocess.run(where, cwd=place, env=environment, capture_output=True, text=True, check=True).stdout
  assert Path(shown.strip()).is_relative_to(site)
  command = [
    "-m",
    "synclipmae_jax.main",
    "--config=configs/pretrain.py:tiny",
    "--workdir=run",
    "--config.train.steps=2",
  ]
  done = subprocess.run([sys.executable, *command], cwd=place, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert (place / "run" / "eval.json").stat().st_size > 0
