"""Linear probes: frozen features of frames become labels of a clip, and labels over time."""
