"""Dubbing of a video: its pictures and its drive, what is generated together, and how it is put back."""
