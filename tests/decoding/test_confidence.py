"""decoding/confidence.py: measures of a transcript, and where they usually lie."""

import numpy as np

from synclipmae_jax.decoding.confidence import lower_ends, measures
from synclipmae_jax.decoding.transcriber import Transcript


def transcript(log_probs, tokens, score=-1.0):
  return Transcript(hypotheses=(tuple(tokens),), scores=np.array([score]), log_probs=np.asarray(log_probs, np.float32))


def test_measures():
  p = np.log([[0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
  found = measures(transcript(p, [1, 2], score=-3.0))
  np.testing.assert_allclose(found["score"], -1.0)
  np.testing.assert_allclose(found["letters"], (np.log(0.8) + np.log(0.6)) / 2, rtol=1e-6)
  np.testing.assert_allclose(found["agreement"], 0.0, atol=1e-7)
  other = measures(transcript(p, [2]))
  assert other["agreement"] < 0 and other["letters"] < found["letters"]
  assert measures(transcript(p, [1, 1, 1]))["letters"] == -np.inf  # longer than the frames allow


def test_the_lower_ends():
  found = [{"score": float(-n), "letters": -np.inf} for n in range(100)]
  assert lower_ends(found, share=0.02) == {"score": -98.0}
  assert lower_ends(found[:19], share=0.02) == {}
