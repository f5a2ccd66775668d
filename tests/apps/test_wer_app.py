"""`synclipmae wer`: files of several systems against one reference."""

import json

import pytest

from synclipmae_jax.apps import wer
from synclipmae_jax.text.hypotheses import read_texts
from synclipmae_jax.types import InputError

REFERENCE = {"a": "Bin blue at F.", "b": "place red", "c": "it's soon"}
READ = {"a": "bin blue by f now", "b": "place red", "c": "its soon"}
FORMS = {
  "x.trn": lambda texts: "".join(f"{text} ({key})\n" for key, text in texts.items()),
  "x.txt": lambda texts: "".join(f"{key} {text}\n" for key, text in texts.items()),
  "x.tsv": lambda texts: "file\tspeaker\ttext\n" + "".join(f"{key}\ts1\t{text}\n" for key, text in texts.items()),
  "x.csv": lambda texts: "key,prediction\n" + "".join(f'{key},"{text}"\n' for key, text in texts.items()),
  "x.jsonl": lambda texts: "".join(json.dumps({"id": key, "hyp": text}) + "\n" for key, text in texts.items()),
  "hypo-1.json": lambda texts: json.dumps(
    {"utt_id": list(texts), "ref": list(REFERENCE.values()), "hypo": list(texts.values())}
  ),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_read(name, tmp_path):
  (tmp_path / name).write_text(FORMS[name](READ), "utf-8")
  read = read_texts(tmp_path / name)
  assert read.texts == READ
  assert read.references == (REFERENCE if name == "hypo-1.json" else {})


def test_systems_stand_beside_each_other_in_one_table(tmp_path, capsys):
  (tmp_path / "said.txt").write_text(FORMS["x.txt"](REFERENCE))
  (tmp_path / "ours.trn").write_text(FORMS["x.trn"](READ))
  (tmp_path / "theirs.json").write_text(FORMS["hypo-1.json"](READ))
  files = [str(tmp_path / name) for name in ("ours.trn", "theirs.json")]
  options = ["--reference", str(tmp_path / "said.txt"), "--labels", "human"]
  assert wer.main([*files, *options]) == 0
  rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
  assert [[cell.strip() for cell in row[:5]] for row in rows[1:]] == [
    [name, "-", "human", "3", "8"] for name in ("ours", "theirs")
  ]
  assert wer.main([files[1], "--json"]) == 0  # with its own references
  entry = json.loads(capsys.readouterr().out)["systems"]["theirs"][0]
  assert (entry["substitutions"], entry["deletions"], entry["insertions"]) == (2, 0, 1)
  assert entry["wer"] == pytest.approx(3 / 8) and entry["correct"] == pytest.approx(1 / 3)
  assert entry["label_source"] == ""


def test_missing_clips_count_and_strange_ones_are_refused(tmp_path, capsys):
  (tmp_path / "said.txt").write_text(FORMS["x.txt"](REFERENCE))
  (tmp_path / "ours.txt").write_text("b place red\n")
  arguments = [str(tmp_path / "ours.txt"), "--reference", str(tmp_path / "said.txt")]
  assert wer.main([*arguments, "--json"]) == 0
  out, err = capsys.readouterr()
  assert json.loads(out)["systems"]["ours"][0]["deletions"] == 6 and "lacks 2 of 3 clips" in err
  (tmp_path / "ours.txt").write_text("z place red\n")
  assert wer.main(arguments) == 2 and "such as z" in capsys.readouterr().err
  assert wer.main(arguments[:1]) == 2 and "--reference" in capsys.readouterr().err


@pytest.mark.parametrize(
  "name, content, reason",
  [
    ("a.json", "{", "form of a .json file"),
    ("a.json", '{"utt_id": ["a"], "hypo": []}', "differ in length"),
    ("a.jsonl", '{"a": 1}', "no column of keys"),
    ("a.tsv", "a\tb\n1\t2\n", "no column of keys"),
    ("a.trn", "no key\n", "has no \\(key\\)"),
    ("a.txt", "", "no text"),
    ("a.txt", "a x\na y\n", "two texts of a"),
  ],
)
def test_damaged_files_are_refused_in_one_sentence(name, content, reason, tmp_path):
  (tmp_path / name).write_text(content)
  with pytest.raises(InputError, match=reason):
    read_texts(tmp_path / name)
  with pytest.raises(InputError, match="cannot be read"):
    read_texts(tmp_path / "absent.txt")
