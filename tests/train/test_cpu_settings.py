"""The settings of a CPU run: their effect in a real process, and the cases in which they must not be changed."""

import ctypes
import json
import os
import platform
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from synclipmae_jax.train import cpu_settings

# Page faults of five blocks of 64 MB, allocated, written and freed one after another, before and after; whether the
# heap asks for huge pages; and what JAX makes of the other settings.
MEASURE = """
import ctypes, json, os, resource
from synclipmae_jax.train.cpu_settings import apply_cpu_settings

def faults():
  begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(5):
    b"x" * (64 << 20)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

before = faults()
apply_cpu_settings()
ctypes.CDLL(None).malloc_trim(0)  # as protobuf does
faults()
after = faults()
parts = open("/proc/self/smaps").read().split("[heap]")[1:]
heap = [part.split("VmFlags:")[1].splitlines()[0].split() for part in parts]

import jax, jax.numpy as jnp
solved = jax.jit(jnp.linalg.solve)(2 * jnp.eye(3), jnp.ones(3))
threads = os.environ["OPENBLAS_NUM_THREADS"]
print(json.dumps([before, after, any("hg" in flags for flags in heap), len(jax.devices()), solved.tolist(), threads]))
"""


class Library:
  """A C library that records its calls."""

  def __init__(self):
    self.told = []
    self.malloc = lambda size: None  # there is no room
    self.mallopt = lambda *option: self.told.append(option)


@pytest.fixture
def library(monkeypatch):
  """A machine with glibc and only a CPU."""
  library = Library()
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
  monkeypatch.setattr(cpu_settings.ctypes, "CDLL", lambda _: library)
  monkeypatch.setattr(cpu_settings.sys, "platform", "linux")
  monkeypatch.setattr(cpu_settings.importlib.util, "find_spec", lambda _: None)
  return library


def platforms(monkeypatch, library, names):
  config = types.SimpleNamespace(jax_platforms=names, update=lambda *option: library.told.append(option))
  monkeypatch.setattr(cpu_settings, "jax", types.SimpleNamespace(config=config))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_reused_without_a_page_fault():
  assert jax.config.jax_platforms == "cpu"  # of this process and, through its environment, of the next
  environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
  environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=3"  # stays as given
  done = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True, env=environment)
  before, after, huge, devices, solved, threads = json.loads(done.stdout)
  assert after < before / 10
  there = Path("/sys/kernel/mm/transparent_hugepage/enabled")
  assert huge or not there.exists() or "[never]" in there.read_text()
  assert (devices, solved, threads) == (3, [0.5] * 3, "1")


@pytest.mark.parametrize("names", ["cpu", None, ""])
def test_settings_with_only_a_cpu(monkeypatch, library, names):
  platforms(monkeypatch, library, names)
  cpu_settings.apply_cpu_settings()
  assert library.told == [("jax_cpu_enable_async_dispatch", False), (-4, 0), (-1, -1), (-8, 1024)]
  assert os.environ["XLA_FLAGS"] == "--xla_cpu_prefer_vector_width=512" and os.environ["OPENBLAS_NUM_THREADS"] == "1"


def test_what_the_user_set_stays(monkeypatch, library):
  platforms(monkeypatch, library, "cpu")
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=128")
  monkeypatch.setenv("OPENBLAS_NUM_THREADS", "4")
  cpu_settings.apply_cpu_settings()
  assert os.environ["XLA_FLAGS"] == "--xla_cpu_prefer_vector_width=128" and os.environ["OPENBLAS_NUM_THREADS"] == "4"


@pytest.mark.parametrize(
  ("names", "installed"),
  [("tpu", ()), ("cuda,cpu", ()), ("cpu,tpu", ()), (None, ("libtpu",)), ("", ("jax_plugins",))],
)
def test_no_change_if_an_accelerator_may_be_present(monkeypatch, library, names, installed):
  platforms(monkeypatch, library, names)
  monkeypatch.setattr(cpu_settings.importlib.util, "find_spec", lambda name: name in installed or None)
  cpu_settings.apply_cpu_settings()
  assert not library.told and not os.environ["XLA_FLAGS"]


def test_no_memory_settings_on_another_system(monkeypatch, library):
  platforms(monkeypatch, library, "cpu")
  monkeypatch.setattr(cpu_settings.sys, "platform", "darwin")
  cpu_settings.apply_cpu_settings()
  assert library.told == [("jax_cpu_enable_async_dispatch", False)]


def test_no_memory_settings_without_mallopt(monkeypatch, library):
  platforms(monkeypatch, library, "cpu")
  monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
  cpu_settings.apply_cpu_settings()
