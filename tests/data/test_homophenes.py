"""data/synthtalk/homophenes.py: what looks alike, and the floor that follows."""

import pytest

from synclipmae_jax.data.synthtalk import homophenes, phones


def test_phones_that_look_alike():
  classes = dict(zip(phones.NAMES, homophenes.visemes().tolist(), strict=True))
  for alike in ("pbm", "fv", "sz", "kg", "td"):
    assert len({classes[name] for name in alike}) == 1, alike
  assert len({classes[name] for name in ("p", "f", "s", "k", "aa", "uw", "l")}) == 7


def test_the_floor_is_that_of_the_letters_b_and_p():
  assert [group for place in homophenes.groups() for group in place if len(group) > 1] == [["b", "p"]]
  assert homophenes.floor() == pytest.approx(0.1 / 6)
