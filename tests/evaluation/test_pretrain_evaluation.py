import numpy as np
import pytest

from synclipmae_jax.evaluation.pretrain import middle_batch
from synclipmae_jax.types import AUDIO_MARGIN, SAMPLES_PER_FRAME, EvalClip, audio_context_samples


@pytest.mark.parametrize("lag", [None, 0, 3, -10])
def test_the_middle_of_a_clip_has_its_own_sound(lag):
  """The picture for audio time t is at t + lag, so frame f belongs to the sound of f - lag."""
  frames = 40
  times = np.arange(1, frames * SAMPLES_PER_FRAME + 1, dtype=np.float32)  # every sample is its index, from 1
  numbered = np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 2, 2, 3))
  box = np.zeros((frames, 4), np.float32)
  clip = EvalClip(
    key="c", corpus="", identity="", frames=numbered, waveform=times, face_box=box, mouth_box=box, lag=lag, truth=None
  )
  batch = middle_batch([clip, clip], clip_frames=8, audio_frames=24)
  assert batch["waveform"].shape == (2, audio_context_samples(24))
  first = int(batch["frames"][0, 0, 0, 0, 0])
  assert first == 16 and batch["frames"].shape[1] == 8
  at_first_frame = AUDIO_MARGIN + 8 * SAMPLES_PER_FRAME  # the eight frames are in the middle of the twenty-four
  assert batch["waveform"][0, at_first_frame] == (first - (lag or 0)) * SAMPLES_PER_FRAME + 1


def test_beyond_the_ends_of_the_clip_there_is_silence():
  box = np.zeros((8, 4), np.float32)
  clip = EvalClip(
    key="c", corpus="", identity="", frames=np.zeros((8, 2, 2, 3), np.uint8), face_box=box, mouth_box=box,
    waveform=np.ones(8 * SAMPLES_PER_FRAME, np.float32), lag=0, truth=None,
  )  # fmt: skip
  sound = middle_batch([clip], clip_frames=8, audio_frames=24)["waveform"][0]
  assert sound.sum() == 8 * SAMPLES_PER_FRAME and not sound[: 8 * SAMPLES_PER_FRAME].any()
