"""GELU, LayerNorm and dense layers in float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erf


def gelu(x):
  return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def layer_norm(x, p, epsilon=1e-5):
  x = x - x.mean(axis=-1, keepdims=True)
  return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def dense(x, p):
  return x @ p["kernel"] + p["bias"]
