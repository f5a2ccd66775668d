from __future__ import annotations

import av
import numpy as np
import pytest
from awkward import bursts, read, spoil_packet, talk, tone, voice, write_tracks

from synclipmae_jax.data.media import audio, video
from synclipmae_jax.data.media.sound_track import choose_sound
from synclipmae_jax.data.media.speech import speech_score
from synclipmae_jax.data.synthtalk.corpus import write_corpus
from synclipmae_jax.types import InputError


def undecodable(path, *, number):
  """Gives a sound track of an MP4 a codec that FFmpeg cannot decode, such as Apple's spatial sound."""
  data = bytearray(path.read_bytes())
  for name, other in ((b"mp4a", b"apac"), (b"esds", b"free")):
    places = [at for at in range(len(data)) if data[at : at + 4] == name]
    assert len(places) == 2
    data[places[number - 1] : places[number - 1] + 4] = other
  path.write_bytes(data)
  return path


@pytest.mark.parametrize("number", [1, 2])
def test_a_track_that_nobody_decodes_is_left_out_and_named(tmp_path, number):
  tracks = [voice(3)[None], voice(3, seed=1)[None]]
  path = undecodable(write_tracks(tmp_path / "a.mp4", tracks), number=number)
  _, heard, notes = read(path)
  assert np.corrcoef(heard[8000:40_000], tracks[2 - number][0][8000:40_000])[0, 1] > 0.9
  assert notes == [f"sound track {number} (apac) is left out: its codec cannot be decoded"]
  with pytest.raises(InputError, match="its sound is of a codec that cannot be decoded"):
    video.probe(path, audio_track=number)


@pytest.mark.parametrize("other", ["tone", "noise", "music", "silence"])
@pytest.mark.parametrize("place", [1, 2])
def test_the_track_with_speech_is_heard(tmp_path, other, place):
  rng = np.random.default_rng(0)
  plucked = np.exp(-6 * np.linspace(0, 1, 4000))
  melody = np.concatenate([tone(0.25, hz=hz) * plucked for hz in rng.choice([220, 262, 330, 392], 12)])
  sounds = {"tone": tone(3), "noise": rng.normal(0, 0.1, 48_000), "music": melody, "silence": np.zeros(48_000)}
  tracks = [sounds[other][None], sounds[other][None]]
  tracks[place - 1] = voice(3)[None]
  path = write_tracks(tmp_path / "a.mp4", tracks)
  _, heard, notes = read(path)
  assert np.corrcoef(heard[8000:40_000], tracks[place - 1][0][8000:40_000])[0, 1] > 0.9
  assert notes == [f"it is judged by its sound track {place} (aac); there is also sound track {3 - place} (aac): "
                   "--audio-track chooses"]  # fmt: skip


def test_of_two_voices_it_is_the_one_that_players_take_or_the_one_that_is_named(tmp_path):
  tracks = [voice(3)[None], voice(3, seed=1)[None]]
  path = write_tracks(tmp_path / "a.mp4", tracks)
  for number in (None, 1, 2):
    _, heard, notes = read(path, audio_track=number)
    assert np.corrcoef(heard[8000:40_000], tracks[(number or 1) - 1][0][8000:40_000])[0, 1] > 0.9
    assert f"judged by its sound track {number or 1} (aac)" in notes[0]
  for number in (0, 3):
    with pytest.raises(InputError, match=f"it has 2 sound tracks: there is no track {number}"):
      choose_sound(path, number)


def test_channels_that_cancel_each_other_are_heard_one_by_one(tmp_path):
  sound = voice(3)
  path = write_tracks(tmp_path / "a.mp4", [np.stack([sound, -sound])])
  _, heard, notes = read(path)
  assert np.corrcoef(heard[8000:40_000], sound[8000:40_000])[0, 1] ** 2 > 0.8
  assert len(notes) == 1 and "cancel each other" in notes[0]


def test_channels_that_do_not_are_mixed(tmp_path):
  left, right = voice(3), voice(3, seed=1)
  path = write_tracks(tmp_path / "a.mp4", [np.stack([left, right])])
  _, heard, notes = read(path)
  assert not notes and np.corrcoef(heard[8000:40_000], (left + right)[8000:40_000])[0, 1] > 0.9


def test_damaged_sound_is_a_gap_of_known_length(tmp_path):
  path = talk(tmp_path / "a.mkv", count=250, at=(2.0, 8.0), sound_codec="flac")
  whole = read(path)[1]
  with av.open(str(path)) as container:
    packet = [packet for packet in container.demux(audio=0) if packet.size][10]
    first, last = packet.pts * 16, (packet.pts + packet.duration) * 16
  spoil_packet(path, number=10, kind="audio")
  frames, heard, notes = read(path)
  assert len(frames) == 250 and len(notes) == 1 and "its sound is damaged at" in notes[0]
  assert not heard[first + 100 : last - 100].any()
  np.testing.assert_allclose(heard[last + 400 :], whole[last + 400 :], atol=1e-3)


def test_sound_of_a_hundred_samples_a_second_is_refused(tmp_path):
  path = talk(tmp_path / "a.avi", codec="mjpeg", sound_codec="pcm_s16le")
  data = bytearray(path.read_bytes())
  at = data.index(b"strf", data.index(b"auds")) + 12  # samples a second
  data[at : at + 4] = (100).to_bytes(4, "little")
  path.write_bytes(data)
  with pytest.raises(InputError, match="100 samples a second"):
    list(audio.read_chunks(path, origin=0))


def test_speech_is_told_from_what_is_none(tmp_path):
  write_corpus(tmp_path, clips={"train": 2}, seconds=4, size=48, workers=1, progress=False)
  heard = [np.concatenate([samples for _, samples in audio.read_chunks(path, origin=0)])
           for path in sorted(tmp_path.glob("train/*.mp4"))]  # fmt: skip
  spoken = min(speech_score(sound) for sound in [voice(4), *heard])
  beat = np.random.default_rng(0).normal(0, 0.2, 64_000) * (np.sin(np.arange(64_000) * 2 * np.pi * 4 / 16000) > 0)
  others = [tone(4), np.random.default_rng(0).normal(0, 0.1, 64_000), np.zeros(64_000), beat, bursts(4, [1, 2, 3])]
  assert spoken > 2 * max(speech_score(sound) for sound in others)
