"""Injected lags on tokens of known lag."""

import numpy as np
import pytest

from synclipmae_jax.inference.stream import Block, FaceBlock
from synclipmae_jax.sync import injection
from synclipmae_jax.sync.analysis import analyse
from synclipmae_jax.sync.calibration import Calibration
from synclipmae_jax.types import SAMPLES_PER_FRAME, InputError

WIDTH = 8
SETTINGS = dict(hear=lambda audio: audio, calibration=Calibration.uncalibrated())


def whole(lag, *, frames=150, seed=0, hidden=(), noise=0.5):
  """A file whose audio and lips follow one sequence, the picture `lag` frames late; no face in `hidden` frames."""
  rng = np.random.default_rng(seed)
  sequence = rng.normal(size=(frames + 60, WIDTH))
  audio, lips = (
    (part + noise * rng.normal(size=part.shape)).astype(np.float32)
    for part in (sequence[30:][:frames], sequence[30 - lag :][:frames])
  )
  face = FaceBlock(box=np.zeros((frames, 4), np.float32), identity=lips, ambient=lips, lips=lips.copy())
  for rows in vars(face).values():
    rows[list(hidden)] = np.nan
  waveform = rng.normal(0, 0.1, frames * SAMPLES_PER_FRAME).astype(np.float32)
  return Block(start=0, count=frames, waveform=waveform, audio=audio, faces={4: face})


def part(block, start, stop):
  faces = {n: FaceBlock(**{name: rows[start:stop] for name, rows in vars(f).items()}) for n, f in block.faces.items()}
  sound = block.waveform[SAMPLES_PER_FRAME * start : SAMPLES_PER_FRAME * stop]
  return Block(start=start, count=stop - start, waveform=sound, audio=block.audio[start:stop], faces=faces)


def test_a_file_judged_as_one_block_is_judged_as_in_blocks():
  file = whole(4, hidden=range(60, 70))
  pieces = [part(file, start, min(start + 64, 150)) for start in (0, 64, 128)]
  described = dict(file="a", fps=25.0, **SETTINGS)
  one, other = (analyse(blocks, **described)[0] for blocks in (pieces, [injection.join_blocks(pieces)]))
  assert one == other and one.lag_frames == 4


@pytest.mark.parametrize("shift", [7, -9])
def test_the_injected_lag_is_that_of_a_file_whose_picture_is_moved(shift):
  own, moved = whole(2), whole(2 + shift)
  injected = injection.inject(own, own, shift)
  assert injected.count == 150 - abs(shift) and len(injected.waveform) == SAMPLES_PER_FRAME * injected.count
  lags = [analyse([block], file="", fps=25.0, **SETTINGS)[1].lag for block in (own, moved, injected)]
  assert lags == [2, 2 + shift, 2 + shift]


def test_shifts_are_drawn_from_seed_and_name_and_leave_a_file_long_enough():
  draw = lambda key="a", frames=150, seed=0: injection.draw_shifts(key, frames, number=3, seed=seed)
  assert draw() == draw() and len({tuple(draw(seed=seed)) for seed in range(9)}) > 6 and draw("b") != draw()
  every = [shift for seed in range(50) for shift in draw(seed=seed)]
  assert 0 not in every and {-10, 10} <= set(every) and max(map(abs, every)) == 10
  assert all(len(set(draw(seed=seed))) == 3 for seed in range(9))
  assert sorted(draw(frames=32)) == [-1, 1] and not draw(frames=31)


def test_answers_follow_the_injected_lag_and_foreign_sound_gets_none():
  files = [whole(lag, seed=seed) for seed, lag in enumerate((0, 5, -4, 0))]
  own = [injection.judge(file, file, (3, -5), known_lag=0, **SETTINGS)[1] for file in files]
  foreign = [injection.judge(one, two, (3, -5), **SETTINGS)[1] for one, two in zip(files, files[1:], strict=False)]
  by_injection, by_known, none = (
    injection.summarise(own), injection.summarise(own, known=True), injection.summarise(foreign)
  )  # fmt: skip
  assert (by_injection["cases"], by_injection["answered"], by_injection["right_of_answered"]) == (8, 1.0, 1.0)
  assert (by_known["cases"], by_known["right_of_answered"], by_known["wrong"]) == (12, 0.5, 0.5)  # two are not at 0
  assert by_injection["calibration_error"] < 0.1 < 0.4 < by_known["calibration_error"]
  assert none["answered"] == 0 and none["right_of_answered"] is None and 0 < none["cases"] * none["peaks_right"]


def test_a_lag_beyond_the_search_range_is_no_right_answer():
  file = whole(11)
  _, cases = injection.judge(file, file, (10, 2), **SETTINGS)
  assert [case.right for case in cases] == [True, False, True] and cases[2].lag == 13


def test_too_short_a_file_is_refused():
  file = whole(0, frames=30)
  with pytest.raises(InputError, match="too short: 30 frames"):
    injection.judge(file, file, (), **SETTINGS)


def test_chance_makes_few_exact_confidences_look_wrong():
  rng = np.random.default_rng(0)
  few, many, same = (
    injection.chance_error(rng.uniform(0.3, 0.9, cases), np.arange(cases) % files)
    for cases, files in ((30, 30), (3000, 3000), (3000, 30))
  )
  assert many < 0.03 < 0.1 < few and many < same
