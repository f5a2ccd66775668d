"""Containers that are accepted as footage, and how they are opened: one list for all commands."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping

import av

from synclipmae_jax.data.media.patched import PatchedFile
from synclipmae_jax.data.media.watchdog import watched
from synclipmae_jax.types import InputError

# Demuxers of FFmpeg that are allowed, and the suffixes by which a folder is searched. A file is identified by its
# content, not by its name. FFmpeg has about 360 formats. The others are excluded, for these reasons:
#   hls, dash, concat, concatf, webm_dash_manifest, sdp, rtsp, rtp, sap: text that names other files or the network.
#     A text file named a.mp4 must not cause reads of /etc or of a server.
#   image2, *_pipe, gif, apng, webp: pictures without sound. image2 also reads other files, by a pattern in the name.
#   srt, ass, webvtt, vobsub, scc, ...: subtitles, which are text: nearly any file would be accepted as one of them.
#   lavfi, v4l2, fbdev, x11grab, kmsgrab, alsa, oss: devices and generators, which need no file.
#   rawvideo, yuv4mpegpipe, h264, hevc, mpegvideo, ivf, obu, ...: raw pictures without sound.
#   wav, mp3, flac, aac, caf, ...: sound without pictures.
#   ffmetadata, tty, bin, xbin, data: not footage.
#   bink, smk, roq, vmd, thp, psxstr: videos of games. No corpus uses them, and their demuxers are little maintained.
#   swf, rm, nsv, nuv, wtv, ty, gxf, nut, ...: not formats of a corpus or of a recorder in use. Each allowed format is
#     one more parser that hostile files can reach.
CONTAINERS = {
  "mov": (".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v"),
  "matroska": (".mkv", ".webm"),
  "avi": (".avi", ".divx"),
  "mpegts": (".ts", ".m2ts", ".mts", ".m2t"),
  "mpeg": (".mpg", ".mpeg", ".vob"),  # program streams: GRID, AMI, DVD
  "flv": (".flv",),  # CREMA-D
  "asf": (".wmv", ".asf"),
  "ogg": (".ogv", ".ogg", ".ogm"),
  "mxf": (".mxf",),
  "dv": (".dv",),
}
SUFFIXES = tuple(suffix for suffixes in CONTAINERS.values() for suffix in suffixes)
TAKEN = "MP4, MOV, 3GP, MKV, WebM, AVI, MPEG-PS, MPEG-TS, FLV, WMV, OGG, MXF and DV"  # for messages

_OPEN_OPTIONS = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
_MAX_PIXELS = 8192 * 4352  # of one picture: 8K, the largest of H.264
_MAX_SHORTFALL = 0.5  # seconds by which a stream may end before the length declared in its header ...
_MAX_SHORTFALL_FRACTION = 0.02  # ... or this share of it, if that is more
_MEASURED = ("mpegts", "mpeg")  # no header has the length: FFmpeg measures the duration in the packets
_FROM_ZERO = ("matroska,webm", "flv")  # the declared duration counts from 0, not from the first timestamp


def videos_below(folder: str | os.PathLike[str]) -> list[str]:
  """The paths of all files in a folder, at any depth, that have a suffix of a video, in order."""
  names = [os.path.join(inner, name) for inner, _, files in os.walk(os.fspath(folder)) for name in files]
  return sorted(name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES)


@contextlib.contextmanager
def open_media(
  path: str | os.PathLike,
  *,
  patches: Mapping[int, bytes] | None = None,
  stored_times_only: bool = False,
  ignore_edit_lists: bool = False,
) -> Iterator[av.container.InputContainer]:
  """Opens a video file for reading. Every failure of opening, and of reading in the block, is raised as InputError.

  Args:
    path: the file.
    patches: bytes that replace those of the file, by their place (`data.media.clock.Clock.patches`).
    stored_times_only: packets have the timestamps stored in the file, and none inferred by FFmpeg.
    ignore_edit_lists: packets of MP4 and MOV have the times of their track, and none is hidden.
  """
  options = _OPEN_OPTIONS | ({"fflags": "nofillin"} if stored_times_only else {})
  options |= {"ignore_editlist": "1"} if ignore_edit_lists else {}
  try:
    # Absolute: FFmpeg takes the part of "12:30.mp4" before the colon for a protocol.
    source = PatchedFile(path, patches) if patches else os.path.abspath(path)
    with watched():
      container = av.open(source, options=options, metadata_errors="ignore")
  except FileNotFoundError as error:
    raise InputError("the file is missing") from error
  except PermissionError as error:
    raise InputError("the file may not be read") from error
  except (av.error.FFmpegError, OSError) as error:
    if os.path.isfile(path) and os.path.getsize(path) == 0:
      raise InputError("the file is empty (0 bytes)") from error
    if error.errno == errno.EINVAL:  # the format is not in the whitelist
      raise InputError(f"it cannot be read as a video: its format is not one of those accepted, {TAKEN}") from error
    raise InputError(f"it cannot be read as a video ({error.strerror})") from error
  with container:
    try:
      yield container
    except av.error.FFmpegError as error:
      raise InputError(f"it is damaged: it cannot be decoded to its end ({error.strerror})") from error
    except (IndexError, OverflowError, UnicodeDecodeError) as error:  # PyAV's, of a late stream and others
      raise InputError(f"it is damaged: it cannot be decoded to its end ({error})") from error


def video_stream(container) -> av.video.stream.VideoStream:
  """The picture track of a container (not a cover image). Raises InputError if there is none."""
  stream = container.streams.best("video")
  if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
    raise InputError("it has no picture track")
  if stream.codec_context is None:
    raise InputError("its pictures are of a codec that cannot be decoded")
  if (stream.width or 0) * (stream.height or 0) > _MAX_PIXELS:
    raise InputError(f"its picture has {stream.width} x {stream.height} pixels, more than any footage")
  stream.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}  # a decoder keeps many pictures
  stream.thread_type = "NONE"  # parallelism is one level up: each worker has one file or one batch
  return stream


def check_length(what: str, *, end: float, declared: float) -> None:
  """Raises InputError if a stream decoded up to second `end` ends well before the second `declared`."""
  if end < declared - max(_MAX_SHORTFALL, _MAX_SHORTFALL_FRACTION * declared):
    raise InputError(f"it is truncated: {declared:.1f} s are declared, its {what} ends at {max(end, 0):.1f} s")


def declared_end(stream) -> float:
  """The second at which a stream ends by the header; 0 if unknown (Matroska: `MediaInfo.end`)."""
  if stream.container.format.name in _MEASURED:
    return 0.0
  return float(((stream.start_time or 0) + (stream.duration or 0)) * stream.time_base)


def declared_end_of_all(container) -> float:
  """The second at which the file ends by the header; 0 if unknown."""
  name = container.format.name
  if name in _MEASURED:
    return 0.0
  start = 0 if name in _FROM_ZERO else container.start_time or 0
  return (start + (container.duration or 0)) / av.time_base
