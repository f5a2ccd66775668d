"""Torch checkpoints to Orbax and back: `python -m synclipmae_jax.convert`. Only this package imports torch."""
