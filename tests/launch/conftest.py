"""Fixtures of the tests of the launch scripts."""

import pytest
from stand_in_cloud import Cloud


@pytest.fixture
def cloud(tmp_path):
  cloud = Cloud(tmp_path)
  yield cloud
  cloud.close()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
  """A cloud on which no command may be called."""
  cloud = Cloud(tmp_path_factory.mktemp("untouched"))
  yield cloud
  assert not cloud.calls and not list(cloud.folder.glob("workers/*/*"))
