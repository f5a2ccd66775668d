import dataclasses
import json

import numpy as np
import pytest
from test_saved import saved_probe

from synclipmae_jax.probing.linear_probe import LinearProbe
from synclipmae_jax.probing.over_time import label_file
from synclipmae_jax.probing.sampling import Sampling
from synclipmae_jax.types import InputError


def probe_of_the_sign(*, several=False, frames=16):
  """The first feature tells: above 0 "left", below 0 "right"."""
  kernel = np.zeros((4, 2), np.float32)
  kernel[0] = 4, -4
  probe = LinearProbe(kernel=kernel, bias=np.zeros(2, np.float32), classes=("left", "right"), several=several)
  return saved_probe(probe=probe, sampling=Sampling(frames=frames))


def tokens(first, *, absent=()):
  values = np.zeros((len(first), 4), np.float32)
  values[:, 0] = first
  values[list(absent)] = np.nan
  return {"vocal": values, "ambient": values}


def test_labels_follow_the_tokens_and_a_gap_has_none():
  found = label_file(probe_of_the_sign(), tokens([1] * 50 + [-1] * 75, absent=range(30, 40)), window=0.2)
  assert found.labels == ("right",) and found.face_frames == 115 and not found.notes
  stretches = [segment for segment, _ in found.stretches()]
  assert [(s.start, s.end, s.label) for s in stretches] == [(0.0, 1.2, "left"), (1.6, 2.0, "left"), (2.0, 5.0, "right")]
  assert np.isnan(found.over_time[30:40]).all() and np.isfinite(found.over_time[40:]).all()
  np.testing.assert_allclose(found.over_time[[0, 124]].max(axis=1), 1 / (1 + np.exp(-8)), rtol=1e-4)
  entry = json.loads(json.dumps(found.to_json("a.mp4"), allow_nan=False))
  assert entry["labels"] == ["right"] and len(entry["stretches"]) == 3
  assert (entry["frames"], entry["frames_with_a_face"]) == (125, 115)


def test_several_labels_may_all_be_absent():
  found = label_file(probe_of_the_sign(several=True), tokens([0] * 20), window=1.0)
  assert found.labels == () and found.stretches() == []


def test_the_window_averages_the_logits():
  first = np.zeros(25)
  first[12] = 1.0
  found = label_file(probe_of_the_sign(several=True), tokens(first), window=0.2)  # 5 frames
  np.testing.assert_allclose(found.over_time[10:15, 0], 1 / (1 + np.exp(-4 / 5)), rtol=1e-5)
  np.testing.assert_allclose(found.over_time[9, 0], 0.5)


def test_a_short_file_says_how_it_was_sampled():
  found = label_file(probe_of_the_sign(), tokens([1] * 10), window=1.0)
  assert "seen in 10 frames, fewer than 16: some count several times" in found.notes[0]


def test_what_cannot_be_labelled():
  with pytest.raises(InputError, match="no face is found"):
    label_file(probe_of_the_sign(), tokens([1] * 5, absent=range(5)), window=1.0)
  with pytest.raises(InputError, match="the window must be longer than 0 s"):
    label_file(probe_of_the_sign(), tokens([1] * 5), window=0.0)
  wide = {name: np.zeros((5, 6), np.float32) for name in ("vocal", "ambient")}
  with pytest.raises(InputError, match="features of 4 numbers, these have 6"):
    label_file(dataclasses.replace(probe_of_the_sign()), wide, window=1.0)


def test_tokens_beside_one_another():
  kernel = np.zeros((8, 2), np.float32)
  kernel[4] = 4, -4  # the first number of the second token
  probe = LinearProbe(kernel=kernel, bias=np.zeros(2, np.float32), classes=("left", "right"), several=False)
  saved = saved_probe(probe=probe, tokens=("vocal", "ambient"), sampling=Sampling(frames=16), beside=True)
  given = {"vocal": tokens([1] * 20)["vocal"], "ambient": tokens([-1] * 20)["ambient"]}
  assert label_file(saved, given, window=0.2).labels == ("right",)
