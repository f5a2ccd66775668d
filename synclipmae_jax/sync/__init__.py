"""Audio-visual synchronisation of video files: estimates the lag and its confidence."""
