"""SynthTalk, the procedural talking-head corpus: seeded, with no download, no licence and known ground truth.

Synthetic: it says nothing about real faces. `corpus.write_corpus` makes it, `clip.make_clip` is its definition.
"""
