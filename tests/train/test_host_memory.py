"""What malloc does with freed memory: once, for real, and everywhere it must be left alone."""

import ctypes
import platform
import subprocess
import sys

import jax
import pytest

from synclipmae_jax.train import host_memory

# Page faults of five blocks of 64 MB, taken, written and freed one after another: before, and after.
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
  """A C library that notes what it is told."""

  def __init__(self):
    self.told = []

  def mallopt(self, *option):
    self.told.append(option)


@pytest.fixture
def library(monkeypatch):
  """A machine with glibc and a CPU alone."""
  library = Library()
  monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda _: library)
  monkeypatch.setattr(host_memory.sys, "platform", "linux")
  monkeypatch.setattr(host_memory.importlib.util, "find_spec", lambda _: None)
  return library


def platforms(monkeypatch, names):
  monkeypatch.setattr(host_memory, "jax", type("jax", (), {"config": type("config", (), {"jax_platforms": names})}))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_is_freed_is_used_again_without_a_page_fault():
  assert jax.config.jax_platforms == "cpu"  # of this process and, by its environment, of the next
  done = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True)
  before, after = map(int, done.stdout.split())
  assert after < before / 10


@pytest.mark.parametrize("names", ["cpu", None, ""])
def test_on_a_cpu_alone(monkeypatch, library, names):
  platforms(monkeypatch, names)
  host_memory.keep_freed_memory()
  assert len(library.told) == 3


@pytest.mark.parametrize(
  ("names", "installed"),
  [("tpu", ()), ("cuda,cpu", ()), ("cpu,tpu", ()), (None, ("libtpu",)), ("", ("jax_plugins",))],
)
def test_nothing_where_an_accelerator_may_be(monkeypatch, library, names, installed):
  platforms(monkeypatch, names)
  monkeypatch.setattr(host_memory.importlib.util, "find_spec", lambda name: name in installed or None)
  host_memory.keep_freed_memory()
  assert not library.told


def test_nothing_on_another_system(monkeypatch, library):
  platforms(monkeypatch, "cpu")
  monkeypatch.setattr(host_memory.sys, "platform", "darwin")
  host_memory.keep_freed_memory()
  assert not library.told


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch):
  platforms(monkeypatch, "cpu")
  monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
  host_memory.keep_freed_memory()
