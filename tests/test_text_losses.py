"""text_losses.py against enumeration of every alignment, against closed forms and, where it is installed, torch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synclipmae_jax import text_losses

# Repeated labels, an empty text, a text that just fits, and texts that do not: too long, too long for its repetitions.
TEXTS = ((1, 1, 2), (), (2, 1, 2), (1, 2, 1, 2), (2, 2, 2))
FRAMES = (4, 3, 3, 3, 4)
FIT = (True, True, True, False, False)
VOCABULARY, LONGEST, WIDTH = 3, 5, 5


def value_and_grad(function):
  return jax.jit(jax.value_and_grad(function))


def batch(texts=TEXTS, width=WIDTH):
  tokens = np.zeros((len(texts), width), np.int32)
  for row, text in zip(tokens, texts, strict=True):
    row[: len(text)] = text
  return jnp.asarray(tokens), jnp.asarray([len(text) for text in texts])


def logits(examples=5, frames=LONGEST, vocabulary=VOCABULARY):
  return 2 * jax.random.normal(jax.random.key(0), (examples, frames, vocabulary))


def collapse(path):
  return tuple(label for label, _ in itertools.groupby(path) if label)


def brute_force(log_p, text):
  """-log of the sum over all paths that read as the text."""
  frames, vocabulary = log_p.shape
  paths = [path for path in itertools.product(range(vocabulary), repeat=frames) if collapse(path) == text]
  return -np.logaddexp.reduce([sum(log_p[t, label] for t, label in enumerate(path)) for path in paths] or [-np.inf])


def test_ctc_is_the_sum_over_all_alignments_and_never_nan():
  tokens, count = batch()
  x, frames = logits(), jnp.asarray(FRAMES)
  loss, fits = jax.jit(text_losses.ctc)(x, frames, tokens, count)
  assert fits.tolist() == list(FIT)
  log_p = np.asarray(jax.nn.log_softmax(x), np.float64)
  for i, (text, length) in enumerate(zip(TEXTS, FRAMES, strict=True)):
    expected = brute_force(log_p[i, :length], text)
    assert np.isfinite(expected) == FIT[i]
    assert loss[i] == pytest.approx(expected if FIT[i] else 0, rel=1e-5)


def test_the_gradient_of_ctc_is_that_of_the_sum_over_all_alignments():
  tokens, count = batch()
  x, frames = logits(), jnp.asarray(FRAMES)
  gradient = jax.jit(jax.grad(lambda x: text_losses.ctc(x, frames, tokens, count)[0].sum()))(x)
  assert np.isfinite(gradient).all()
  for i, (text, length) in enumerate(zip(TEXTS, FRAMES, strict=True)):
    # d loss / d logit = softmax - the posterior of the label at the frame
    log_p = np.asarray(jax.nn.log_softmax(x[i, :length]), np.float64)
    posterior = np.zeros_like(log_p)
    for path in itertools.product(range(VOCABULARY), repeat=length):
      if collapse(path) == text:
        posterior[range(length), path] += np.exp(log_p[range(length), path].sum() + brute_force(log_p, text))
    expected = np.exp(log_p) - posterior if FIT[i] else np.zeros_like(log_p)
    np.testing.assert_allclose(gradient[i, :length], expected, atol=1e-5)
    assert not gradient[i, length:].any()


def test_a_batch_of_texts_that_all_do_not_fit_has_no_loss():
  tokens, count = batch(((1, 1, 1), (2, 1, 2)))
  value, gradient = value_and_grad(lambda x: text_losses.ctc(x, jnp.array([2, 1]), tokens, count)[0].mean())(logits(2))
  assert value == 0 and not np.any(gradient)


def test_extreme_logits_give_finite_losses_and_gradients():
  tokens, count = batch()
  x = logits().at[0].multiply(1e4).at[2].set(0.0)
  value, gradient = value_and_grad(lambda x: text_losses.ctc(x, jnp.asarray(FRAMES), tokens, count)[0].mean())(x)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_ctc_and_label_smoothing_agree_with_torch():
  torch = pytest.importorskip("torch")
  draw = np.random.default_rng(1)
  texts = [tuple(draw.integers(1, 6, n)) for n in (0, 1, 7, 12, 20, 3)]
  frames = np.array([30, 30, 25, 30, 18, 3])
  tokens, count = batch(texts, width=20)
  x = np.asarray(logits(6, 30, 6))
  ours, gradient = value_and_grad(
    lambda x: text_losses.ctc(x, jnp.asarray(frames), tokens, count)[0].sum()
  )(jnp.asarray(x))  # fmt: skip
  leaf = torch.tensor(x, requires_grad=True)
  theirs = torch.nn.functional.ctc_loss(
    leaf.log_softmax(-1).transpose(0, 1), torch.tensor(np.asarray(tokens)), torch.tensor(frames),
    torch.tensor(np.asarray(count)), reduction="none", zero_infinity=True,
  )  # fmt: skip
  theirs.sum().backward()
  assert float(ours) == pytest.approx(theirs.sum().item(), rel=1e-5)
  np.testing.assert_allclose(gradient, leaf.grad, atol=1e-5)

  targets = draw.integers(0, 6, (6, 30))
  smooth = np.full((6, 30, 6), 0.1 / 5)
  np.put_along_axis(smooth, targets[..., None], 0.9, axis=-1)
  kl = torch.nn.functional.kl_div(torch.tensor(x).log_softmax(-1), torch.tensor(smooth).float(), reduction="none").sum(
    -1
  )
  expected = [kl[i, :n].sum().item() for i, n in enumerate(frames)]
  got = text_losses.label_smoothed(jnp.asarray(x), jnp.asarray(targets), jnp.asarray(frames), smoothing=0.1)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_without_smoothing_the_decoder_has_plain_cross_entropy():
  x, targets = logits(1, 3), jnp.array([[0, 2, 1]])
  got = text_losses.label_smoothed(x, targets, jnp.array([2]), smoothing=0.0)
  log_p = jax.nn.log_softmax(x)[0]
  assert got[0] == pytest.approx(-float(log_p[0, 0] + log_p[1, 2]), rel=1e-5)


def test_the_decoder_reads_the_text_shifted_by_one():
  tokens, count = jnp.array([[4, 5, 6], [7, 0, 0]]), jnp.array([3, 1])
  previous, following = text_losses.previous_and_next(tokens, count, end=9)
  assert previous.tolist() == [[9, 4, 5, 6], [9, 7, 9, 9]]
  assert following.tolist() == [[4, 5, 6, 9], [7, 9, 9, 9]]


def test_the_hybrid_is_the_weighted_mean_and_a_text_that_does_not_fit_trains_the_decoder_alone():
  tokens, count = batch()
  x, frames, y = logits(), jnp.asarray(FRAMES), logits(len(TEXTS), WIDTH + 1)
  run = lambda weight, y=y: text_losses.hybrid(
    x, frames, y, tokens, count, end=VOCABULARY - 1, ctc_weight=weight, smoothing=0.1
  )
  out = run(0.3)
  ctc, _ = text_losses.ctc(x, frames, tokens, count)
  assert out.ctc == pytest.approx(float(ctc[np.array([0, 2, 3, 4])].mean()), rel=1e-6)  # of those with a text
  assert out.loss == pytest.approx(0.3 * float(out.ctc) + 0.7 * float(out.attention), rel=1e-6)
  assert out.unalignable == pytest.approx(2 / 4)
  gradient = jax.grad(lambda y: run(0.3, y).loss)(y)
  assert np.abs(gradient[3]).max() > 0  # does not fit CTC
  assert not np.any(gradient[1])  # has no text
  nothing = text_losses.hybrid(x, frames, y, tokens, 0 * count, end=2, ctc_weight=0.3, smoothing=0.1)
  assert nothing.loss == 0 and nothing.accuracy == 0
  _, following = text_losses.previous_and_next(tokens, count, end=VOCABULARY - 1)
  perfect = run(0.3, 50.0 * jax.nn.one_hot(following, VOCABULARY))
  assert perfect.accuracy == 1


def test_the_labels_of_frames_bound_the_ctc_loss_of_the_text_they_read_as():
  x, frames = logits()[:1], jnp.array([4])
  log_p = jax.nn.log_softmax(x)
  labels = jnp.pad(jnp.array([[1, 0, 2, 2]]), ((0, 0), (0, x.shape[1] - 4)), constant_values=1)
  found = text_losses.framewise(log_p, frames, labels)
  assert found == pytest.approx(-float(log_p[0, np.arange(4), labels[0, :4]].sum()), rel=1e-5)
  whole, _ = text_losses.ctc(x, frames, jnp.array([[1, 2]]), jnp.array([2]))
  assert found >= whole[0]
  unknown = jnp.concatenate([labels.at[0, 1:].set(-1), jnp.full_like(labels, -1)])
  both = text_losses.framewise(jnp.repeat(log_p, 2, axis=0), jnp.array([4, 4]), unknown)
  assert both == pytest.approx(-float(log_p[0, 0, 1]), rel=1e-5)  # of the example with a known frame, that frame
