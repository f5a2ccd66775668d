from __future__ import annotations

import jax
import pytest


@pytest.fixture(autouse=True)
def cache_every_compilation():
  """Every run compiles its step. Here all runs share one compiled step."""
  name = "jax_persistent_cache_min_compile_time_secs"
  before = getattr(jax.config, name)
  jax.config.update(name, 0.0)
  yield
  jax.config.update(name, before)
