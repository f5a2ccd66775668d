"""SynthTalk, a procedural talking-head corpus: seeded, without download or licence, with known ground truth.

The corpus is synthetic: results on it do not apply to real faces. `corpus.write_corpus` writes it; `clip.make_clip`
defines its clips.
"""
