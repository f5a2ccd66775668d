"""Arguments of `data.engines`; the engines themselves: test_prepare_runs.py and test_on_ray.py."""

import sys

import pytest

from synclipmae_jax.apps import prepare as app
from synclipmae_jax.data import engines
from synclipmae_jax.types import InputError


@pytest.mark.parametrize(
  "name, arguments, reason",
  [
    ("beam", {}, "unknown engine 'beam': choose one of local, ray"),
    ("local", {"workers": 0}, "at least 1, not 0"),
    ("ray", {"workers": -1}, "at least 1, not -1"),
    ("local", {"ray_address": "auto"}, "the engine is local"),
  ],
)
def test_wrong_arguments_are_named(name, arguments, reason):
  with pytest.raises(InputError, match=reason), engines.engine(name, **arguments):
    pass


def test_ray_is_an_extra(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "ray", None)
  (tmp_path / "a.mp4").touch()
  assert app.main(["--raw", str(tmp_path), "--out", str(tmp_path / "out"), "--engine", "ray"]) == 2
  assert "pip install 'synclipmae_jax[ray]'" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_one_sentence():
  pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
  with pytest.raises(InputError, match="Ray at 127.0.0.1:1 does not answer .*refused"):
    with engines.engine("ray", ray_address="127.0.0.1:1"):
      pass
