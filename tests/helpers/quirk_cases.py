"""Kernels of this TensorFlow used as the product never does; ``python -m tests.helpers.quirk_cases NAME`` runs a case
that may end its process, and prints ``survived`` if it did not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from quantizer_core.graph.graph import Graph
from quantizer_core.lowering import sums
from quantizer_core.lowering.conformance import ConvCase, average_error, convolution_error, new_graph, run
from quantizer_core.lowering.kernels import QINT8, QUINT8, Emitter, IntTensor
from quantizer_core.lowering.weights import QuantizedWeights, quantize_weights
from quantizer_core.runtime import GraphSession, has_vnni
from quantizer_core.types import TensorSpec

CHANNELS = 16


def raw_convolution(
    emitter: Emitter, source: IntTensor, weights: QuantizedWeights, fused_ops: Sequence[str], out_type: str,
    limit: float = 1.0, summand: IntTensor | None = None, kernel: str = "_FusedQuantizedConv2D", stride: int = 1,
) -> str:  # fmt: skip
    """Adds a fused convolution with zero bias as it is asked for, without the Emitter's checks; returns its name."""
    graph = emitter.graph
    device = [source.name, graph.add_const("w", weights.codes, tf.qint8)]
    kinds = [getattr(tf, source.dtype), tf.qint8]
    host = [*emitter.bounds(source), emitter.range_const(-weights.limits), emitter.range_const(weights.limits)]
    if "BiasAdd" in fused_ops:
        device.append(graph.add_const("b", np.zeros(weights.codes.shape[3], np.float32)))
        kinds.append(tf.float32)
    if summand is not None:
        device.append(summand.name)
        kinds.append(getattr(tf, summand.dtype))
        host.extend(emitter.bounds(summand))
    if "Requantize" in fused_ops:
        host.extend(emitter.bounds(IntTensor("", out_type, limit)))
    return graph.add_node(
        kernel, "raw", [*device, *host], Tdevice_inputs=kinds, Thost_inputs=[tf.float32] * len(host),
        Tdevice_outputs=[getattr(tf, out_type)], Thost_outputs=[tf.float32, tf.float32],
        Tinput=kinds[0], Tfilter=tf.qint8, Tbias=tf.float32, Tsummand=kinds[-1] if summand else getattr(tf, out_type),
        out_type=getattr(tf, out_type), data_format="NHWC", strides=[1, stride, stride, 1], padding="SAME",
        explicit_paddings=[], dilations=[1, 1, 1, 1], fused_ops=list(fused_ops),
    )  # fmt: skip


def identity() -> QuantizedWeights:
    """Returns the filter of a 1×1 convolution that hands its input on."""
    return quantize_weights(np.eye(CHANNELS, dtype=np.float32)[None, None])


def summed(summand_type: str, out_type: str, fused_ops: Sequence[str]) -> tuple[Graph, Emitter, str]:
    """Returns a graph x + x by a sum in a convolution, x of range 1 and the result of range 2, and its codes' name."""
    graph, emitter = new_graph(x=(2, 4, 4, CHANNELS))
    x = emitter.quantize("x", "q", QUINT8, 1.0)
    zeros = np.zeros(CHANNELS, np.float32)
    summand = emitter.convolution("Conv2D", "summand", x, identity(), zeros, dtype=summand_type, limit=1.0)
    return graph, emitter, raw_convolution(emitter, x, identity(), fused_ops, out_type, 2.0, summand)


FEEDS = {"x": np.linspace(0, 1, 2 * 4 * 4 * CHANNELS, dtype=np.float32).reshape(2, 4, 4, CHANNELS)}
PLAIN_SUM = ("BiasAdd", "Sum", "Relu", "Requantize")


def sum_with_signed_result() -> None:
    graph, emitter, name = summed(QUINT8, QINT8, PLAIN_SUM)
    run(graph, emitter.dequantize(IntTensor(name, QINT8, 2.0), "d"), FEEDS)


