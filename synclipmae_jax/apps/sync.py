"""`synclipmae sync VIDEO…`: the lag of the picture against the sound, its confidence, and the corrected file.

A lag is positive if the video lags the audio. VIDEO is a file, a folder or a pattern; several may be given. Without
--checkpoint the small model of the package is used, which answers where its evidence suffices and says so where not.

Exit status: 0 if every file got an answer ("not synchronizable" is one), 1 if some of several did not, 2 for wrong
arguments or a single file that cannot be judged, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from synclipmae_jax.apps.footage import (
  add_videos,
  cache_folder,
  complain,
  exit_status,
  find_videos,
  keep_compiled,
  outputs,
  refuse_inputs,
  with_ending,
)
from synclipmae_jax.data.media import watchdog
from synclipmae_jax.inference.blocks import DEMO
from synclipmae_jax.sync.result import SyncResult
from synclipmae_jax.types import InputError


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser("synclipmae sync", description=__doc__.split("\n\n")[0])
  add_videos(parser)
  parser.add_argument("--checkpoint", metavar="DIR", help="a workdir or a step (default: the model of the package)")
  parser.add_argument("--json", action="store_true", help="print one object (folder, pattern, several files: an array)")
  parser.add_argument("--csv", metavar="FILE", help="write one row a file")
  parser.add_argument("--plot", metavar="PNG", help="draw the lag over the scores (of several: a new folder)")
  parser.add_argument("--fix", metavar="OUT", help="write the file without its lag (of several: a folder)")
  parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
  args = parser.parse_args(argv)
  return exit_status("sync", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
  from synclipmae_jax.data.media import remux
  from synclipmae_jax.sync import report  # slow to import: it draws

  videos, several = find_videos(args.videos)
  if args.workers < 1:
    raise InputError(f"the number of workers must be at least 1, not {args.workers}")
  plots = _plots(args.plot, videos, several=several) if args.plot else {}
  fixed = outputs(args.fix, videos, several=several) if args.fix else {}
  for path in fixed.values():  # before the work, not after
    remux.refuse_existing(path)
    if not several:
      remux.container_of(path)
  refuse_inputs([args.csv] if args.csv else [], videos)
  results, errors = {}, {}
  for video, answer in _answers(videos, args):
    try:
      if not isinstance(answer, SyncResult):
        raise InputError(answer)
      results[video] = answer  # it is printed even if drawing or --fix fails
      if video in plots:
        report.plot(answer, plots[video])
      if video in fixed:
        _fix(answer, fixed[video])
    except Exception as error:  # an unforeseen error affects one file only
      errors[video] = str(error)
      complain("sync", video, error)
  entries = [
    results[video].to_json() if video in results else {"file": video, "error": errors[video]} for video in videos
  ]
  in_order = [results[video] for video in videos if video in results]  # they may have finished in another order
  if args.json:
    print(json.dumps(entries if several else entries[0], allow_nan=False))
  elif in_order:
    print(report.table(in_order))
  if args.csv:
    report.write_csv(in_order, args.csv)
  return 0 if not errors else 1 if several else 2


def _plots(out: str, videos: Sequence[str], *, several: bool) -> dict[str, Path]:
  """The path of every plot. Prints the name of a single one if it differs from `out`."""
  refuse_inputs([out] if not several and os.path.isfile(out) else [], videos)
  named = out if several else with_ending(out, ".png")
  if named != out:
    print(f"--plot {out}: the picture is written to {named}", file=sys.stderr)
  return outputs(named, videos, several=several, suffix=".png")


def _fix(result: SyncResult, out: Path) -> None:
  """Writes the corrected file. A file that is in sync is copied without a shift: an answer is exact to a frame."""
  from synclipmae_jax.data.media import remux

  if result.verdict == "not_synchronizable":
    raise InputError(f"{out} is not written because no lag was found: {result.reason}")
  done = remux.fix_lag(result.file, out, lag_ms=result.lag_ms if result.verdict == "out_of_sync" else 0.0)
  for note in (*done.notes, *(f"re-encoded: {stream}" for stream in done.reencoded)):
    print(f"{out}: {note}", file=sys.stderr)


# -- which files, in which processes --


def _answers(videos: Sequence[str], args: argparse.Namespace) -> Iterator[tuple[str, SyncResult | str]]:
  """Every file with its result or its error, in the order in which they finish."""
  quiet = args.json or not sys.stderr.isatty()
  if args.workers > 1:  # each process has its own model, possibly on one accelerator, whose memory JAX would reserve
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  if len(videos) == 1:
    _start_worker(args.checkpoint)
    (video,) = videos
    with tqdm(unit="s", desc=Path(video).name[:30], disable=quiet, leave=False) as seconds:
      yield video, _answer(video, args.faces, args.audio_track, functools.partial(_show, seconds))
    return
  # Several files are read by other processes, even if by one: a file that ends its process does not stop the others.
  with tqdm(total=len(videos), unit="file", desc="sync", disable=quiet) as files:
    left = list(videos)
    try:
      for video, answer in _in_processes(left, args, workers=min(args.workers, len(videos))):
        left.remove(video)
        yield video, answer
        files.update()
    except BrokenProcessPool:  # a file has ended its process: the rest are read one by one to find it
      for video in list(left):
        try:
          yield from _in_processes([video], args, workers=1)
        except BrokenProcessPool:
          yield video, f"reading it ended the process that read it ({watchdog.REASONS})"
        files.update()


def _show(bar: tqdm, done: float, total: float) -> None:
  bar.total = total or None
  bar.update(round(done, 1) - bar.n)


def _in_processes(
  videos: Sequence[str], args: argparse.Namespace, *, workers: int
) -> Iterator[tuple[str, SyncResult | str]]:
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(workers, context, _start_process) as pool:
    try:
      running = {
        pool.submit(_load_and_answer, args.checkpoint, video, args.faces, args.audio_track): video for video in videos
      }
      for future in concurrent.futures.as_completed(running):
        yield running[future], future.result()
    except BaseException:  # Ctrl-C, or the consumer has stopped
      pool.shutdown(wait=False, cancel_futures=True)
      for process in multiprocessing.active_children():  # they would finish their files first
        process.terminate()
      raise


_model = None  # of this process


def _start_worker(checkpoint: str | None) -> None:
  global _model
  from synclipmae_jax.sync import ready

  def load():
    from synclipmae_jax.pretrained import SyncLipMAE

    return SyncLipMAE.load(checkpoint)

  keep_compiled()
  if checkpoint is None:
    step = DEMO
  else:
    from synclipmae_jax import checkpoints

    step = Path(checkpoints.resolve_step(checkpoint, say=lambda _: None, verify=False))
  folder = cache_folder()
  _model = ready.make_ready(load, step=step, folder=folder and folder / "ready")


def _start_process() -> None:
  signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it silently; the parent prints the message
  watchdog.end_process_after(watchdog.NO_END)


def _load_and_answer(checkpoint: str | None, video: str, faces: str, audio_track: int | None) -> SyncResult | str:
  """Raises InputError if there is no checkpoint: that is printed once, not for every file."""
  if _model is None:
    _start_worker(checkpoint)
  return _answer(video, faces, audio_track)


def _answer(
  video: str, faces: str, audio_track: int | None = None, progress: Callable[[float, float], None] | None = None
) -> SyncResult | str:
  try:
    return _model.sync(video, faces=faces, audio_track=audio_track, progress=progress)
  except InputError as error:
    return str(error)
  except Exception as error:  # an unforeseen error affects one file only
    return f"unexpected {type(error).__name__}: {error}"


if __name__ == "__main__":
  sys.exit(main())
