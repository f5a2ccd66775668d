"""The checker that the tests put behind every function of the package: shapes and dtypes of jaxtyping's annotations.

Other annotations are left to the static type checker: a wrong literal must reach the code that refuses it.
"""

import inspect
from collections.abc import Callable
from typing import get_args

from beartype import beartype
from jaxtyping import AbstractArray


def check_shapes(function: Callable) -> Callable:
  """`function`, checked at every call for the annotations that name a shape."""
  function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if _names_a_shape(hint)}
  return beartype(function)


def _names_a_shape(hint) -> bool:
  return (inspect.isclass(hint) and issubclass(hint, AbstractArray)) or any(map(_names_a_shape, get_args(hint)))
