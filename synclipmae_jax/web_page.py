"""The one way in which reports are written as a page: without scripts, with all pictures in it, for any browser."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

# The page may load nothing, whatever the names of files say.
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; margin: 2em auto; max-width: 70em;
  padding: 0 1em; }}
h2 {{ margin-top: 1.6em; font-size: 1.2em; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; vertical-align: top; padding: .25em .9em .25em 0; border-bottom: 1px solid #ddd; }}
th {{ white-space: nowrap; }}
td {{ overflow-wrap: anywhere; }}
td.number {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
.plots {{ display: flex; flex-wrap: wrap; gap: 1em; }}
.plots img {{ width: 30em; max-width: 100%; height: auto; }}
.crops {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: .8em; }}
.wide img {{ max-width: 100%; height: auto; }}
figure {{ margin: 0; min-width: 0; }}
.crops img {{ display: block; width: 100%; height: auto; }}
figcaption {{ font-size: .75em; color: #555; overflow-wrap: anywhere; max-height: 4.2em; overflow: hidden; }}
</style></head><body>
"""


def page(title: str, parts: Iterable[str]) -> bytes:
  """The page with `title` as text and `parts` as HTML."""
  return "\n".join([_HEAD.format(title=text(title)), *parts, "</body></html>\n"]).encode("utf-8", "replace")


def printable(text: str) -> str:
  """Replaces unprintable characters: a file name may contain terminal commands."""
  return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def text(value: Any) -> str:
  """Text of others in a page: a file name may hold markup, control characters and such that reverse what follows."""
  return "<br>".join(html.escape(printable(line)) for line in str(value).split("\n"))


def section(heading: str, content: str) -> Iterator[str]:
  """A heading and HTML; nothing without content."""
  if content:
    yield f"<h2>{heading}</h2>"
    yield content


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """Rows of text; integers are set as numbers. "" without rows."""
  body = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
  head = "<tr>" + "".join(f"<th>{text(heading)}</th>" for heading in headings) + "</tr>" if headings else ""
  return f"<table>{head}{body}</table>" if body else ""


def image(pixels: np.ndarray, name: str, kind: str = "png") -> str:
  """A picture, uint8 [H, W, 3], embedded; `name` is its text, `kind` png or jpeg."""
  from PIL import Image

  encoded = io.BytesIO()
  Image.fromarray(pixels).save(encoded, format=kind, **({"quality": 85} if kind == "jpeg" else {"optimize": True}))
  data = base64.b64encode(encoded.getvalue()).decode()
  return f'<img alt="{html.escape(printable(name))}" src="data:image/{kind};base64,{data}">'


def _cell(value: Any) -> str:
  return f'<td class="number">{value:,}</td>' if isinstance(value, int) else f"<td>{text(value)}</td>"
