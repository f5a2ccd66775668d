"""`data.prepare` with footage and clips in object storage, on fsspec's memory:// and file://."""

from __future__ import annotations

import json

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from preparing import SIZE, by_file, contents, run, talk

from synclipmae_jax.apps import prepare as app
from synclipmae_jax.data import records, storage
from synclipmae_jax.data.offsets import read_clip
from synclipmae_jax.types import InputError


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
  """Three persons with a film each, one with a transcript, and what is no film."""
  folder = tmp_path_factory.mktemp("storage") / "raw"
  for name in ("ann/a.mp4", "bob/b ü.mp4", "eve/c.mp4"):
    (folder / name).parent.mkdir(parents=True)
    talk(folder / name, count=50)
  (folder / "ann" / "a.txt").write_text("place red")
  (folder / "eve" / "d.mp4").write_text("no")
  return folder


@pytest.fixture(scope="module")
def expected(raw, tmp_path_factory):
  out = tmp_path_factory.mktemp("storage") / "out"
  run(raw, out)
  return unsigned(contents(out))


@pytest.fixture
def bucket(raw):
  """The same footage in a store."""
  files = fsspec.filesystem("memory")
  for name in (path.relative_to(raw).as_posix() for path in raw.rglob("*.*")):
    files.put_file(str(raw / name), f"/bucket/raw/{name}")
  yield files
  files.store.clear()
  files.pseudo_dirs[:] = [""]


def unsigned(files: dict[str, bytes]) -> dict[str, bytes]:
  """The same files without what they say of the times of the footage, which a store has in its own way."""
  cut = lambda content: json.dumps(json.loads(content) | {"fingerprint": None}).encode()
  return {name: cut(content) if name.endswith("done.json") else content for name, content in files.items()}


def stored(files, root="/bucket/out/"):
  return unsigned({name.removeprefix(root): files.cat_file(name) for name in files.find(root)})


def test_from_a_store_to_a_store_gives_the_bytes_of_folders(bucket, expected):
  manifest = run("memory://bucket/raw", "memory://bucket/out/")
  assert stored(bucket) == expected
  assert manifest.records.startswith("memory://bucket/out/records/")
  assert by_file(manifest)["ann/a.mp4"]["text"] == "place red"


def test_a_second_run_does_only_what_changed_in_the_store(bucket, raw, tmp_path):
  run("memory://bucket/raw", "memory://bucket/raw/out")  # inside: what was made is no footage
  made = lambda: {name: bucket.info(name)["created"] for name in bucket.find("/bucket/raw/out")}
  before = made()
  run("memory://bucket/raw", "memory://bucket/raw/out")
  names = {name for name, time in made().items() if time != before[name]}
  assert names == {"/bucket/raw/out/manifest.jsonl"}
  talk(tmp_path / "other.mp4", count=60)
  bucket.put_file(str(tmp_path / "other.mp4"), "/bucket/raw/eve/c.mp4")
  changed = by_file(run("memory://bucket/raw", "memory://bucket/raw/out"))
  assert changed["eve/c.mp4"]["clips"][0]["frames"] == 60
  redone = {name.split("/")[5] for name, time in made().items() if "/out/clips/" in name and time != before.get(name)}
  assert [name.partition("-")[0] for name in redone] == ["eve_c.mp4"]


def test_a_store_as_footage_or_as_output_alone(bucket, raw, expected, tmp_path):
  run("memory://bucket/raw", tmp_path / "out")
  assert unsigned(contents(tmp_path / "out")) == expected
  run(raw, "memory://bucket/out")
  assert stored(bucket) == expected


def test_records_in_several_shards_are_those_of_one(bucket, raw, expected, tmp_path, monkeypatch):
  monkeypatch.setattr(records, "SHARD_FRAMES", 1)
  run(raw, tmp_path / "out")
  run("memory://bucket/raw", "memory://bucket/out")
  assert stored(bucket) == unsigned(contents(tmp_path / "out"))
  lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
  for split in {line["split"] for line in lines if line["clips"]}:
    wanted = [clip["key"] for line in lines if line["split"] == split for clip in line["clips"]]
    opened = records.open_records(tmp_path / "out", split=split)
    assert [opened[index]["key"] for index in range(len(opened))] == wanted
    assert len(list(opened.directory.glob(f"clips-{split}*"))) == len(wanted)


class LateByTwo:
  """An offset model of which every picture is two frames late; it must be given whole clips."""

  fingerprint = "two"

  def __init__(self):
    self.measured = []

  def __call__(self, clips):
    self.measured += [read_clip(stem)[0] for _, stem in clips]
    return [{"offset": 2, "offset_confidence": 1.0, "sync": 1.0} for _ in clips]


