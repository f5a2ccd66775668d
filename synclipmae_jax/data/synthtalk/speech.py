"""Source-filter speech synthesis in numpy: pulses and noise, filtered every 5 ms by the articulation of the score."""

from __future__ import annotations

import numpy as np

from synclipmae_jax.data.synthtalk import phones
from synclipmae_jax.data.synthtalk.grammar import Score, trajectory
from synclipmae_jax.data.synthtalk.tracks import smooth, wander
from synclipmae_jax.types import SAMPLE_RATE

# Parameters of a voice: pitch in Hz, range of the pitch as a fraction, scale of the formants, spectral tilt in dB per
# octave, gain of the breath noise, factor on the formant bandwidths.
VOICE_RANGES = {
  "pitch": (90.0, 235.0),
  "pitch_range": (0.06, 0.20),
  "tract": (0.88, 1.18),
  "tilt": (-8.0, -4.0),
  "breath": (0.0, 0.08),
  "bandwidth": (0.8, 1.3),
}
VOICE = tuple(VOICE_RANGES)

_HOP = SAMPLE_RATE // 200  # 5 ms
_WINDOW = 4 * _HOP
_FFT = 512
_PAD = (_FFT - _WINDOW) // 2  # padding on both sides for the response of a zero-phase filter
_HZ = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
_FORMANT_BLUR = 0.018  # seconds; formants change more slowly than voicing and bursts
_GATE_BLUR = 0.006
_BURST = 0.6  # fraction of the duration of a stop that is silent


def synthesise(
  score: Score, voice: np.ndarray, *, seconds: float, snr_db: float, rng: np.random.Generator
) -> np.ndarray:
  """The sound of a score, float32 [seconds * 16000], peak below 1. `voice` has the values of `VOICE`.

  All filters have zero phase, so the sound neither leads nor lags the articulation. `snr_db` is the ratio of the mean
  power of the whole clip to that of the background noise.
  """
  speaker = dict(zip(VOICE, voice, strict=True))
  samples = round(seconds * SAMPLE_RATE)
  hops = samples // _HOP + 5
  times = (np.arange(hops) - 2) * _HOP / SAMPLE_RATE  # the centre of each window; sample _WINDOW is time 0
  length = (hops - 1) * _HOP + _WINDOW
  sound = dict(zip(phones.SOUND, trajectory(score, phones.SOUND, times, blur=_FORMANT_BLUR).T, strict=True))
  voicing, friction = _gates(score, times).T

  pulses = _frames(_pulses(speaker, length, rng))
  noise = _frames(rng.standard_normal(length))
  # The loudness varies independently, so that the mouth opening cannot be inferred from the level alone.
  loudness = np.exp(0.15 * wander(rng, hops, 25))
  tract = _resonances(sound, speaker)
  spectra = pulses * (tract * (voicing * loudness)[:, None])
  spectra += noise * (tract * (speaker["breath"] * voicing)[:, None])
  spectra += noise * _friction(sound, friction)

  speech = _overlap_add(np.fft.irfft(spectra, _FFT, axis=1))[_PAD + _WINDOW :][:samples]
  speech = speech + _background(speech, snr_db, rng)
  return (speech * (rng.uniform(0.35, 0.9) / np.abs(speech).max())).astype(np.float32)


def _gates(score: Score, times: np.ndarray) -> np.ndarray:
  """[hops, 2]: gains of voice and friction. The friction of a stop is 0 until the burst."""
  where = score.at(times)
  ends = np.append(score.starts[1:], np.inf)
  finite_starts = np.maximum(score.starts, 0)
  phase = (times - finite_starts[where]) / (ends - finite_starts)[where]
  closed = (phones.column("stop")[score.phones[where]] > 0) & (phase < _BURST)
  gains = np.stack([phones.column(name)[score.phones[where]] for name in ("voicing", "friction")], axis=1)
  gains[closed, 1] = 0
  return smooth(gains, _GATE_BLUR * SAMPLE_RATE / _HOP)


def _pulses(speaker: dict[str, float], length: int, rng: np.random.Generator) -> np.ndarray:
  """[length]: glottal pulses of unit power. The pitch varies independently of the words."""
  melody = wander(rng, length // _HOP + 1, 25)
  hops = np.arange(len(melody)) * _HOP
  pitch = speaker["pitch"] * np.exp(speaker["pitch_range"] * np.interp(np.arange(length), hops, melody))
  phase = np.cumsum(pitch / SAMPLE_RATE)
  last = np.flatnonzero(np.floor(phase[1:]) > np.floor(phase[:-1]))
  fraction = (np.floor(phase[last + 1]) - phase[last]) * SAMPLE_RATE / pitch[last]  # position between two samples
  height = np.sqrt(SAMPLE_RATE / pitch[last])
  pulses = np.zeros(length)
  pulses[last] += height * (1 - fraction)
  pulses[last + 1] += height * fraction
  return pulses


def _frames(signal: np.ndarray) -> np.ndarray:
  """[hops, _FFT // 2 + 1]: spectra of overlapping windows that add up to 1."""
  windows = np.lib.stride_tricks.sliding_window_view(signal, _WINDOW)[::_HOP]
  hann = 0.25 * (1 - np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW))  # four overlapping windows add up to 1
  return np.fft.rfft(np.pad(windows * hann, [(0, 0), (_PAD, _PAD)]), axis=1)


def _resonances(sound: dict[str, np.ndarray], speaker: dict[str, float]) -> np.ndarray:
  """[hops, bins]: magnitude of the vocal tract, five resonances and the tilt of the glottis."""
  constant = np.ones_like(sound["f1"])
  centres = (sound["f1"], sound["f2"], sound["f3"], 3500 * constant, 4500 * constant)
  tilt = (np.maximum(_HZ, 100) / 100) ** (speaker["tilt"] / 6.02)
  magnitude = np.broadcast_to(tilt, (len(constant), len(_HZ)))
  for centre, bandwidth in zip(centres, (70, 90, 130, 220, 280), strict=True):
    squared = (speaker["tract"] * centre[:, None]) ** 2
    magnitude = magnitude * squared / np.hypot(squared - _HZ**2, speaker["bandwidth"] * bandwidth * _HZ)
  return magnitude


def _friction(sound: dict[str, np.ndarray], gain: np.ndarray) -> np.ndarray:
  """[hops, bins]: magnitude of the friction noise."""
  away = (_HZ - sound["friction_hz"][:, None]) / sound["friction_bandwidth"][:, None]
  return gain[:, None] * np.exp(-0.5 * away**2)


def _overlap_add(pieces: np.ndarray) -> np.ndarray:
  signal = np.zeros((len(pieces) - 1) * _HOP + _FFT)
  for hop, piece in enumerate(pieces):
    signal[hop * _HOP : hop * _HOP + _FFT] += piece
  return signal


def _background(speech: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
  """Noise with a random spectral slope between white and brown, `snr_db` below the speech."""
  spectrum = np.fft.rfft(rng.standard_normal(len(speech)))
  hz = np.fft.rfftfreq(len(speech), 1 / SAMPLE_RATE)
  noise = np.fft.irfft(spectrum * np.maximum(hz, 60) ** -rng.uniform(0, 1), len(speech))
  return noise * np.sqrt(np.mean(speech**2) / np.mean(noise**2) * 10 ** (-snr_db / 10))
