"""Audio-visual synchronisation of files: footage in, a lag with its confidence out."""
