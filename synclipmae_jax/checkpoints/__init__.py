"""Checkpoints with Orbax: `format` (files on disk), `reading` (without a run), `policy` (of a run)."""

from synclipmae_jax.checkpoints.format import manifest_hash, save_items, tree_hash
from synclipmae_jax.checkpoints.policy import Checkpointer
from synclipmae_jax.checkpoints.reading import (
  SavedItem,
  find_item,
  find_reference,
  list_items,
  load_item,
  load_meta,
  numpy_leaves,
  resolve_step,
)

__all__ = [
  "Checkpointer",
  "SavedItem",
  "find_item",
  "find_reference",
  "list_items",
  "load_item",
  "load_meta",
  "manifest_hash",
  "numpy_leaves",
  "resolve_step",
  "save_items",
  "tree_hash",
]
