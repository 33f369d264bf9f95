"""Random small FP32 graphs of everything that a plan decides about, in both layouts, from one seed each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.config import QuantizationConfig

#: Layers that follow one another at random.
LAYERS = ("conv", "pointwise", "strided", "dilated", "padded", "depthwise", "doubled", "pool", "average", "concat",
          "residual", "add_n", "shared", "projection", "float")  # fmt: skip
ACTIVATIONS = ("Relu", "Relu6", "LeakyRelu", "SiLU", "")


class PlanGraph:
    """One random graph: call ``make``.

    Attributes:
      nchw: its layout.
      excluded: names of the layers that are to stay FP32.
    """

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.nchw = bool(self.rng.integers(2))
        self.excluded: list[str] = []
        self._filters: dict[tuple[int, ...], tf.Tensor] = {}

    def make(self) -> tuple[graph_pb2.GraphDef, tuple[str, ...], QuantizationConfig]:
        """Returns the graph with input ``x`` (8×8 pixels), its outputs and the options to convert it with."""
        channels = int(self.rng.integers(2, 7))
        shape = [None, channels, 8, 8] if self.nchw else [None, 8, 8, channels]
        with tf.Graph().as_default() as graph:
            x = self.activate(self.conv(tf.placeholder(tf.float32, shape, name="x")))
            results = []
            for kind in self.rng.choice(LAYERS, int(self.rng.integers(2, 6))):
                x = getattr(self, str(kind))(x)
                if self.rng.random() < 0.15:
                    results.append(x)
            results.append(self.tail(x))
            names = tuple(dict.fromkeys(result.op.name for result in results))
        config = QuantizationConfig(
            only_faster=False,
            inputs=("x",), outputs=names, excluded_nodes=tuple(self.excluded), bias_correction=False,
            excluded_ops=("AvgPool",) if self.rng.random() < 0.1 else (),
            calibration_method=str(self.rng.choice(["minmax", "mse"])),
            per_channel=bool(self.rng.random() < 0.7), equalization=bool(self.rng.integers(2)),
            reduce_range=str(self.rng.choice(["auto", "on"])),
        )  # fmt: skip
        return graph.as_graph_def(), names, config

    # --- parts ----------------------------------------------------------------------------------------------------

    def channels(self, x: tf.Tensor) -> int:
        return int(x.shape[1 if self.nchw else 3])

    def values(self, *shape: int) -> tf.Tensor:
        fan_in = int(np.prod(shape[:-1])) if len(shape) > 1 else 4
        spread = self.rng.uniform(0.3, 2.0, size=shape[-1])  # channels of unlike size
        return tf.constant((self.rng.normal(size=shape) * spread / np.sqrt(fan_in)).astype(np.float32))

    def four(self, height: int, width: int | None = None) -> list[int]:
        pair = [height, height if width is None else width]
        return [1, 1, *pair] if self.nchw else [1, *pair, 1]

    @property
    def layout(self) -> str:
        return "NCHW" if self.nchw else "NHWC"

    def finish(self, y: tf.Tensor) -> tf.Tensor:
        """Adds a bias to most layers, and excludes some."""
        if self.rng.random() < 0.12:
            self.excluded.append(y.op.name)
        if self.rng.random() < 0.15:
            return y
        return tf.nn.bias_add(y, self.values(self.channels(y)), data_format=self.layout)

    def conv(self, x: tf.Tensor, outputs: int = 0, size: int = 3, stride: int = 1, dilation: int = 1,
             padding: str = "SAME", filters: tf.Tensor | None = None) -> tf.Tensor:  # fmt: skip
        if filters is None:
            filters = self.values(size, size, self.channels(x), outputs or int(self.rng.integers(2, 9)))
        return self.finish(tf.nn.conv2d(
            x, filters, self.four(stride), padding, data_format=self.layout, dilations=self.four(dilation)
        ))  # fmt: skip

    def activate(self, x: tf.Tensor, kind: str | None = None) -> tf.Tensor:
        kind = str(self.rng.choice(ACTIVATIONS)) if kind is None else kind
        if kind == "SiLU":
            return x * tf.sigmoid(x)
        if kind == "LeakyRelu":
            return tf.nn.leaky_relu(x, 0.1)
        return {"Relu": tf.nn.relu, "Relu6": tf.nn.relu6, "": lambda value: value}[kind](x)

    # --- layers ---------------------------------------------------------------------------------------------------

    def pointwise(self, x: tf.Tensor) -> tf.Tensor:
        return self.activate(self.conv(x, size=1, padding="VALID"))

    def strided(self, x: tf.Tensor) -> tf.Tensor:
        return self.activate(self.conv(x, size=int(self.rng.integers(2, 4)), stride=2))

    def dilated(self, x: tf.Tensor) -> tf.Tensor:
        return self.activate(self.conv(x, dilation=2))

    def padded(self, x: tf.Tensor) -> tf.Tensor:
        """A Pad of its own before a convolution that pads nothing, depthwise or not."""
        spatial = [[int(width) for width in pair] for pair in self.rng.integers(0, 3, (2, 2))]
        x = tf.pad(x, [[0, 0], [0, 0], *spatial] if self.nchw else [[0, 0], *spatial, [0, 0]])
        if self.rng.random() < 0.3:
            return self.activate(self.depthwise_conv(x, 1, "VALID", 1))
        return self.activate(self.conv(x, size=1 + int(self.rng.integers(0, 2)), padding="VALID"))

    def depthwise_conv(self, x: tf.Tensor, multiplier: int, padding: str, size: int = 3) -> tf.Tensor:
        filters = self.values(size, size, self.channels(x), multiplier)
        return self.finish(tf.nn.depthwise_conv2d_native(
            x, filters, self.four(1), padding, data_format=self.layout
        ))  # fmt: skip

    def depthwise(self, x: tf.Tensor) -> tf.Tensor:
        return self.activate(self.depthwise_conv(x, 1, "SAME"))

    def doubled(self, x: tf.Tensor) -> tf.Tensor:
        return self.activate(self.depthwise_conv(x, 2, "SAME"))

    def pool(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.max_pool(x, self.four(2), self.four(1), "SAME", data_format=self.layout)

    def average(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.avg_pool(x, self.four(2), self.four(1), "SAME", data_format=self.layout)

    def concat(self, x: tf.Tensor) -> tf.Tensor:
        parts = [self.activate(self.conv(x, size=1)), self.activate(self.conv(x)), x]
        return tf.concat(parts[: 2 + int(self.rng.integers(2))], 1 if self.nchw else 3)

    def _sum(self, x: tf.Tensor, add: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> tf.Tensor:
        y = self.conv(self.activate(self.conv(x)), self.channels(x))
        pair = (x, y) if self.rng.integers(2) else (y, x)
        return self.activate(add(*pair), str(self.rng.choice(["Relu", "Relu", "Relu6", "", "SiLU"])))

    def residual(self, x: tf.Tensor) -> tf.Tensor:
        return self._sum(x, tf.add)

    def add_n(self, x: tf.Tensor) -> tf.Tensor:
        return self._sum(x, lambda a, b: tf.add_n([a, b]))

    def projection(self, x: tf.Tensor) -> tf.Tensor:
        one = self.conv(x, 4, 1)
        return tf.nn.relu(one + self.conv(self.activate(self.conv(x, 4)), 4))

    def shared(self, x: tf.Tensor) -> tf.Tensor:
        """Two convolutions with one filter."""
        channels = self.channels(x)
        filters = self._filters.setdefault((channels,), self.values(3, 3, channels, channels))
        return self.activate(self.conv(self.activate(self.conv(x, filters=filters)), filters=filters))

    def float(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.elu(x) + 0.25

    def tail(self, x: tf.Tensor) -> tf.Tensor:
        if self.rng.random() < 0.4:
            return self.conv(x)
        x = tf.reduce_mean(x, [2, 3] if self.nchw else [1, 2])
        for units in (6, 4)[: 1 + int(self.rng.integers(2))]:
            x = tf.nn.relu(tf.matmul(x, self.values(int(x.shape[1]), units)) + self.values(units))
        return tf.matmul(x, self.values(int(x.shape[1]), 3)) + self.values(3)