def sum_of_held_summand() -> None:
    graph, emitter, name = summed(QUINT8, QUINT8, PLAIN_SUM)
    for tensor in (name, "summand"):
        emitter.dequantize(IntTensor(tensor, QUINT8, 2.0), f"{tensor}_float")
    with tf.compat.v1.Session(graph=tf.Graph()) as session, session.graph.as_default():
        tf.graph_util.import_graph_def(graph.to_graph_def(), name="")
        session.run(["raw_float:0", "summand:0"], {"x:0": FEEDS["x"]})


def guard_that_the_optimizer_folds() -> None:
    """The guard of a sum over a constant, inlined: what ``sums.varies`` keeps from."""
    sums.varies = lambda graph, tensor: True
    graph, emitter = new_graph(x=(2, 4, 4, CHANNELS))
    fixed = emitter.quantize(graph.add_const("c", FEEDS["x"]), "fixed", QUINT8, 1.0)
    x = emitter.quantize("x", "q", QUINT8, 1.0)
    result = emitter.convolution(
        "Conv2D", "conv", x, identity(), np.zeros(CHANNELS), dtype=QUINT8, limit=2.0, relu=True, summand=fixed
    )
    run(graph, emitter.dequantize(result, "d"), FEEDS)


def strided_1x1_filters() -> None:
    """Prints for 8 and 16 channels how many runs give something else than most: as the kernel is, as emitted.

    A thread's memory is run over once an image: many small images make it happen soon, unless the machine has so much
    other work that the threads do not run at once. Those of 8 channels end with the third that is wrong.
    """
    rng = np.random.default_rng(0)
    shape = (256, 8, 8)
    for channels in (8, 16):
        weights = quantize_weights(rng.normal(size=(1, 1, channels, 8)).astype(np.float32), bits=7)
        graph, emitter = new_graph(x=(*shape, channels))
        x = emitter.quantize("x", "q", QUINT8, 1.0)
        name = raw_convolution(emitter, x, weights, ("BiasAdd", "Requantize"), QUINT8, 4.0, stride=2)
        emitted = emitter.convolution(
            "Conv2D", "emitted", x, weights, np.zeros(8), dtype=QUINT8, limit=4.0, strides=(1, 2, 2, 1)
        )
        results = (IntTensor(name, QUINT8, 4.0), emitted)
        names = [emitter.dequantize(result, f"{result.name}/float") for result in results]
        feeds = {"x": rng.random((*shape, channels), np.float32)}
        inputs = [TensorSpec("x", "float32", (*shape, channels))]
        odd = [0, 0]
        with GraphSession(graph.to_graph_def(), inputs, names) as session:
            usual = np.median([session.run(feeds)[1] for _ in range(3)], axis=0)
            for _ in range(2000 if channels == 8 else 200):
                found = session.run(feeds)
                odd = [count + (not np.array_equal(each, usual)) for count, each in zip(odd, found, strict=True)]
                if odd[0] == 3:
                    break
        sys.stdout.write(f"{odd[0]} {odd[1]}\n")


def depthwise_of_one_channel() -> None:
    for kernel in (1, 3):
        for source in (QUINT8, QINT8):
            case = ConvCase("DepthwiseConv2dNative", source, QUINT8, True, channels=1, kernel=kernel)
            sys.stdout.write(f"{convolution_error(case, 8 if has_vnni() else 7)}\n")


def depthwise_of_many_taps() -> None:
    """One of more than the kernel's code has room for."""
    sys.stdout.write(f"{average_error(QUINT8, QUINT8, (13, 13), 64)}\n")


def eight_bits() -> None:
    for source in (QUINT8, QINT8):
        sys.stdout.write(f"{convolution_error(ConvCase('Conv2D', source, QINT8), 8)}\n")
    sys.stdout.write(f"{convolution_error(ConvCase('DepthwiseConv2dNative', QUINT8, QINT8), 8)}\n")


def matmul_with_onednn_off() -> None:
    graph, emitter = new_graph(x=(2, 8))
    weights = quantize_weights(np.eye(8, dtype=np.float32))
    out = emitter.matmul("m", emitter.quantize("x", "q", QUINT8, 1.0), weights, np.zeros(8, np.float32))
    run(graph, out, {"x": np.ones((2, 8), np.float32)})


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    sys.stdout.write("survived\n")
