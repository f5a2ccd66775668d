"""`prepare --probe` and report.html, with names that try to break a page or a terminal."""

from __future__ import annotations

import html.parser
import json
import os
import shutil

import pytest
from preparing import run, talk
from trees import MAKERS

from synclipmae_jax.apps import cli
from synclipmae_jax.apps.prepare_report import page
from synclipmae_jax.data import corpora
from synclipmae_jax.data.clips import Settings
from synclipmae_jax.data.prepare import Manifest
from synclipmae_jax.data.probe import probe

HOSTILE = (
  "<script>alert(1)<", 'a" onerror="alert(1)" x="', "b & c 'q'", "Ж “ü” 漢字", "new\nline", "rtl \u202e4pm",
  "$x^2_$ %s {0}", "]]><!--", "\x1b[31mred\x07",
)  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A folder with a video of every hostile name and some bad files; (raw, out, manifest)."""
  root = tmp_path_factory.mktemp("report")
  good = talk(root / "a.mp4", count=50)
  for number, name in enumerate(HOSTILE):
    (root / "raw" / f"p{number}<b>").mkdir(parents=True)
    shutil.copy(good, root / "raw" / f"p{number}<b>" / f"{name}.mp4")
  (root / "raw" / os.fsdecode(b"latin-\xe9<i>.mp4")).write_text("no video")
  (root / "raw" / "<img src=x onerror=alert(1)>.mp4").touch()
  return root / "raw", root / "out", run(root / "raw", root / "out")


class Page(html.parser.HTMLParser):
  def __init__(self, text: str):
    super().__init__()
    self.tags, self.sources, self.attributes, self.text = [], [], set(), ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes |= {name for name, _ in attrs}
    self.sources += [value for name, value in attrs if name in ("src", "href")]

  def handle_data(self, data):
    self.text += data


def test_the_report_has_all_names_as_text_and_nothing_from_outside(prepared):
  _, out, manifest = prepared
  found = Page(page(manifest, lambda name: (out / name).read_bytes()).decode())
  assert not {"script", "iframe", "link", "i", "b"} & set(found.tags)
  assert not any(name.startswith("on") for name in found.attributes)
  assert all(source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for source in found.sources)
  for name in ("<script>alert(1)<", "b & c 'q'", "Ж “ü” 漢字", "<img src=x onerror=alert(1)>", "]]><!--"):
    assert f"{name}.mp4" in found.text
  assert "\x1b" not in found.text and "\u202e" not in found.text
  assert found.tags.count("figure") == len(HOSTILE) and "the file is empty" in found.text


def test_what_is_known_of_clips_is_drawn_and_refused_clips_are_counted(prepared):
  _, out, manifest = prepared
  read = lambda name: (out / name).read_bytes()
  plain = Page(page(manifest, read).decode())
  entries = json.loads(json.dumps(list(manifest.entries)))
  accepted = [entry for entry in entries if entry["outcome"] == "accepted"]
  for number, entry in enumerate(accepted):
    entry["lag"] = number - 3
    entry["clips"][0]["quality"] |= {"offset": number, "blur": 3.5 * number, "yaw": None, "sync": float("nan")}
  accepted[0]["refused"] = [{"reason": "its face has 12 pixels", "quality": {"blur": 1.0}}]
  accepted[1]["refused"] = [{"reason": "its face has 13.5 pixels", "quality": {"blur": 1.0}}] * 2
  text = page(Manifest(entries=entries, records=None), read).decode()
  rich = Page(text)
  assert rich.tags.count("img") == plain.tags.count("img") + 3  # lag, offset, blur
  assert 'alt="quality: blur"' in text and "quality: yaw" not in text and "quality: sync" not in text
  assert '<td>its face has … pixels</td><td class="number">2</td><td class="number">3</td>' in text


def test_clips_that_are_gone_leave_the_rest_of_the_page(prepared):
  _, out, manifest = prepared
  whole = Page(page(manifest, lambda name: (out / name).read_bytes()).decode())
  found = Page(page(manifest, lambda name: (_ for _ in ()).throw(FileNotFoundError(name))).decode())
  assert "figure" not in found.tags and found.tags.count("img") == whole.tags.count("img") - len(HOSTILE) >= 3
  assert "0" in Page(page(Manifest(entries=[], records=None), lambda name: b"").decode()).text


def test_a_probe_says_what_prepare_will_find_and_writes_nothing(prepared, tmp_path, capsys):
  raw, _, manifest = prepared
  before = sorted(raw.rglob("*"))
  assert cli.main(["prepare", "--raw", str(raw), "--probe", "--json", "--size", "32"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found["corpus"], found["files"], found["readable"]) == ("folder", len(HOSTILE) + 2, len(HOSTILE))
  assert found["reasons"] == {
    entry["file"]: entry["reason"] for entry in manifest.entries if entry["outcome"] == "rejected"
  }
  assert found["seconds"] == pytest.approx(2 * len(HOSTILE), rel=0.05)
  assert sum(split["groups"] for split in found["splits"].values()) == len(HOSTILE)
  assert found["resolutions"] == {"64 x 64": 9} and found["fps"] == {"25": 9} and found["sample_rates"] == {"16000": 9}
  assert cli.main(["prepare", "--raw", str(raw), "--probe", "--size", "256"]) == 1  # of 64 pixels
  printed = capsys.readouterr().out
  assert "64 x 64 is too small for clips of 256" in printed and "Nothing was converted" in printed
  assert not any(c in printed for c in "\x1b\x07\u202e") and "latin-\\xe9<i>.mp4: it cannot be read" in printed
  assert sorted(raw.rglob("*")) == before


@pytest.mark.parametrize("name", MAKERS)
def test_a_probe_counts_what_it_can_read_of_every_corpus(name, tmp_path):
  raw = MAKERS[name](tmp_path / "raw")
  items = list(corpora.load("auto")(raw))
  chosen = next(item for item in items if item.path.exists())
  shutil.copy(talk(tmp_path / "a.mp4", count=50), chosen.path)
  found = probe(raw, settings=Settings(size=32), progress=False)
  assert (found["corpus"], found["files"], found["readable"]) == (name, len(items), 1)
  assert found["splits"].keys() == {chosen.split} and found["seconds"] == pytest.approx(2, abs=0.1)
  assert found["reasons"].keys() == {item.key for item in items} - {chosen.key}
  assert set(found["reasons"].values()) <= {"the file is empty (0 bytes)", "the file is missing"}


def test_the_commands_of_a_wrong_probe_are_one_sentence(tmp_path, capsys):
  for raw, words in (
    (tmp_path / "none", "is not a folder"), (tmp_path, "there is no file in"), ("gs://bucket/raw", "is a URL"),
  ):  # fmt: skip
    assert cli.main(["prepare", "--raw", str(raw), "--probe"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
  with pytest.raises(SystemExit):
    cli.main(["prepare", "--raw", str(tmp_path)])
  assert "name a folder with --out, or look first with --probe" in capsys.readouterr().err
