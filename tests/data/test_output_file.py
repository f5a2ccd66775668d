"""A result is written completely to any kind of path, or the path stays unchanged."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from synclipmae_jax.data.output_file import refuse_unwritable, writing
from synclipmae_jax.types import InputError


def write(path, text="new"):
  with writing(path) as partial:
    assert not path.suffix or partial.suffix == path.suffix
    partial.write_text(text)


def test_a_file_is_replaced_whole_and_keeps_its_permissions(tmp_path):
  path = tmp_path / "a.csv"
  write(path, "old")
  path.chmod(0o640)
  with pytest.raises(RuntimeError), writing(path) as partial:
    partial.write_text("half")
    raise RuntimeError
  assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.csv"]
  write(path)
  assert path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == 0o640 and os.listdir(tmp_path) == ["a.csv"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link_to_what_is_written(tmp_path, there):
  (tmp_path / "deep").mkdir()
  target = tmp_path / "deep" / "target.csv"
  if there:
    target.write_text("old")
  (tmp_path / "second").symlink_to("deep/target.csv")
  (tmp_path / "first.csv").symlink_to("second")
  write(tmp_path / "first.csv")
  assert target.read_text() == "new" and not target.is_symlink()
  assert os.readlink(tmp_path / "first.csv") == "second" and os.readlink(tmp_path / "second") == "deep/target.csv"
  assert os.listdir(tmp_path / "deep") == ["target.csv"]


def test_a_pipe_gets_the_bytes(tmp_path):
  pipe, heard = tmp_path / "pipe", []
  os.mkfifo(pipe)
  reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
  reader.start()
  write(pipe, "through" * 100_000)
  reader.join()
  assert heard == [b"through" * 100_000] and stat.S_ISFIFO(pipe.lstat().st_mode) and os.listdir(tmp_path) == ["pipe"]


def test_an_open_descriptor_gets_the_bytes(tmp_path):
  read, write_to = os.pipe()
  (tmp_path / "out").symlink_to(f"/proc/self/fd/{write_to}")
  write(tmp_path / "out", "text")
  assert os.read(read, 100) == b"text" and (tmp_path / "out").is_symlink()
  os.close(read), os.close(write_to)


def test_standard_output_is_not_cut(tmp_path, capfd):
  os.write(1, b"before ")
  (tmp_path / "out").symlink_to("/proc/self/fd/1")  # a file here, as after `> file`
  write(tmp_path / "out", "through ")
  os.write(1, b"after")
  assert capfd.readouterr().out == "before through after"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_device_is_one_sentence_and_stays(tmp_path):
  (tmp_path / "full").symlink_to("/dev/full")
  refuse_unwritable(tmp_path / "full")
  with pytest.raises(InputError, match=r"full cannot be written \(No space left"):
    write(tmp_path / "full")
  assert stat.S_ISCHR(os.stat(tmp_path / "full").st_mode)
  write(type(tmp_path)("/dev/null"))
  assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_what_cannot_be_written_is_one_sentence_before_and_after_the_work(tmp_path):
  (tmp_path / "folder").mkdir()
  (tmp_path / "loop").symlink_to("loop")
  (tmp_path / "nowhere").symlink_to("absent/a.csv")
  for name in ("folder", "loop", "nowhere", "absent/a.csv"):
    with pytest.raises(InputError, match="cannot be written"):
      refuse_unwritable(tmp_path / name)
    with pytest.raises(InputError, match="cannot be written"):
      write(tmp_path / name)
  assert sorted(os.listdir(tmp_path)) == ["folder", "loop", "nowhere"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_a_folder_or_a_file_without_permission_is_one_sentence(tmp_path):
  (tmp_path / "locked").mkdir(mode=0o500)
  (tmp_path / "mine.csv").write_text("mine")
  (tmp_path / "mine.csv").chmod(0o400)
  for name in ("locked/a.csv", "mine.csv"):
    with pytest.raises(InputError, match="cannot be written"):
      refuse_unwritable(tmp_path / name)
  assert (tmp_path / "mine.csv").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_a_block_device_is_never_written(tmp_path):
  try:
    os.mknod(tmp_path / "disk", 0o600 | stat.S_IFBLK, os.makedev(7, 250))
  except OSError:
    pytest.skip("device nodes cannot be made here")
  with pytest.raises(InputError, match="block device"):
    write(tmp_path / "disk")
