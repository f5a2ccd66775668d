"""The command line of ffmpeg that removes a lag from a file."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from synclipmae_jax.data.media import timeline
from synclipmae_jax.data.media.clock import read_clock
from synclipmae_jax.data.media.containers import video_stream
from synclipmae_jax.data.media.picture_order import lacks_order

_KEPT = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".ts", ".m2ts", ".mts")  # other containers may not hold a moved sound

_MAY_JUMP = (".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".vob")  # used if the file does not exist


def ffmpeg_command(path: str | os.PathLike, lag_ms: float) -> str | None:
  """One line for a shell; None if ffmpeg would not keep the times of the file, or if the name is not printable.

  ffmpeg reads the file twice: the first input gives the streams that stay, the second those that are delayed. Both
  inputs begin at 0. In a format whose clock may jump, ffmpeg takes this begin from the streams in use, so that the two
  inputs would begin apart; -copyts keeps the times of the file. Pictures of AVI have no times of presentation and
  cannot be copied: they are encoded and counted by -r, and the sound is moved for either sign of the lag.

  Raises InputError for a file that cannot be copied without encoding; `--fix` refuses it as well.
  """
  stays, delayed, offset = ("v", "a", lag_ms) if lag_ms > 0 else ("a", "v", -lag_ms)
  copy, options = "-c copy", "-copyts " if Path(path).suffix.lower() in _MAY_JUMP else ""
  if os.path.exists(path):
    clock = read_clock(path)
    with clock.open(path) as source:
      picture = video_stream(source)
      options = "-copyts " if timeline.may_jump(source.format) else ""
      if lacks_order(clock, picture):
        options, copy = f"-r {picture.average_rate} ", "-c:a copy"
        stays, delayed, offset = "v", "a", lag_ms
      packets = timeline.scan(source, timeline.timed(source), picture, clock)
      plan = timeline.plan(packets, picture=picture.index, clock=clock, hides=True)
      # ffmpeg begins a cut at its first whole picture, and shifts pictures that have times of decoding only.
      if plan.notes or clock.edits or clock.counted == "decoded":
        return None
  source, out = (_argument(name) for name in (Path(path), _free(Path(path))))
  if not (source.isprintable() and out.isprintable()):
    return None
  inputs = f"-i {source} -itsoffset {offset / 1000:.3f} -i {source}"
  return f"ffmpeg {options}{inputs} -map 0:{stays} -map 1:{delayed} {copy} {out}"


def _free(path: Path) -> Path:
  """An unused name in the folder of `path`."""
  suffix = path.suffix if path.suffix.lower() in _KEPT else ".mkv"
  out, number = path.with_name(f"{path.stem}_in_sync{suffix}"), 2
  while os.path.lexists(out):
    out, number = path.with_name(f"{path.stem}_in_sync_{number}{suffix}"), number + 1
  return out


def _argument(path: Path) -> str:
  """The name quoted for a shell, in a form that ffmpeg does not take for an option or a protocol."""
  name = os.fspath(path)
  return shlex.quote(os.path.join(".", name) if name.startswith("-") or ":" in name.split("/")[0] else name)
