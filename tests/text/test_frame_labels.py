"""text/frame_labels.py: what CTC reads of the labels is the text."""

import itertools

import numpy as np

from synclipmae_jax.text.frame_labels import UNKNOWN, frame_labels
from synclipmae_jax.text.tokenisers import Characters
from synclipmae_jax.types import Segment

LETTERS = Characters(" 'abcdefghijklmnopqrstuvwxyz")


def read(labels):
  return LETTERS.decode([label for label, _ in itertools.groupby(labels.tolist()) if label])


def test_ctc_reads_the_text():
  words = [Segment(0.2, 0.6, "three"), Segment(0.6, 0.8, "b"), Segment(1.0, 1.4, "soon")]
  labels = frame_labels(LETTERS, words, 45)
  assert read(labels) == "three b soon" and labels.dtype == np.int32
  assert (labels[:5] == 0).all() and (labels[35:] == 0).all() and (labels[20:25] == 0).all()
  assert labels[14] == labels[19] == 1  # a space ends a word, none the sentence


def test_what_is_not_known_is_said():
  assert (frame_labels(LETTERS, [], 9) == UNKNOWN).all()
  labels = frame_labels(LETTERS, [Segment(0.0, 0.12, "please"), Segment(0.2, 0.4, "é")], 12)
  assert (labels[:3] == UNKNOWN).all() and (labels[3:5] == 0).all() and (labels[5:10] == UNKNOWN).all()
