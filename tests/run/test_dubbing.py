"""run/dubbing.py, data/dubbing.py and evaluation/dub.py: a small run, from prepared clips to its table."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from preparing import run as prepare
from preparing import talk

from configs import dub
from synclipmae_jax import checkpoints
from synclipmae_jax.data import dubbing as segments
from synclipmae_jax.data import pipeline
from synclipmae_jax.data.records import open_records
from synclipmae_jax.dub.dubber import Dubber
from synclipmae_jax.models.wan.autoencoder import wan_functional
from synclipmae_jax.models.wan.conditioning import to_unit
from synclipmae_jax.models.wan.space_to_depth import SpaceToDepth
from synclipmae_jax.pretrained import SyncLipMAE
from synclipmae_jax.run import dubbing, jobs
from synclipmae_jax.run.clock import Clock
from synclipmae_jax.types import InputError
from tests.tiny_checkpoint import write_tiny

SIDE, WIDTH = 32, 32
VAE = SpaceToDepth(space_stride=4, time_stride=4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Records of eight short clips, and an encoder with random weights."""
  folder = tmp_path_factory.mktemp("dubbing")
  (folder / "raw").mkdir()
  for number in range(8):
    talk(folder / "raw" / f"{number}.mp4", count=45 + 4 * number)
  prepare(folder / "raw", folder / "out")
  write_tiny(folder / "encoder" / "0")
  return folder


@pytest.fixture(scope="module")
def model(place):
  return SyncLipMAE.load(place / "encoder" / "0")


def config(place, **changes):
  out = dub.get_config("tiny").unlock()
  out.data.synthtalk = None
  out.data.update(dict(sources=((str(place / "out"), 1.0),), image_size=SIDE, token_width=WIDTH))
  out.data.update(dict(encoder=str(place / "encoder" / "0"), cache=str(place / "cache"), val_split="test"))
  for name, value in changes.items():
    group, field = name.split("__")
    out[group][field] = value
  return out.lock()


def clips(place, *, split="train"):
  opened = open_records(place / "out", split=split)
  return [pipeline.eval_clip(opened[index], SIDE) for index in range(len(opened))]


