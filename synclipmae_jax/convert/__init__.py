"""Torch checkpoints to Orbax and back: `python -m synclipmae_jax.convert`. The only room that may import torch."""
