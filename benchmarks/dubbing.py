"""What a dubbing model does: people of SynthTalk against the truth, and a speaker in sync or not.

    python benchmarks/dubbing.py                   SynthTalk, 12 people: 15 minutes on two cores
    python benchmarks/dubbing.py --speaker FOLDER  videos of a speaker, each with the next one's sound

On SynthTalk every person is dubbed with the voice and with the mouth of another, and scored against the true picture
(configs/dub.py:evaluate), beside the undubbed source and `mean`: a mouth that is the mean of each segment. Of a speaker
there is no truth: `sync` judges each result with its new sound and with the old one, and each source likewise. Results
lie in --workdir and are kept: a stopped run goes on. Targets: by sound and by mouth within 5 %; at least 80 % in sync
with the new sound.
"""

from __future__ import annotations

from pathlib import Path

import side_by_side

arguments = side_by_side.parser(__doc__)
arguments.add_argument("--workdir", type=Path, default=Path("runs/dubbing"))
arguments.add_argument("--checkpoint", help="a run of configs/dub.py (default: the model of the package)")
arguments.add_argument("--people", type=int, default=12, help="of SynthTalk")
arguments.add_argument(
  "--seconds", type=float, default=4.0, help="of each of their clips; 60 shows whether colours drift"
)
arguments.add_argument("--speaker", metavar="FOLDER", help="videos of one person")
arguments.add_argument("--videos", type=int, default=24, help="of the speaker, evenly of the folder")
arguments.add_argument("--sheet", type=Path, metavar="PNG", help="also draws the first three, moment by moment")
arguments.add_argument("--steps", type=int, help="of the sampler (default: as the model was evaluated)")
arguments.add_argument("--guidance", type=float, help="on the drive (default: as the model was evaluated)")
if __name__ == "__main__":
  flags = side_by_side.parse(arguments)

import json
import sys

import av
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from synclipmae_jax import SyncLipMAE
from synclipmae_jax.data.media.containers import videos_below
from synclipmae_jax.data.media.video import read_frames
from synclipmae_jax.data.synthtalk.dubbing import write_dubbing
from synclipmae_jax.dub.dubber import Dubber
from synclipmae_jax.models.wan.conditioning import to_unit
from synclipmae_jax.run import dub_scores
from synclipmae_jax.run.config_files import load_config
from synclipmae_jax.types import InputError


class MeanMouth(Dubber):
  """Not generated: each segment's pictures become their mean."""

  def _segment(self, segment, cuts, *others, **settings):
    mean = np.broadcast_to(to_unit(cuts).mean(axis=0), (self.task.segment, *cuts.shape[1:]))
    return np.asarray(self._autoencoder.encode(jnp.asarray(mean[None]))[0], np.float16)


def main(flags) -> None:
  sampling = {"steps": flags.steps, "control_guidance": flags.guidance}
  settings = {name: value for name, value in sampling.items() if value is not None}
  try:
    measure = measure_speaker if flags.speaker else measure_people
    measure(flags, settings)
  except InputError as error:
    sys.exit(str(error))


def measure_people(args, settings: dict) -> None:
  model, mean = (kind.load(args.checkpoint, settings=settings) for kind in (Dubber, MeanMouth))
  write_dubbing(args.workdir, args.people, seconds=args.seconds)
  drives = {"audio": (model, "audio"), "video": (model, "drive_video"), "mean": (mean, "audio")}
  jobs = [(name, f"pair_{number:03d}.mp4") for name in drives for number in range(args.people)]
  for name, file in tqdm(jobs, unit="video", desc="dub"):
    dubber, drive = drives[name]
    out = args.workdir / name / file
    out.parent.mkdir(exist_ok=True)
    if not out.exists():
      dubber.dub(args.workdir / "source" / file, out, **{drive: args.workdir / "drive" / file})
  if args.sheet:
    folders = {"source": "source", "truth": "truth", "by sound": "audio", "by mouth": "video", "mean": "mean"}
    names = [f"pair_{number:03d}.mp4" for number in range(min(args.people, 3))]
    draw([(label, args.workdir / folder / name) for name in names for label, folder in folders.items()], args.sheet)
  config = load_config("dub.py:evaluate").unlock()
  config.data.truth, config.data.source = str(args.workdir / "truth"), str(args.workdir / "source")
  config.data.systems = tuple((name, str(args.workdir / name)) for name in drives)
  report = dub_scores.run(config, args.workdir / "scores")
  means = {
    name: {column: score["mean"] for column, score in system["scores"].items()}
    for name, system in report["systems"].items()
  }
  for column in ("sync", "psnr_mouth"):
    side_by_side.print_ratio(
      "dubbing", f"{column}, {args.people} people of SynthTalk", means["audio"][column] / means["video"][column],
      of="driven by sound / by a mouth", unit=column, target=">= 0.95", systems=means, **settings,
    )  # fmt: skip