def test_the_arrays_of_a_clip_are_its_pictures_and_tokens(place, model):
  clip = max(clips(place), key=lambda each: len(each.frames))
  make = dubbing.segment_maker(model, VAE, side=SIDE)
  arrays = make(clip, clip)
  count = segments.segment_count(len(clip.frames))
  assert count >= 2 and arrays["target"].shape == (count, 5, 8, 8, 192) and len(arrays["stills"]) == count + 1
  tokens = model.embed(clip.frames, clip.waveform, face_box=clip.face_box, mouth_box=clip.mouth_box)
  for number in range(count):
    rows = segments.segment_frames(number)
    shown = to_unit(clip.frames[rows])
    np.testing.assert_allclose(VAE.decode(jax.numpy.float32(arrays["target"][number][None]))[0], shown, atol=2e-3)
    seen = np.asarray(VAE.decode(jax.numpy.float32(arrays["inactive"][number][None]))[0])
    mask = segments.region_mask(arrays["region"][number], height=SIDE, width=SIDE)
    assert mask.any() and not mask[: SIDE // 3].any()
    np.testing.assert_allclose(seen, np.where(mask[..., None], 0, shown), atol=2e-3)
    still = VAE.decode(jax.numpy.float32(arrays["stills"][number][None, None]))[0, 0]
    np.testing.assert_allclose(still, to_unit(clip.frames[rows.start - 1]), atol=2e-3)
    np.testing.assert_array_equal(arrays["audio"][number], tokens.audio[rows].astype(np.float16))
    np.testing.assert_array_equal(arrays["video"][number], tokens.vocal[rows].astype(np.float16))
  late = make(dataclasses.replace(clip, lag=2), clip)  # the picture is late: its sound came two frames before
  heard = np.maximum(np.arange(1, 18) - 2, 0)
  np.testing.assert_array_equal(late["audio"][0], tokens.audio[heard].astype(np.float16))
  outside = clip.face_box + np.array([0, 0.3, 0, 0.3], np.float32)
  assert (make(clip, dataclasses.replace(clip, face_box=outside))["region"] == -1).all()
  short = dataclasses.replace(clip, **{n: getattr(clip, n)[:17] for n in ("frames", "face_box", "mouth_box")})
  empty = make(dataclasses.replace(short, waveform=clip.waveform[: 17 * 640]), short)
  assert {name: each.shape[1:] for name, each in empty.items()} == {n: each.shape[1:] for n, each in arrays.items()}
  assert not len(empty["target"]) and len(empty["stills"]) == 1


@pytest.mark.slow
def test_a_run_caches_its_segments_trains_resumes_and_reports(place, tmp_path, capsys):
  given = config(place, evaluation__release=True)
  whole = jobs.job_of(given).run(given, tmp_path)
  out = capsys.readouterr().out
  assert "| audio" in out and "| history" in out
  report = json.loads((tmp_path / "eval.json").read_text())["dubbing"]
  assert report["step"] == 4 and report["segments"] >= 1 and report["sampler"] == "unipc"
  assert {"audio", "video", "none", "history"} <= report["psnr_mouth"].keys()
  assert all(np.isfinite(value) for value in report["psnr_mouth"].values())
  assert {"audio", "video", "none"} <= report["motion_explained"].keys()
  watched = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "motion_video" in line]
  assert len(watched) == 2 and all("dubbing/error_video" in line for line in watched)
  meta = checkpoints.load_meta(tmp_path)
  assert meta["preprocessing"]["dubbing"]["autoencoder"]["kind"] == "space_to_depth"
  released = tmp_path / "released" / "4"
  assert -60 < checkpoints.load_meta(released)["expected"]["mouth_gain"] < 60
  assert str(tmp_path) not in json.dumps(checkpoints.load_meta(released)["config"]["data"]["sources"])
  loaded = Dubber.load(released, encoder=given.data.encoder)
  assert loaded.expected == checkpoints.load_meta(released)["expected"]
  jax.tree.map(
    lambda half, full: np.testing.assert_array_equal(half, np.asarray(full, np.float16).astype(np.float32)),
    *(checkpoints.find_item(released, "dit").load_as(whole.trainable["dit"]), jax.device_get(whole.trainable["dit"])),
  )

  written = {path: path.stat().st_mtime_ns for path in (place / "cache").rglob("*") if path.is_file()}
  shutil.rmtree(tmp_path / "checkpoints" / "4")  # killed after its third step, the run goes on to the same end
  again = jobs.job_of(given).run(given, tmp_path)
  assert "at step 3 of 4" in capsys.readouterr().out
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole.trainable), jax.device_get(again.trainable))
  assert {path: path.stat().st_mtime_ns for path in written} == written


def test_batches_are_a_function_of_the_step_and_show_no_frame_of_their_segment(place, tmp_path):
  data = dubbing.open_dubbing(config(place), tmp_path, Clock())
  shapes = jobs.training_job_of(data.config).build_task(data.config).abstract_batches(8)[0]
  stream = data.train_batches(0, host_index=0, host_count=1)
  for step in range(3):
    batch = next(stream)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
      name: (x.shape, np.dtype(x.dtype)) for name, x in shapes.items()
    }
    again = next(data.train_batches(step, host_index=0, host_count=1))
    assert all((batch[name] == again[name]).all() for name in batch)
    halves = [next(data.train_batches(step, host_index=host, host_count=2)) for host in range(2)]
    assert (np.concatenate([half["target"] for half in halves]) == batch["target"]).all()
    shown = np.asarray(VAE.decode(jax.numpy.float32(batch["target"])))
    references = np.asarray(VAE.decode(jax.numpy.float32(batch["references"]).reshape(16, 1, 8, 8, 192)))
    references = references.reshape(8, 2, 1, SIDE, SIDE, 3)
    assert np.abs(references - shown[:, None]).max(axis=(3, 4, 5)).min() > 0.05
  assert {segment["key"] for segment in data.val} == {segment["key"] for segment in data.test}
  assert len(data.test) == 2 or len(open_records(place / "out", split="test")) < 2


