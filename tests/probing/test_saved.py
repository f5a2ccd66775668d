import numpy as np
import pytest

from synclipmae_jax.probing.linear_probe import LinearProbe
from synclipmae_jax.probing.sampling import Sampling
from synclipmae_jax.probing.saved import SavedProbe
from synclipmae_jax.types import InputError


def saved_probe(**changes):
  rng = np.random.default_rng(0)
  probe = LinearProbe(
    kernel=rng.normal(size=(4, 2)).astype(np.float32), bias=np.array([0.5, -0.5], np.float32),
    classes=("left", "right"), several=True,
  )  # fmt: skip
  known = dict(
    probe=probe, labels="actions", tokens=("vocal", "ambient"), sampling=Sampling(frames=16), encoder="synclipmae",
    checkpoint="runs/demo/7", sha256="ab12", notes=("a note",),
  )  # fmt: skip
  return SavedProbe(**{**known, **changes})


def test_a_probe_is_read_as_it_was_written(tmp_path):
  before = saved_probe()
  assert before.save(tmp_path) == tmp_path / "probe.npz"
  for place in (tmp_path, tmp_path / "probe.npz"):
    after = SavedProbe.load(place)
    np.testing.assert_array_equal(after.probe.kernel, before.probe.kernel)
    np.testing.assert_array_equal(after.probe.bias, before.probe.bias)
    assert (after.probe.classes, after.probe.several) == (("left", "right"), True)
    names = ("labels", "tokens", "sampling", "encoder", "checkpoint", "sha256", "notes")
    assert all(getattr(after, name) == getattr(before, name) for name in names)
  assert [path.name for path in tmp_path.iterdir()] == ["probe.npz"]


def test_a_probe_of_another_checkpoint_is_refused():
  saved_probe().check_encoder("ab12")
  with pytest.raises(InputError, match=r"made for another checkpoint \(runs/demo/7\): name that one"):
    saved_probe().check_encoder("cd34")


def test_damaged_files_are_refused(tmp_path):
  with pytest.raises(InputError, match="there is no probe in"):
    SavedProbe.load(tmp_path)
  path = saved_probe().save(tmp_path)
  whole = path.read_bytes()
  for damaged in (b"", whole[: len(whole) // 2], b"not a zip"):
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="holds no probe of this version"):
      SavedProbe.load(tmp_path)
  probe = LinearProbe(
    kernel=np.full((4, 2), np.nan, np.float32), bias=np.zeros(2, np.float32), classes=("a", "b"), several=False
  )
  saved_probe(probe=probe).save(tmp_path)
  with pytest.raises(InputError, match="not finite"):
    SavedProbe.load(tmp_path)
