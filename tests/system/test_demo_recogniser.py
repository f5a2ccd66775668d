"""The recogniser of the package: small, complete, of the embedded checkpoint, and open about what it knows."""

import json

import jax
import numpy as np
import pytest

from synclipmae_jax import checkpoints
from synclipmae_jax.data.corpora.grid import sentence
from synclipmae_jax.lipread.reader import EMBEDDED, LipReader
from synclipmae_jax.pretrained import SyncLipMAE
from synclipmae_jax.types import InputError


@pytest.fixture(scope="module")
def reader():
  return LipReader.load()


def test_is_small_whole_and_has_its_card(reader):
  assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) < 12 * 2**20
  card = (EMBEDDED / "README.md").read_text()
  assert card.startswith("# ") and "CC BY 4.0" in card and "Cooke" in card
  assert {leaf.dtype for leaf in jax.tree.leaves(reader.params)} == {np.dtype(np.float32)}
  for item in reader.recogniser.ITEMS:
    checkpoints.find_item(EMBEDDED, item, verify=True)
  assert str(EMBEDDED.parents[2]) not in json.dumps(checkpoints.load_meta(EMBEDDED))  # no place of a machine


def test_it_knows_the_sentences_of_grid_and_says_so(reader):
  assert len(reader.grammar.words) == 51 and len(reader.grammar.places) == 6
  assert reader.grammar.complaint(sentence("bbaf2n")) == ""
  assert reader.grammar.complaint("good evening") != ""
  assert "the embedded recogniser knows 51 words only" in reader.notes[0]
  assert reader.expected and all(np.isfinite(value) for value in reader.expected.values())


def test_it_reads_the_tokens_of_the_embedded_checkpoint(reader):
  reader.check_encoder(SyncLipMAE.load().embedder)


def test_noise_is_doubted(reader):
  noise = np.random.default_rng(0).normal(size=(75, reader.recogniser.in_features)).astype(np.float32)
  assert all(reading.doubts for reading in reader.read(noise))
  with pytest.raises(InputError, match="never seen for 10 frames"):
    reader.read(noise[:3])
