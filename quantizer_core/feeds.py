"""Batches as a session is fed them, as single examples, and these as records that calibration reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from quantizer_core.data.examples import tensor_example
from quantizer_core.errors import DataError
from quantizer_core.preprocessing.tensors import example_shape, shape_is_open
from quantizer_core.types import TensorSpec


def examples_of_batch(feeds: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec]) -> Iterator[dict[str, np.ndarray]]:
    """Yields the examples of a batch: input name → array without the batch dimension.

    Args:
      feeds: input name → array as a session takes it.
      inputs: the graph's inputs; one without a batch dimension gives every example its value as it is.

    Raises:
      DataError: if an input is missing, or two hold batches of different sizes.
    """
    values: dict[str, np.ndarray] = {}
    for spec in inputs:
        value = feeds.get(spec.name, feeds.get(f"{spec.name}:0"))
        if value is None:
            raise DataError(f"no value for the graph input {spec.name!r}; given: {', '.join(sorted(feeds)) or 'none'}")
        values[spec.name] = np.asarray(value, object if spec.dtype == "string" else _numpy_dtype(spec.dtype))
        if spec.has_batch and not values[spec.name].ndim:
            raise DataError(f"graph input {spec.name!r} takes a batch; its value has no dimension")
    sizes = {spec.name: len(values[spec.name]) for spec in inputs if spec.has_batch}
    if len(set(sizes.values())) > 1:
        raise DataError(f"the graph's inputs hold batches of different sizes: {sizes}")
    for index in range(next(iter(sizes.values()), 1)):
        yield {name: _at(value, index) if name in sizes else value for name, value in values.items()}


def example_of(example: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec]) -> bytes:
    """Returns an example as the serialized ``tf.Example`` that preprocess kind ``tensors`` reads back.

    Raises:
      DataError: if an input is of a dtype that it cannot hold.
    """
    return tensor_example(example, with_shapes=any(shape_is_open(example_shape(spec)) for spec in inputs))


def _at(value: np.ndarray, index: int) -> np.ndarray:
    # NumPy would cut bytes by themselves at their last zero byte.
    return np.array(value[index], value.dtype)


def _numpy_dtype(name: str) -> np.dtype:
    import tensorflow as tf

    return np.dtype(tf.as_dtype(name).as_numpy_dtype)
