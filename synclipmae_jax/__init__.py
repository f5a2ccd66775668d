"""SyncLipMAE in JAX/Flax: audio-visual pretraining on talking faces and its applications.

Exported names are imported on first use, so that a data worker that imports `synclipmae_jax.data.pipeline` loads no
model.
"""

from importlib import import_module

_EXPORTS = {
  "Dubber": "synclipmae_jax.dub.dubber",
  "SyncLipMAE": "synclipmae_jax.pretrained",
  "prepare": "synclipmae_jax.data.prepare",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
  if name in _EXPORTS:
    return getattr(import_module(_EXPORTS[name]), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