def test_offsets_of_clips_in_a_store_are_measured_once_and_corrected(bucket, raw, tmp_path):
  model = LateByTwo()
  run(raw, tmp_path / "out", offset_model=lambda: model)
  before, expected = list(model.measured), unsigned(contents(tmp_path / "out"))
  for _ in range(2):
    manifest = run("memory://bucket/raw", "memory://bucket/out", offset_model=lambda: model)
    assert stored(bucket) == expected
    assert model.measured == 2 * before, "the second run reads the answers of the first"
  assert len(before) == manifest.summary()["corrected_clips"] == 3
  assert by_file(manifest)["ann/a.mp4"]["clips"][0]["frames"] == 48


def test_files_that_a_run_did_not_make_stay_as_they_are(bucket, raw):
  run(raw, "memory://bucket/out")
  bucket.pipe_file("/bucket/out/report.html", b"a report")
  run(raw, "memory://bucket/out")
  assert bucket.cat_file("/bucket/out/report.html") == b"a report"


class Revoked(MemoryFileSystem):
  """A store that may be read, and written only `allowed` more times."""

  protocol = "revoked"
  allowed = 0

  @classmethod
  def _strip_protocol(cls, path):
    return MemoryFileSystem._strip_protocol(path.replace("revoked://", "memory://"))

  def put_file(self, *args, **kwargs):
    if Revoked.allowed == 0:
      raise PermissionError("403 Forbidden: the caller has no storage.objects.create access\nrequest 12")
    Revoked.allowed -= 1
    super().put_file(*args, **kwargs)


@pytest.mark.parametrize("allowed", [0, 2, 6, 14])
def test_a_revoked_permission_stops_the_run_and_nothing_half_written_counts(bucket, raw, expected, capsys, allowed):
  fsspec.register_implementation("revoked", Revoked, clobber=True)
  Revoked.allowed = allowed
  arguments = ["--raw", str(raw), "--out", "revoked://bucket/out", "--faces", "full_frame", "--size", str(SIZE)]
  arguments += ["--workers", "1", "--sync-model", "none"]
  assert app.main(arguments) == 2
  error = capsys.readouterr().err.splitlines()
  assert "revoked://bucket/out/" in error[-1] and error[-1].endswith("no storage.objects.create access)")
  assert not bucket.exists("/bucket/out/manifest.jsonl")
  for done in (name for name in bucket.find("/bucket/out") if name.endswith(("done.json", "features.json"))):
    folder = done.removeprefix("/bucket/out/").rpartition("/")[0] + "/"
    there = {name: content for name, content in stored(bucket).items() if name.startswith(folder)}
    assert there == {name: content for name, content in expected.items() if name.startswith(folder)}
  Revoked.allowed = 1000
  assert app.main(arguments) == 0
  made = stored(bucket)
  assert b"data:image/jpeg" in made.pop("report.html")  # the contact sheet is read from the store
  assert made == expected


def test_what_cannot_be_opened_is_one_sentence(bucket, tmp_path):
  for url, reason in (
    ("nosuch://bucket/raw", "cannot be read .*nosuch"),
    ("memory://bucket/empty", "there is no file in memory://bucket/empty"),
    ("memory://bucket/raw/ann/a.mp4", "is not a folder"),
  ):
    with pytest.raises(InputError, match=reason):
      run(url, tmp_path / "out")
  with pytest.raises(InputError, match="memory of one process"):
    run("memory://bucket/raw", tmp_path / "out", workers=2)
  bucket.pipe_file("/bucket/raw/corpus.json", b"{")
  with pytest.raises(InputError, match="memory://bucket/raw/corpus.json is not that of a SynthTalk corpus"):
    run("memory://bucket/raw", tmp_path / "out")


def test_keys_that_lead_out_of_the_bucket_are_left_out(bucket):
  bucket.store["/bucket/odd/../../../up.json"] = bucket.store["/bucket/raw/ann/a.txt"]
  bucket.pipe_file("/bucket/odd/in.json", b"{}")
  with storage.mirror("memory://bucket/odd", read=(".json",)) as folder:
    assert [path.name for path in folder.rglob("*")] == ["in.json"]


def test_a_machine_of_a_cluster_that_has_not_the_folders_is_one_sentence(tmp_path):
  places = storage.Places(raw=tmp_path, out=tmp_path / "out", out_in_raw=tmp_path / "out")
  with pytest.raises(InputError, match=f"a machine has no {tmp_path}/out: on a cluster"), places.at_hand(None, {}):
    pass