def test_the_wan_autoencoder_is_used_with_its_weights(place, tmp_path, model):
  sizes = dict(base=8, latent=4, multipliers=(1, 1, 1), temporal_down=(True, True), blocks=1)
  sizes |= dict(latent_mean=(0.0,) * 4, latent_std=(1.0,) * 4)
  given = config(place, model__autoencoder=dict(kind="wan", **sizes))
  with pytest.raises(InputError, match="--config.data.autoencoder=DIR"):
    dubbing.load_autoencoder(given)
  functional = wan_functional(**sizes)
  params = jax.device_get(functional.init(jax.random.key(0)))
  checkpoints.save_items(tmp_path / "vae", {"vae": params}, {})
  given = config(place, model__autoencoder=dict(kind="wan", **sizes), data__autoencoder=str(tmp_path / "vae"))
  autoencoder, origin = dubbing.load_autoencoder(given)
  assert (autoencoder.latent, autoencoder.space_stride, autoencoder.time_stride) == (4, 4, 4)
  assert origin["sha256"] == checkpoints.tree_hash(params)
  clip = clips(place)[0]
  cut = {name: getattr(clip, name)[:18] for name in ("frames", "face_box", "mouth_box")}
  clip = dataclasses.replace(clip, waveform=clip.waveform[: 18 * 640], **cut)
  arrays = dubbing.segment_maker(model, autoencoder, side=SIDE)(clip, clip)
  expected = functional.bind(params).encode(jax.numpy.asarray(to_unit(clip.frames[1:18])[None]))
  np.testing.assert_allclose(arrays["target"], np.asarray(expected), rtol=2e-3, atol=2e-3)
  assert arrays["reactive"].shape == (1, 5, 8, 8, 4)


def test_what_does_not_fit_is_refused_in_one_sentence(place, tmp_path):
  checkpoints.save_items(tmp_path / "text", {"text_embeddings": {"prompt_0000": np.ones((3, 4), np.float32)}}, {})
  text = dubbing.read_text(config(place, data__text=str(tmp_path / "text"), data__text_tokens=5))
  assert text.shape == (5, 4) and text[:3].all() and not text[3:].any()
  for changes, why in (
    (dict(data__token_width=10), "--config.data.token_width=32"),
    (dict(data__text=str(tmp_path / "text")), "data.text_tokens"),
    (dict(data__segment_frames=21), "17 frames"),
    (dict(data__image_size=64), "--size 64"),
  ):
    with pytest.raises(InputError, match=why):
      dubbing.open_dubbing(config(place, **changes), tmp_path, Clock())


def test_tokens_of_both_kinds_have_one_scale_whatever_their_lengths():
  rng = np.random.default_rng(0)
  moves = rng.normal(size=(3, 2, 17, 8))
  kinds = {"audio": 60 * (moves + rng.normal(size=8)), "video": 3 * (0.2 * moves + rng.normal(size=8))}

  class Records(list):
    keys = ("a", "b", "c")

  records = Records({kind: values[i].astype(np.float16) for kind, values in kinds.items()} for i in range(3))
  scales = segments.token_scales([segments.Segments(records=records, usable=[[0, 1]] * 3)])
  for kind, values in kinds.items():
    scaled = scales[kind](values)
    assert np.square(scaled).mean() == pytest.approx(1, abs=0.01) and abs(scaled.mean((0, 1, 2))).max() < 0.01
    np.testing.assert_allclose(scales[kind](7 * values), scaled, atol=1e-4)
