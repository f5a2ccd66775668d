"""One linear layer on frozen features, fitted in full batch by L-BFGS; the strength of L2 is chosen on held-out clips.

The logits of a video are the mean of the logits of its sampled rows. A mean of linear maps is the linear map of the
mean, so a clip takes part in the fit as the mean of its sampled features [D], whatever its length.

    loss = mean over clips of the cross-entropy (softmax; or the sum over labels of the binary one) + l2 / 2 |kernel|²

in features of zero mean and unit variance. It is convex; with C = 1 / (l2 N) it is the loss of scikit-learn's
LogisticRegression, one a label for several labels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from synclipmae_jax.types import InputError

STRENGTHS = tuple(10.0 ** np.arange(0.0, -5.5, -0.5))  # from strong to weak: each fit starts from the one before
STEPS = 500  # of L-BFGS, at most
TOLERANCE = 1e-4  # of the gradient's largest entry
LEAST = 2  # clips that a class needs


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe:
  """Features -> logits. `several`: every class is a label of its own; otherwise one class holds."""

  kernel: np.ndarray  # float32 [D, C]
  bias: np.ndarray  # float32 [C]
  classes: tuple[str, ...]
  several: bool

  def logits(self, features: np.ndarray) -> np.ndarray:
    """float [..., D] -> float32 [..., C]."""
    return features.astype(np.float32) @ self.kernel + self.bias

  def probabilities(self, logits: np.ndarray) -> np.ndarray:
    """[..., C] -> [..., C] in 0..1; they sum to 1 unless `several`."""
    if self.several:
      return 0.5 * (1 + np.tanh(logits / 2))
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
  """A probe, the chosen strength of L2, and the held-out loss of every strength."""

  probe: LinearProbe
  l2: float
  held_out_loss: dict[float, float]


def check_targets(targets: np.ndarray, classes: Sequence[str], *, several: bool) -> None:
  """Raises InputError for labels [N, C] that no probe can be fitted on."""
  count = targets.sum(axis=0)
  if len(classes) < 2 - several:
    raise InputError(f"a probe needs at least {2 - several} classes, not {', '.join(classes) or 'none'}")
  for name, positive in zip(classes, count.tolist(), strict=True):
    if positive < LEAST:
      examples = "one training clip" if positive == 1 else "no training clip"
      raise InputError(
        f"the class {name!r} has {examples}, a probe needs {LEAST}: give more clips, or leave the class out with"
        f" --config.data.leave_out=\"('{name}',)\""
      )
    if several and len(targets) - positive < LEAST:
      raise InputError(
        f"the label {name!r} holds in all training clips but {len(targets) - positive}: nothing can be learned of it;"
        f" leave it out with --config.data.leave_out=\"('{name}',)\""
      )


def fit(
  features: np.ndarray,
  targets: np.ndarray,
  held_out: np.ndarray,
  classes: Sequence[str],
  *,
  several: bool,
  strengths: Sequence[float] = STRENGTHS,
) -> Fitted:
  """A probe of clips [N, D] with labels bool [N, C], fitted on all of them.

  Of the `strengths` of L2, tried from the first to the last, the one is taken with the smallest loss on the clips
  `held_out`, bool [N], after a fit on the others. Raises InputError for features that are not finite and for labels
  that no probe can be fitted on.
  """
  features, targets = np.asarray(features, np.float32), np.asarray(targets, bool)
  if not np.isfinite(features).all():
    bad = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
    raise InputError(f"the features of clip {bad} are not finite (NaN or infinite): no probe is fitted")
  check_targets(targets, classes, several=several)
  strengths = sorted({float(strength) for strength in strengths}, reverse=True)
  if not strengths or strengths[-1] <= 0:
    raise InputError(f"the strengths of L2 are positive numbers, not {tuple(strengths)}")
  mean, scale = features.mean(axis=0), features.std(axis=0)
  scale = np.where(scale > 1e-6 * np.abs(mean) + 1e-12, scale, 1.0)  # a constant feature stays 0
  inputs = jnp.asarray((features - mean) / scale)
  labels = jnp.asarray(targets, jnp.float32)
  losses: dict[float, float] = {}
  if len(strengths) > 1:
    if held_out.all() or not held_out.any():
      raise InputError("the strength of L2 is chosen on held-out clips: there must be some, and some others")
    fitted_on = jnp.asarray(~held_out, jnp.float32)
    params = _start(features.shape[1], len(classes))
    for strength in strengths:
      params = _minimise(params, inputs, labels, fitted_on, strength, several=several)
      losses[strength] = float(_loss(params, inputs, labels, 1 - fitted_on, 0.0, several=several))
  chosen = min(losses, key=losses.__getitem__) if losses else strengths[0]
  params = _start(features.shape[1], len(classes))
  params = _minimise(params, inputs, labels, jnp.ones(len(features)), chosen, several=several)
  kernel = np.asarray(params["kernel"]) / scale[:, None]
  bias = np.asarray(params["bias"]) - mean @ kernel
  probe = LinearProbe(
    kernel=kernel.astype(np.float32), bias=bias.astype(np.float32), classes=tuple(classes), several=several
  )
  return Fitted(probe=probe, l2=chosen, held_out_loss=losses)


def _start(width: int, classes: int) -> dict[str, jax.Array]:
  return {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}


def _loss(params, inputs, labels, weights, l2, *, several: bool) -> jax.Array:
  logits = inputs @ params["kernel"] + params["bias"]
  if several:
    each = optax.sigmoid_binary_cross_entropy(logits, labels).sum(-1)
  else:
    each = optax.softmax_cross_entropy(logits, labels)
  return (weights * each).sum() / weights.sum() + l2 / 2 * jnp.square(params["kernel"]).sum()


@functools.partial(jax.jit, static_argnames="several")
def _minimise(params, inputs, labels, weights, l2, *, several: bool):
  """The parameters of the smallest loss."""
  loss = lambda tree: _loss(tree, inputs, labels, weights, l2, several=several)
  solver = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(loss)

  def step(carry):
    tree, state, count, _ = carry
    value, grad = value_and_grad(tree, state=state)
    updates, state = solver.update(grad, state, tree, value=value, grad=grad, value_fn=loss)
    largest = functools.reduce(jnp.maximum, [jnp.abs(leaf).max() for leaf in jax.tree.leaves(grad)])
    return optax.apply_updates(tree, updates), state, count + 1, largest

  unfinished = lambda carry: (carry[2] < STEPS) & (carry[3] > TOLERANCE)
  return jax.lax.while_loop(unfinished, step, (params, solver.init(params), 0, jnp.inf))[0]
