"""Preprocessing kind ``tensors``: each graph input is read from a feature of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from quantizer_core.config import PreprocessConfig
from quantizer_core.errors import ConfigError, nearest
from quantizer_core.preprocessing.features import NUMERIC, FeatureTable, shape_feature
from quantizer_core.types import TensorSpec


def feature_names(config: PreprocessConfig, inputs: Sequence[TensorSpec]) -> dict[str, str]:
    """Returns the feature that each graph input is read from.

    Raises:
      ConfigError: if ``config.features`` names an input that the graph does not have.
    """
    names = [spec.name for spec in inputs]
    for name in config.features:
        if name not in names:
            raise ConfigError(f"preprocess features names {name!r}, which is no graph input{nearest(name, names)}")
    return {name: config.features.get(name, name) for name in names}


def example_shape(spec: TensorSpec) -> tuple[int, ...] | None:
    """Returns an example's shape for a graph input: without the batch dimension; None where the rank is unknown.

    An input that has none (a scalar, say) takes the example's value as it is.
    """
    return spec.shape[1:] if spec.shape is not None and spec.has_batch else spec.shape


def open_shape(shape: tuple[int, ...] | None) -> list[int | None] | None:
    """Returns a shape as TensorFlow takes it, which spells an unknown dimension None and not -1."""
    return None if shape is None else [None if size < 0 else size for size in shape]


def shape_is_open(shape: tuple[int, ...] | None) -> bool:
    """Whether the number of values alone does not fix the shape (unknown rank, or two and more unknown dimensions)."""
    return shape is None or sum(size < 0 for size in shape) > 1


def build(config: PreprocessConfig, inputs: Sequence[TensorSpec]) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Returns the function from a serialized example (scalar string) to ``{input name: tensor without batch dim}``.

    An input with two or more unknown dimensions, or of unknown rank, takes its shape from the int64 feature
    ``<feature>/shape``; without it, an input of unknown rank must be a single value and becomes a scalar.

    Raises:
      ConfigError: if an input's dtype can not be read from features, or ``config.features`` names no input.
    """
    features = feature_names(config, inputs)
    for spec in inputs:
        if spec.dtype != "string" and tf.as_dtype(spec.dtype) not in NUMERIC:
            raise ConfigError(f"graph input {spec.name!r} is {spec.dtype}, which preprocess kind 'tensors' cannot read")

    def preprocess(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        table = FeatureTable(serialized)
        return {spec.name: _tensor(table, features[spec.name], spec) for spec in inputs}

    return preprocess


def _tensor(table: FeatureTable, feature: str, spec: TensorSpec) -> tf.Tensor:
    values = table[feature].values(tf.as_dtype(spec.dtype), f"feature {feature!r}")
    shape = example_shape(spec)
    if not shape_is_open(shape):
        return tf.reshape(values, shape)
    stored = table[shape_feature(feature)].ints
    tensor = tf.reshape(values, tf.cast(stored, tf.int32))
    # The stored shape has to agree with what the graph does fix.
    return tf.ensure_shape(tensor, open_shape(shape))
