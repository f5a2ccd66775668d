"""Dubbing of a video: which frames are generated together, and how they are put back into their pictures."""
