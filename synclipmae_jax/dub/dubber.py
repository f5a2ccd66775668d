"""Dubs a video: its mouth is generated to match speech, or the mouth of another video."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import jax
import jax.numpy as jnp
import numpy as np

from synclipmae_jax import checkpoints
from synclipmae_jax.data.dubbing import KINDS, TokenScale
from synclipmae_jax.data.media import planes
from synclipmae_jax.data.media.exchange import exchanging, format_of, recording, sound_streams
from synclipmae_jax.data.media.sound_track import choose_sound
from synclipmae_jax.data.output_file import refuse_unwritable, writing
from synclipmae_jax.dub import footage, script
from synclipmae_jax.dub.compositing import match_colour, mouth_weight, paste
from synclipmae_jax.dub.cutting import Cutting, cut_out
from synclipmae_jax.dub.footage import Footage
from synclipmae_jax.dub.result import Dubbed
from synclipmae_jax.dub.segments import Segment
from synclipmae_jax.dub.unfinished import Unfinished
from synclipmae_jax.inference.blocks import DEMO
from synclipmae_jax.inference.embedder import Embedder
from synclipmae_jax.inference.trained import load_trained, refusing
from synclipmae_jax.inference.wan import load_autoencoder, read_text
from synclipmae_jax.metrics.dubbing import mouth_gain, region_error
from synclipmae_jax.models.wan.conditioning import REFERENCES, VideoAutoencoder, encode_pictures, to_unit, without
from synclipmae_jax.tasks.dub import Dubbing, Generator, from_config
from synclipmae_jax.types import InputError, Params

_TRIALS = 4  # segments by which it is judged whether the model knows a face
EMBEDDED = Path(__file__).parents[1] / "demo_dubber"  # the model that comes with the package


class Dubber:
  """A trained dubbing model with all that it needs. `Dubber.load` makes one.

  `settings`: how it samples (`evaluation` of configs/dub.py); `text`: the prompt, [M, E]; `scales`: of its tokens, by
  kind; `expected`: the least `mouth_gain` of faces that it knows.
  """

  def __init__(
    self,
    task: Dubbing,
    trainable: Params,
    frozen: Params,
    *,
    autoencoder: VideoAutoencoder,
    text: np.ndarray,
    embedder: Embedder,
    scales: Mapping[str, TokenScale],
    settings: Mapping[str, Any],
    name: str,
    digest: str = "",
    expected: Mapping[str, float] | None = None,
  ):
    self.expected, self._scales = dict(expected or {}), dict(scales)
    self.task, self.embedder, self.name = task, embedder, name
    self._params, self._autoencoder, self._text = (trainable, frozen), autoencoder, text
    self._generate, self._settings, self._digest = Generator(task, settings), dict(settings), digest
    self._hide = jax.jit(without)

  @classmethod
  def load(
    cls,
    directory: str | os.PathLike | None = None,
    *,
    encoder: str | os.PathLike | None = None,
    autoencoder: str | os.PathLike | None = None,
    text: str | os.PathLike | None = None,
    settings: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
  ) -> Dubber:
    """The model of a run of configs/dub.py, or of a step of it; None: that of the package.

    `encoder`: the checkpoint of its tokens (None: the embedded one); `autoencoder`, `text`: the converted checkpoints
    (None: where the run had them); `settings` override the run's `evaluation`. Raises InputError for a checkpoint of
    another task or version, and for another encoder or autoencoder than it was trained with.
    """
    say = say or (lambda line: print(line, file=sys.stderr))
    directory = directory or EMBEDDED
    step = checkpoints.resolve_step(directory, say=say)
    meta = checkpoints.load_meta(step)
    if meta.get("task") != "dub":
      raise InputError(f"{directory} holds no dubbing model: it is a checkpoint of the task {meta.get('task')!r}")
    with refusing(f"checkpoint {step} does not describe a dubbing model of this version"):
      stored, made = meta["config"], meta["preprocessing"]["dubbing"]
      scales = {kind: TokenScale(**made["tokens"][kind]) for kind in KINDS}
      computing = {"unroll": False, "remat": "none"}  # same results, compiled in half the time
      if jax.default_backend() == "cpu":
        computing["compute_dtype"] = "float32"
      data = stored["data"] | ({"autoencoder": os.fspath(autoencoder)} if autoencoder else {})
      data |= {"text": os.fspath(text)} if text else {}
      config = {**stored, "data": data, "model": {**stored["model"], **computing}}
      task = from_config(config)
      expected, expected_frozen = jax.eval_shape(task.init, jax.random.key(0))
    trainable, frozen = (
      {name: jax.device_put(checkpoints.find_item(step, name).load_as(item)) for name, item in items.items()}
      for items in (expected, expected_frozen)
    )
    vae, of_vae = load_autoencoder(config)
    if of_vae != dict(made["autoencoder"]):
      raise InputError(f"the model was trained with another autoencoder: {made['autoencoder']}, not {of_vae}")
    embedder = load_trained(encoder or DEMO, say=say).embedder
    if checkpoints.tree_hash(embedder.params) != made["encoder_sha256"]:
      raise InputError(f"the model was trained with the tokens of another encoder ({made['encoder']}): name it")
    return cls(
      task, trainable, frozen, autoencoder=vae, text=read_text(config), embedder=embedder, scales=scales,
      name=str(step),
      settings={**stored["evaluation"], **(settings or {})}, digest=checkpoints.manifest_hash(step),
      expected=meta.get("expected"),
    )  # fmt: skip

  def preview(self, video: str | os.PathLike, *, faces: str = "auto") -> np.ndarray:
    """uint8 [H, W, 3]: the first picture that would be changed, with its mask in red. Raises InputError."""
    with _of_file(video):
      seen = footage.survey(video, faces=faces)
      plan = Cutting(seen, np.arange(len(seen.ticks)))
    number = plan.segments[0].start
    picture = planes.upright(next(footage.read(video, np.array([number]))))
    height, width = picture.shape[:2]
    weight = mouth_weight(plan.regions[0], crop=plan.crop(number), height=height, width=width)[..., None]
    return np.rint(picture * (1 - 0.5 * weight) + 0.5 * weight * np.array([255.0, 0.0, 0.0])).astype(np.uint8)

  def dub(
    self,
    video: str | os.PathLike,
    out: str | os.PathLike,
    *,
    audio: str | os.PathLike | None = None,
    drive_video: str | os.PathLike | None = None,
    fit: str = "pad",
    faces: str = "auto",
    audio_track: int | None = None,
    seed: int = 0,
    compare: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] | None = None,
  ) -> Dubbed:
    """Writes `video` to `out` with the mouth and the sound of `audio` or of `drive_video`; exactly one is given.

    Pictures, their times, size and turn, and all other streams are kept; outside of the mask every sample goes to the
    encoder as it was decoded. `fit`: see `script.schedule`; `audio_track`: of `drive_video`, counted from 1; `compare`:
    a second file that shows the source beside the result. What is generated is kept in a folder beside `out` until the
    file is complete: the same call goes on there. `progress(done, total)` counts evaluations of the model.

    Raises InputError, before anything is generated, for a file that cannot be used and for too little memory.
    """
    out, others = Path(out), [Path(compare)] if compare else []
    if (audio is None) == (drive_video is None):
      raise InputError("name one thing that drives the mouth: a sound or a video")
    for path in (out, *others):
      format_of(path)
      refuse_unwritable(path)
    with _of_file(video):
      seen = footage.survey(video, faces=faces)
    with _of_file(audio or drive_video):
      speech = (
        script.from_audio(self.embedder, audio) if audio is not None
        else script.from_video(self.embedder, drive_video, faces=faces, audio_track=audio_track)
      )  # fmt: skip
    times = script.schedule(seen.ticks, seen.step, seen.time_base, speech=speech.seconds, fit=fit)
    with _of_file(video):
      plan = Cutting(seen, times.order)
    shown = (times.ticks - times.ticks[0]) * float(seen.time_base)
    scaled = self._scales["audio" if audio is not None else "video"](speech.tokens(times.seconds))
    tokens = script.at_pictures(scaled, shown)
    self._refuse_small_memory()

    unfinished = Unfinished(out, digest=self._describe(video, audio or drive_video, fit, faces, audio_track, seed))
    tracks = sound_streams(video)
    replaced = choose_sound(video).index if tracks else None
    notes = [*seen.notes, *plan.notes, *(f"{audio or drive_video}: {note}" for note in speech.notes)]
    if replaced is not None and len(tracks) > 1:
      notes.append(f"its sound track {tracks.index(replaced) + 1} of {len(tracks)} is replaced, the others are kept")
    notes += [times.note] if times.note else []
    trials: list[tuple[float, float]] = []
    with contextlib.ExitStack() as stack:
      write = stack.enter_context(exchanging(
        video, stack.enter_context(writing(out)), out=out, sound=speech.sound(times.seconds), replaced=replaced,
        end=times.seconds, notes=notes,
      ))  # fmt: skip
      beside = None
      if compare:
        beside = stack.enter_context(recording(
          stack.enter_context(writing(compare)), out=Path(compare), rate=seen.rate, sound=speech.sound(times.seconds)
        ))  # fmt: skip
      stream = self._pictures(video, seen, times, plan, tokens, unfinished, trials, seed=seed, progress=progress)
      for before, after in stream:
        if beside:
          pair = np.concatenate([planes.upright(before), planes.upright(after)], axis=1)
          both = planes.encodable(av.VideoFrame.from_ndarray(pair, format="rgb24"))
          beside(_timed(both, after.pts - int(times.ticks[0]), seen))
        write(after)
    unfinished.remove()
    gain, known = (mouth_gain(*np.sum(trials, axis=0)) if trials else None), None
    if gain is not None:
      known = gain >= self.expected["mouth_gain"]
    if known is False:
      notes.append(
        f"the model does not know this face: told how its mouth moves, it is {gain:.1f} dB nearer to it than a still"
        f" picture, with faces like those that it was trained on at least {self.expected['mouth_gain']:.1f} dB; do not"
        " trust the mouth"
      )
    return Dubbed(
      out=str(out), frames=len(times.order), dubbed=int(plan.dubbed), segments=len(plan.segments),
      seconds=times.seconds, driven_by="audio" if audio is not None else "video", fit=fit, checkpoint=self.name,
      mouth_gain=gain, known=known, notes=tuple(notes),
    )  # fmt: skip

  def _pictures(
    self,
    video: str | os.PathLike,
    seen: Footage,
    times: script.Schedule,
    plan: Cutting,
    tokens: np.ndarray,
    unfinished: Unfinished,
    trials: list[tuple[float, float]],
    *,
    seed: int,
    progress: Callable[[int, int], None] | None,
  ) -> Iterator[tuple[av.VideoFrame, av.VideoFrame]]:
    """(as it was, as it becomes) of every picture of the result, with its time.

    Appends to `trials` what `_try` finds of some segments.
    """
    steps, total = self._generate.steps, len(plan.segments) * self._generate.steps
    frames = iter(footage.read(video, times.order))
    # The later of a shot, where the person is seen as in training: some time before.
    tried = _spread([n for n, each in enumerate(plan.segments) if each.history is not None] or [0], _TRIALS)
    tried = tried if self.expected else []
    identity = history = None
    at, shot, ended = 0, -1, -1

    def following(stop: int) -> list[av.VideoFrame]:
      nonlocal at
      taken = []
      for place in range(at, stop):
        if (frame := next(frames, None)) is None:
          raise InputError("it changed while it was read: it has fewer pictures than before")
        taken.append(_timed(frame, int(times.ticks[place]), seen))
      at = stop
      return taken

    for number, segment in enumerate(plan.segments):
      for frame in following(segment.start):
        yield frame, frame
      stored = following(segment.stop)
      pictures = [planes.upright(frame) for frame in stored]
      crops = [plan.crop(segment.start + row) for row in range(len(stored))]
      cuts = np.stack([cut_out(*each, size=self.task.side) for each in zip(pictures, crops, strict=True)])
      if segment.first != shot:
        shot, identity = segment.first, cuts[0]
      if segment.start != ended:  # the picture before was not generated
        history = None
      ended = segment.stop
      if number in tried:
        seen_cuts = [cut_out(*each, size=self.embedder.image_size) for each in zip(pictures, crops, strict=True)]
        mask = plan.masks(number, self.task.side)
        trials.append(self._try(cuts, np.stack(seen_cuts), plan.boxes[number], mask, identity))
      if (latents := unfinished.get(number)) is None:
        tell = None if progress is None else lambda done, _, number=number: progress(number * steps + done, total)
        latents = self._segment(
          segment, cuts, plan.masks(number, self.task.side), tokens, identity, history, seed=seed, progress=tell
        )
        unfinished.put(number, latents)
      elif progress:
        progress((number + 1) * steps, total)
      made = segment.give(np.asarray(self._autoencoder.decode(jnp.asarray(latents[None], jnp.float32)))[0])
      made = match_colour((made + 1) * 127.5, cuts.astype(np.float32), ~plan.masks(number, self.task.side))
      for row, frame in enumerate(stored):
        height, width = pictures[row].shape[:2]
        weight = mouth_weight(plan.regions[number], crop=crops[row], height=height, width=width)
        whole = paste(pictures[row], made[row], weight, crop=crops[row])
        if row == len(stored) - 1:
          history = cut_out(whole, crops[row], size=self.task.side)
        yield frame, planes.changed(frame, whole, weight > 0)
    for frame in following(len(times.order)):
      yield frame, frame

  def _segment(
    self,
    segment: Segment,
    cuts: np.ndarray,
    mask: np.ndarray,
    tokens: np.ndarray,
    identity: np.ndarray,
    history: np.ndarray | None,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None,
  ) -> np.ndarray:
    """float16 [S, h, w, Z]: the generated latents of a segment with the face crops `cuts`, uint8 [n, side, side, 3]."""
    rows = np.minimum(np.arange(self.task.segment), len(cuts) - 1)
    inputs = self._inputs(to_unit(cuts[rows]), mask, identity, history)
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(seed), segment.start), inputs[0].shape)
    made = self._generate(
      *self._params, noise, inputs[1], self._text[None], segment.take(tokens)[None], progress=progress
    )
    return np.asarray(made[0, len(REFERENCES) :], np.float16)

  def _try(
    self, cuts: np.ndarray, seen: np.ndarray, boxes: np.ndarray, mask: np.ndarray, identity: np.ndarray
  ) -> tuple[float, float]:
    """Errors in the mouth region of a segment, whose mouth the model is told, and of a still picture.

    `cuts`, `seen`: its face crops, of the model's and of the encoder's size; `boxes`: of the face, within the crops.
    """
    rows = np.minimum(np.arange(self.task.segment), len(cuts) - 1)
    truth = to_unit(cuts[rows])
    clean, context = self._inputs(truth, mask, identity, None)
    unknown = np.full((len(rows), 4), -1, np.float32)
    tokens = self._scales["video"](self.embedder.encode_lips(seen[rows], face_box=boxes[rows], mouth_box=unknown))
    noise = jax.random.normal(jax.random.key(0), clean.shape)
    latents = self._generate.at_once(*self._params, noise, context, self._text[None], tokens[None])
    made = np.asarray(self._autoencoder.decode(latents[:, len(REFERENCES) :]))
    still = np.broadcast_to(to_unit(identity), made.shape)
    told, held = (region_error(each, truth[None], mask[None])[0] for each in (made, still))
    return float(told), float(held)

  def _inputs(self, video: np.ndarray, mask: np.ndarray, identity: np.ndarray, history: np.ndarray | None):
    """(clean latents without content, context) of one segment in [-1, 1]."""
    inactive = self._autoencoder.encode(self._hide(jnp.asarray(video[None]), mask[None]))
    stills = jnp.asarray(to_unit(np.stack([identity, identity if history is None else history])))
    references = [encode_pictures(self._autoencoder, still[None, None])[:, 0] for still in stills]
    batch = {
      "target": jnp.zeros_like(inactive),
      "inactive": inactive,
      "reactive": self._autoencoder.encode(jnp.zeros((1, *video.shape))),
      "references": jnp.stack(references, axis=1),
      "mask": mask[None],
    }
    return self.task.inputs(batch, history=jnp.array([history is not None]))

  def _refuse_small_memory(self) -> None:
    side, frames = self.task.side, self.task.segment
    nothing = np.zeros((side, side, 3), np.uint8)
    clean, context = self._inputs(to_unit(np.zeros((frames, side, side, 3), np.uint8)), np.ones((side, side), bool),
                                  nothing, None)  # fmt: skip
    tokens = np.zeros((1, frames, self.task.token_width), np.float32)
    needed, free = self._generate.memory(*self._params, clean, context, self._text[None], tokens), _free_memory()
    if free is not None and needed > free:
      raise InputError(
        f"a segment of {side} x {side} pixels needs {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free"
      )

  def _describe(self, *inputs: Any) -> str:
    """A digest of what the generated segments depend on."""
    files = [(os.path.realpath(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in inputs[:2]]
    settings = sorted(self._settings.items(), key=lambda pair: pair[0])
    said = (files, inputs[2:], settings, self._digest, self.name)
    return hashlib.sha256(repr(said).encode()).hexdigest()


def _spread(numbers: list[int], count: int) -> list[int]:
  """At most `count` of them, evenly."""
  return [numbers[i] for i in np.unique(np.linspace(0, len(numbers) - 1, count).round().astype(int))]


def _timed(frame: av.VideoFrame, ticks: int, seen: Footage) -> av.VideoFrame:
  frame.pts, frame.time_base = ticks, seen.time_base
  return frame


@contextlib.contextmanager
def _of_file(path: str | os.PathLike | None) -> Iterator[None]:
  """Names the file in the message of an InputError."""
  try:
    yield
  except InputError as error:
    raise InputError(f"{path}: {error}") from error


def _free_memory() -> int | None:
  """Bytes that are free on the device; None if unknown."""
  device = jax.local_devices()[0]
  if (told := device.memory_stats()) and "bytes_limit" in told:
    return told["bytes_limit"] - told["bytes_in_use"]
  with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/meminfo") as file:
    return 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
  return None
