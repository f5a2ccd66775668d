"""Settings of a process that trains on a CPU. Together they take a third to a half of the time off a step."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys

import jax

# From glibc's malloc.h: (option, value). No separate mappings, no memory returned, a heap for every thread.
_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = (-4, 0), (-1, -1), (-8, 1024)
_WIDE = "--xla_cpu_prefer_vector_width"
_MADV_HUGEPAGE, _HUGE_PAGE = 14, 1 << 21


def apply_cpu_settings() -> None:
  """Settings for steps of XLA's CPU backend, if no accelerator may be present; otherwise does nothing.

  Call it in the main thread, before JAX starts its backend. Measured for the demo on two cores:

  - The backend allocates the temporaries of every step again, 0.6 GB. glibc maps blocks of this size and returns them,
    so that the kernel clears 140,000 pages in every step. Here freed memory stays in the main heap, which lies in huge
    pages. Only the main thread allocates there, so it runs the steps itself (dispatch is not asynchronous).
  - YNNPACK allocates 30,000 small blocks in a step. Threads keep heaps of their own for these; in one common heap they
    wait for each other.
  - XLA uses vectors of 256 bits also where the processor has 512 (4 % of a step). Flags in `XLA_FLAGS` decide
    otherwise.
  - The threads of OpenBLAS, which factorises matrices, wait for their next call in a loop, on the cores that XLA needs.
    They are not started; `OPENBLAS_NUM_THREADS` in the environment decides otherwise.

  The process never shrinks.
  """
  platforms = jax.config.jax_platforms
  on_cpu = platforms == "cpu" or not (
    platforms or importlib.util.find_spec("libtpu") or importlib.util.find_spec("jax_plugins")
  )
  if not on_cpu:
    return
  os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when the first matrix is factorised
  if _WIDE not in (given := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{_WIDE}=512 {given}".strip()
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):  # not in musl
    for option in (_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX):
      library.mallopt(*option)
    _use_huge_pages(library, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


def _use_huge_pages(library: ctypes.CDLL, size: int) -> None:
  """Asks for huge pages in the next `size` bytes of the heap. None is touched: it costs address space alone."""
  library.malloc.restype = ctypes.c_void_p
  if start := library.malloc(ctypes.c_size_t(size)):
    first = -(-start // _HUGE_PAGE) * _HUGE_PAGE
    library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(start + size - first), _MADV_HUGEPAGE)
    library.malloc(ctypes.c_size_t(_HUGE_PAGE))  # stays: protobuf calls malloc_trim, which returns the end of the heap
    library.free(ctypes.c_void_p(start))
