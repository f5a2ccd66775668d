"""Transcripts and token ids. Loads no jax: data workers use it."""
