"""Small videos and short runs of `data.prepare` that its tests share."""

from __future__ import annotations

from fractions import Fraction

from footage import clicks, numbered, write_video

from synclipmae_jax.data import prepare

SIZE = 32


def talk(path, *, count=75, fps=25, sound=True, **kwargs):
  seconds = float(count / Fraction(fps))
  images = (numbered(k) for k in range(count))
  return write_video(path, images, fps=fps, sound=clicks(seconds, [], noise=0.1) if sound else None, **kwargs)


def run(raw, out, **kwargs):
  kwargs = {"faces": "full_frame", "size": SIZE, "progress": False} | kwargs
  return prepare.prepare(raw, out, **kwargs)


def by_file(manifest):
  return {entry["file"]: entry for entry in manifest.entries}


def contents(folder):
  """Every file below a folder, hidden ones too, and its bytes, without the lock."""
  files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
