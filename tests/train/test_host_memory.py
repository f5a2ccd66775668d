"""The settings of malloc: their effect in a real process, and the cases in which they must not be changed."""

import ctypes
import platform
import subprocess
import sys

import jax
import pytest

from synclipmae_jax.train import host_memory

# Page faults of five blocks of 64 MB, allocated, written and freed one after another: before and after.
MEASURE = """
import resource
from synclipmae_jax.train.host_memory import keep_freed_memory

def faults():
  begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(5):
    b"x" * (64 << 20)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""


class Library:
  """A C library that records its calls."""

  def __init__(self):
    self.told = []

  def mallopt(self, *option):
    self.told.append(option)


@pytest.fixture
def library(monkeypatch):
  """A machine with glibc and only a CPU."""
  library = Library()
  monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda _: library)
  monkeypatch.setattr(host_memory.sys, "platform", "linux")
  monkeypatch.setattr(host_memory.importlib.util, "find_spec", lambda _: None)
  return library


def platforms(monkeypatch, names):
  monkeypatch.setattr(host_memory, "jax", type("jax", (), {"config": type("config", (), {"jax_platforms": names})}))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_reused_without_a_page_fault():
  assert jax.config.jax_platforms == "cpu"  # of this process and, through its environment, of the next
  done = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True)
  before, after = map(int, done.stdout.split())
  assert after < before / 10


@pytest.mark.parametrize("names", ["cpu", None, ""])
def test_settings_with_only_a_cpu(monkeypatch, library, names):
  platforms(monkeypatch, names)
  host_memory.keep_freed_memory()
  assert len(library.told) == 3


@pytest.mark.parametrize(
  ("names", "installed"),
  [("tpu", ()), ("cuda,cpu", ()), ("cpu,tpu", ()), (None, ("libtpu",)), ("", ("jax_plugins",))],
)
def test_no_change_if_an_accelerator_may_be_present(monkeypatch, library, names, installed):
  platforms(monkeypatch, names)
  monkeypatch.setattr(host_memory.importlib.util, "find_spec", lambda name: name in installed or None)
  host_memory.keep_freed_memory()
  assert not library.told


def test_no_change_on_another_system(monkeypatch, library):
  platforms(monkeypatch, "cpu")
  monkeypatch.setattr(host_memory.sys, "platform", "darwin")
  host_memory.keep_freed_memory()
  assert not library.told


def test_no_change_without_mallopt(monkeypatch):
  platforms(monkeypatch, "cpu")
  monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
  host_memory.keep_freed_memory()
