"""What a graph is fed with while it is timed: real examples, or noise of the shapes of its inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from quantizer_core.errors import ConfigError, DataError, nearest
from quantizer_core.runtime import aligned
from quantizer_core.types import TensorSpec

Feeds = dict[str, np.ndarray]


def with_shapes(inputs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]]) -> tuple[TensorSpec, ...]:
    """Returns the inputs with the shape of one example filled in where the user gives it.

    Args:
      inputs: the graph's inputs.
      shapes: input → shape of one example, without the batch dimension.

    Raises:
      ConfigError: if a name is no input, or a shape contradicts the graph's; the input is named.
    """
    known = {spec.name: spec for spec in inputs}
    for name, given in shapes.items():
        if name not in known:
            raise ConfigError(f"--shape: the graph has no input {name!r}{nearest(name, known)}")
        spec = known[name]
        batch = (spec.batch or -1,) if spec.has_batch or spec.shape is None else ()
        shape = (*batch, *given)
        if not tf.TensorShape(_or_none(spec.shape)).is_compatible_with(_or_none(shape)):
            raise ConfigError(
                f"--shape: one example of {name!r} has shape {_text(spec.shape)} in the graph, not {_text(shape)}"
            )
        known[name] = dataclasses.replace(spec, shape=shape)
    return tuple(known.values())


def _or_none(shape: Sequence[int] | None) -> list[int | None] | None:
    return None if shape is None else [None if size < 0 else size for size in shape]


def _text(shape: Sequence[int] | None) -> str:
    return "of any rank" if shape is None else "[" + ", ".join("?" if size < 0 else str(size) for size in shape) + "]"


def noise(inputs: Sequence[TensorSpec], seed: int = 0) -> Feeds:
    """Returns one example of noise: numbers in [0, 1), integers in [0, 255], False.

    Returns:
      Input → array without the batch dimension.

    Raises:
      ConfigError: if an input has an unknown dimension besides the batch, or takes strings.
    """
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in inputs:
        shape = spec.shape[1:] if spec.shape is not None and spec.has_batch else spec.shape
        if spec.dtype == "string":
            raise ConfigError(f"the input {spec.name!r} takes strings, which noise is not: name examples with --data")
        if shape is None or min(shape, default=0) < 0:
            raise ConfigError(
                f"the shape of the input {spec.name!r} is {_text(spec.shape)}: say what one example has, for instance "
                f"--shape {spec.name}=300,300,3, or name examples with --data"
            )
        dtype = tf.as_dtype(spec.dtype).as_numpy_dtype
        if np.issubdtype(dtype, np.integer):
            feeds[spec.name] = rng.integers(0, min(255, np.iinfo(dtype).max), shape, endpoint=True).astype(dtype)
        elif dtype is np.bool_:
            feeds[spec.name] = np.zeros(shape, bool)
        else:
            feeds[spec.name] = rng.random(shape).astype(dtype)
    return feeds


def save_feeds(feeds: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes one step's feeds, strings too, into a file.

    Raises:
      ConfigError: if they take more than the 2 GB of a message.
    """
    if sum(np.asarray(value).nbytes for value in feeds.values()) >= 1 << 31:
        raise ConfigError("one step's inputs take 2 GB and more: choose a smaller batch")
    features = {name: tf.make_tensor_proto(value).SerializeToString() for name, value in feeds.items()}
    bytes_lists = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v])) for name, v in features.items()}
    path.write_bytes(tf.train.Example(features=tf.train.Features(feature=bytes_lists)).SerializeToString())


def load_feeds(path: Path) -> Feeds:
    """Reads what ``save_feeds`` wrote, into memory that TensorFlow need not copy at each step.

    Raises:
      DataError: if the file holds anything else.
    """
    example = tf.train.Example()
    feeds = {}
    try:
        example.ParseFromString(path.read_bytes())
        for name, feature in example.features.feature.items():
            value = tf.make_ndarray(tensor_pb2.TensorProto.FromString(feature.bytes_list.value[0]))
            feeds[name] = aligned(value.shape, value.dtype)
            feeds[name][...] = value
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise DataError(f"{path} holds no feeds: {error}") from None
    return feeds
