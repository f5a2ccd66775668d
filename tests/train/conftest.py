from __future__ import annotations

import jax
import pytest


@pytest.fixture(autouse=True)
def cache_every_compilation():
  """Each run compiles its step anew; here all of them compile the same one."""
  name = "jax_persistent_cache_min_compile_time_secs"
  before = getattr(jax.config, name)
  jax.config.update(name, 0.0)
  yield
  jax.config.update(name, before)
