from __future__ import annotations

import pytest

from synclipmae_jax.tasks.mixture import given_sources, source_names
from synclipmae_jax.types import InputError


def config_of(*directories, synthtalk=None):
  return {"data": {"sources": tuple((directory, None) for directory in directories), "synthtalk": synthtalk}}


@pytest.mark.parametrize(
  ("directories", "names"),
  [
    (("runs/hdtf", "runs/mead/"), ("hdtf", "mead")),
    (("/gcs/b/hdtf/256", "/gcs/b/mead/256"), ("hdtf/256", "mead/256")),
    (("/a/256", "256"), ("a/256", "256")),
    (("gs://b/x y", "gs://c/x y"), ("b/x y", "c/x y")),
    (("one", "one"), ("0", "1")),
    (("one",), ("one",)),
  ],
)
def test_sources_have_the_shortest_names_that_tell_them_apart(directories, names):
  assert source_names(config_of(*directories)) == names


def test_synthtalk_is_the_first_source_where_it_is_one():
  assert source_names(config_of(synthtalk={"weight": None})) == ("synthtalk",)
  assert source_names(config_of("a", synthtalk={"weight": None})) == ("a",)
  assert source_names(config_of("a", synthtalk={"weight": 1.0})) == ("synthtalk", "a")
  assert source_names(config_of("a/synthtalk", synthtalk={"weight": 1.0})) == ("synthtalk", "a/synthtalk")


@pytest.mark.parametrize("sources", [("a", 1.0), (("a",),), (("a", "much"),), 3])
def test_sources_of_another_form_are_refused(sources):
  with pytest.raises(InputError, match=r"data.sources is a tuple of \(directory, weight\)"):
    given_sources({"data": {"sources": sources}})