def measure_speaker(args, settings: dict) -> None:
  model = Dubber.load(args.checkpoint, settings=settings)
  videos = sorted(videos_below(args.speaker))
  chosen = [videos[i] for i in np.unique(np.linspace(0, len(videos) - 1, args.videos).round().astype(int))]
  judge, rows = SyncLipMAE.load(), []
  for number, video in enumerate(tqdm(chosen, unit="video", desc="dub")):
    other = chosen[(number + 1) % len(chosen)]
    place = args.workdir / "speaker" / Path(video).stem
    place.mkdir(parents=True, exist_ok=True)
    files = {
      "source": Path(video), "source, new sound": place / "source_new.mp4", "dubbed": place / "dubbed.mp4",
      "dubbed, old sound": place / "dubbed_old.mp4",
    }  # fmt: skip
    if not files["dubbed"].exists():
      done = model.dub(video, files["dubbed"], audio=other, compare=place / "beside.mp4")
      (place / "done.json").write_text(json.dumps({"known": done.known, "mouth_gain": done.mouth_gain}))
    exchange(video, other, files["source, new sound"])
    exchange(files["dubbed"], video, files["dubbed, old sound"])
    found = {name: judge.sync(path) for name, path in files.items()}
    known = json.loads((place / "done.json").read_text())["known"]
    rows += [(name, one.verdict, one.lag_frames, one.curve[len(one.curve) // 2], known) for name, one in found.items()]
  if args.sheet:
    places = [args.workdir / "speaker" / Path(video).stem for video in chosen[:3]]
    pairs = zip(chosen, places, strict=False)
    draw([pair for video, place in pairs for pair in (("source", video), ("dubbed", place / "dubbed.mp4"))], args.sheet)
  table = {}
  for name in dict.fromkeys(row[0] for row in rows):
    own = [row for row in rows if row[0] == name]
    verdicts = [row[1] for row in own]
    table[name] = {
      "in_sync": float(np.mean([verdict == "in_sync" for verdict in verdicts])),
      "answered": float(np.mean([verdict != "not_synchronizable" for verdict in verdicts])),
      "score_at_0": float(np.mean([row[3] for row in own])),
    }
    print(f"{name:20} " + ", ".join(f"{key} {value:.3f}" for key, value in table[name].items()), file=sys.stderr)
  known = [row[4] for row in rows if row[0] == "dubbed" and row[4] is not None]
  side_by_side.print_ratio(
    "dubbing", f"{len(chosen)} videos of a speaker", table["dubbed"]["in_sync"], of="in sync with the new sound / all",
    unit="videos", target=">= 0.8", known=float(np.mean(known)) if known else None, files=table, **settings,
  )  # fmt: skip


def draw(videos, out: Path, *, moments: int = 8, side: int = 128) -> None:
  """A sheet with a row for each (label, video): the same moments of all."""
  sheet = Image.new("RGB", (moments * side, len(videos) * side))
  for row, (label, path) in enumerate(videos):
    pictures = [frame.image for frame in read_frames(path)]
    for column, number in enumerate(np.linspace(0, len(pictures) - 1, moments + 2).round().astype(int)[1:-1]):
      picture = Image.fromarray(pictures[number])
      cut = min(picture.size)
      left, top = (picture.width - cut) // 2, (picture.height - cut) // 2
      picture = picture.crop((left, top, left + cut, top + cut)).resize((side, side), Image.Resampling.LANCZOS)
      sheet.paste(picture, (column * side, row * side))
    ImageDraw.Draw(sheet).text((3, row * side + 2), label, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
  out.parent.mkdir(parents=True, exist_ok=True)
  sheet.save(out)


def exchange(pictures, sound, out: Path) -> None:
  """Copies the pictures of one file and the sound of another into a third."""
  if out.exists():
    return
  with av.open(str(pictures)) as seen, av.open(str(sound)) as heard, av.open(str(out), "w") as target:
    streams = ((seen, seen.streams.video[0]), (heard, heard.streams.audio[0]))
    copies = [target.add_stream_from_template(stream) for _, stream in streams]  # all before the first packet
    for (container, stream), copy in zip(streams, copies, strict=True):
      for packet in list(container.demux(stream)):
        if packet.dts is not None:
          packet.stream = copy
          target.mux(packet)


if __name__ == "__main__":
  main(flags)
