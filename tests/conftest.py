"""Settings before the import of jax: eight CPU devices, no accelerator, one compilation cache for all tests.

XLA's optimiser is off, and its older emitters write the code: at test sizes compiling costs far more than running, and
this takes a third of it. The package is imported with its shape annotations checked at every call (shape_checks.py).
"""

import os
import pathlib
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["FAST_COMPILE"] = FAST_COMPILE  # for processes with another number of devices
os.environ["XLA_FLAGS"] = f"{FAST_COMPILE} --xla_force_host_platform_device_count=8"
CACHE = pathlib.Path(tempfile.gettempdir()) / "synclipmae_jax_test_compilation_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("SYNCLIPMAE_CACHE", str(CACHE / "commands"))  # of this package's commands
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

from absl import flags  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("synclipmae_jax", "shape_checks.check_shapes")

flags.FLAGS.mark_as_parsed()  # grain's mp_prefetch reads absl flags

FIRST = ("system", "run", "distributed", "tasks")  # folders of the files that take longest


def pytest_collection_modifyitems(items):
  """Long files first: two processes then end at about the same time."""
  folder = lambda item: item.path.relative_to(pathlib.Path(__file__).parent).parts[0]
  items.sort(key=lambda item: FIRST.index(folder(item)) if folder(item) in FIRST else len(FIRST))
