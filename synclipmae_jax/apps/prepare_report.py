"""OUT/report.html of `synclipmae prepare`: one page without scripts that needs no other file and no network."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from synclipmae_jax import figures, web_page
from synclipmae_jax.data import labels
from synclipmae_jax.data.media.video import read_windows
from synclipmae_jax.data.prepare import Manifest
from synclipmae_jax.types import FPS
from synclipmae_jax.web_page import printable

_CROPS, _CROP = 48, 112  # of the contact sheet: how many, and their pixels
_EXAMPLES = 3  # files that are named beside a reason
_LISTED = 1000  # refused files that are listed; the manifest has all
_BARS = 40
_INK, _BAR = "#222222", "#3b7ea1"
Read = Callable[[str], bytes]  # a path below OUT -> the content of the file; OSError if there is none


def page(manifest: Manifest, read: Read) -> bytes:
  """The page; `read` is called for the clips of the contact sheet."""
  accepted = [entry for entry in manifest.entries if entry["outcome"] == "accepted"]
  rejected = [entry for entry in manifest.entries if entry["outcome"] != "accepted"]
  clips = [(entry, clip) for entry in accepted for clip in entry["clips"]]
  corpora = ", ".join(dict.fromkeys(entry["corpus"] for entry in manifest.entries))
  parts = [
    f"<h1>Prepared footage: {web_page.text(corpora)}</h1>",
    _counts(manifest.summary()),
    *(f"<p>Note: {web_page.text(note)}.</p>" for note in manifest.notes),
    *web_page.section("Splits", _splits(accepted)),
    *web_page.section("Labels", _labels(accepted)),
    *web_page.section("Reasons of refusal", _reasons(manifest.entries)),
    *web_page.section("Distributions", _plots(manifest.entries)),
    *web_page.section("Crops", _contact_sheet(clips, read)),
    *web_page.section("Refused files", _refused(rejected)),
  ]
  return web_page.page("Prepared footage", parts)


# -- tables --


def _counts(summary: Mapping[str, Any]) -> str:
  upscaled = summary["upscaled_clips"]
  rows = [
    ("files", summary["files"]), ("accepted", summary["accepted"]), ("refused", summary["rejected"]),
    ("clips", summary["clips"]), ("length", _span(summary["seconds"])), ("enlarged clips", upscaled),
    ("refused clips", summary["refused_clips"]), ("clips with a corrected offset", summary["corrected_clips"]),
  ]  # fmt: skip
  return web_page.table((), rows)


def _splits(accepted: Sequence[Mapping[str, Any]]) -> str:
  rows = []
  for split in dict.fromkeys(entry["split"] for entry in accepted):
    entries = [entry for entry in accepted if entry["split"] == split]
    clips = [clip for entry in entries for clip in entry["clips"]]
    groups, seconds = {entry["split_group"] for entry in entries}, sum(clip["frames"] for clip in clips) / FPS
    rows.append((split, len(entries), len(groups), len(clips), _span(seconds)))
  return web_page.table(("split", "files", "groups", "clips", "length"), rows)


def _labels(accepted: Sequence[Mapping[str, Any]]) -> str:
  rows = []
  for name in labels.OF_FILE:
    if (count := sum(bool(entry[name]) for entry in accepted)) and name != "text_source":
      known = [[entry[name]] if isinstance(entry[name], str) else entry[name] or () for entry in accepted]
      kinds = Counter(itertools.chain.from_iterable(known)) if name in labels.VOCABULARIES else Counter()
      rows.append((name, count, ", ".join(f"{kind} {number}" for kind, number in kinds.most_common() if kind)))
  return web_page.table(("label", "files", "of each kind"), rows)


def _reasons(entries: Sequence[Mapping[str, Any]]) -> str:
  """Why files, and single clips of files, are refused. Reasons that differ in numbers and names only are one."""
  files: dict[str, list[str]] = defaultdict(list)
  clips: Counter[str] = Counter()
  for entry in entries:
    if entry["outcome"] != "accepted":
      files[_kind(entry["reason"])].append(entry["file"])
    for clip in entry["refused"]:
      clips[_kind(clip["reason"])] += 1
      if entry["file"] not in (named := files[_kind(clip["reason"])])[-1:]:
        named.append(entry["file"])
  ordered = sorted(files.items(), key=lambda item: (-len(item[1]), item[0]))
  rows = [(reason, len(found), clips[reason] or "", "\n".join(found[:_EXAMPLES])) for reason, found in ordered]
  return web_page.table(("reason", "files", "single clips", "for example"), rows)


def _kind(reason: str) -> str:
  return re.sub(r"\b\d+(\.\d+)?\b", "…", re.sub(r"'[^']*'", "…", reason))


def _refused(rejected: Sequence[Mapping[str, Any]]) -> str:
  if not rejected:
    return ""
  more = f"<p>… and {len(rejected) - _LISTED} more in manifest.jsonl</p>" if len(rejected) > _LISTED else ""
  rows = [(entry["file"], entry["reason"]) for entry in rejected[:_LISTED]]
  return f"<details><summary>{len(rejected)} files</summary>{web_page.table(('file', 'reason'), rows)}{more}</details>"


def _span(seconds: float) -> str:
  return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds:.1f} s"


# -- pictures --


def _plots(entries: Sequence[Mapping[str, Any]]) -> str:
  """A histogram of every number that is known: lengths and lags, and the quality of all clips, also of refused ones."""
  accepted = [entry for entry in entries if entry["outcome"] == "accepted"]
  found: dict[str, list[float]] = {
    "length of a clip / s": [clip["frames"] / FPS for entry in accepted for clip in entry["clips"]],
    "length of a file / s": [entry["source"]["frames"] / FPS for entry in accepted],
    "shorter side of a file / pixels": [
      min(entry["source"][side] for side in ("width", "height")) for entry in accepted
    ],
    "known lag of the picture / frames": [entry["lag"] for entry in accepted if entry["lag"] is not None],
  }
  quality: dict[str, list[float]] = defaultdict(list)
  for entry in entries:
    for clip in (*entry["clips"], *entry["refused"]):
      for name, value in _numbers(clip["quality"]):
        quality[f"quality: {name}"].append(value)
  found |= quality
  drawn = "".join(web_page.image(_histogram(name, values), name, "png") for name, values in found.items() if values)
  return f'<div class="plots">{drawn}</div>' if drawn else ""


def _numbers(quality: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
  for name, value in quality.items():
    if isinstance(value, int | float) and math.isfinite(value):
      yield name.replace("_", " "), float(value)


def _histogram(name: str, values: Sequence[float]) -> np.ndarray:
  figure = figures.new_figure(5, 2.4)
  axes = figure.add_subplot()
  low, high = min(values), max(values)
  if all(value == round(value) for value in values) and high - low < _BARS:
    axes.bar(*zip(*sorted(Counter(values).items()), strict=True), width=0.8, color=_BAR)
    axes.set_xlim(low - 3, high + 3)
    axes.xaxis.get_major_locator().set_params(integer=True)
  else:
    axes.hist(values, bins=_BARS, color=_BAR)
  axes.yaxis.get_major_locator().set_params(integer=True)
  middle = float(np.median(values))
  axes.axvline(middle, color=_INK, lw=1, ls="--")
  title = f"{printable(name)}: median {middle:.4g}, {low:.4g} to {high:.4g}, n = {len(values)}"
  axes.set_title(title.replace("$", r"\$"), fontsize=9, color=_INK)
  axes.spines[["top", "right"]].set_visible(False)
  axes.tick_params(labelsize=8)
  return figures.pixels(figure)


def _contact_sheet(clips: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], read: Read) -> str:
  """The middle picture of clips that are spread evenly over all."""
  chosen = np.linspace(0, len(clips) - 1, min(_CROPS, len(clips))).round().astype(int)
  shown = []
  for entry, clip in (clips[index] for index in chosen):
    try:
      content = read(f"clips/{entry['folder']}/{clip['number']:02d}.mp4")
      image = read_windows(content, [clip["frames"] // 2], count=1, size=_CROP)[0, 0]
    except (OSError, ValueError):  # removed or damaged since
      continue
    known = " · ".join(filter(None, (entry["split"], entry["emotion"])))
    caption = f"{web_page.text(clip['key'])}<br>{web_page.text(known)}"
    shown.append(f"<figure>{web_page.image(image, clip['key'], 'jpeg')}<figcaption>{caption}</figcaption></figure>")
  return f'<div class="crops">{"".join(shown)}</div>' if shown else ""
