"""Every kernel of random INT8 graphs within half a step of FP32, what stays float to the bit, and no signal ever."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from tests.helpers.plan_checks import Checked, WrongError, check_seed, converted

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("first", range(0, 32, 8))
def test_random_graphs_keep_to_half_a_step(first):
    for seed in range(first, first + 8):
        check_seed(seed)


@pytest.mark.parametrize("seed", [35, 46, 134, 207, 1325, 1964])
def test_graphs_that_were_wrong_once(seed):
    """Results read by a LeakyRelu alone clipped at zero; 1×1 filters with explicit pads over tensors with an offset; a
    Relu6 whose codes, fitted to its channels, reached beyond 6; a gate whose channels were cut short."""
    check_seed(seed)


SLOW, LONG = pytest.mark.slow, (pytest.mark.slow, pytest.mark.long)
#: Graphs of each of two processes; QUANTIZER_RANDOM_GRAPHS=500 checks a thousand in all.
RANDOM_GRAPHS = int(os.environ.get("QUANTIZER_RANDOM_GRAPHS", "75"))


@pytest.mark.slow
def test_many_random_graphs():
    """Two processes; each prints what it checked."""
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.plan_checks", str(first), str(RANDOM_GRAPHS)], cwd=ROOT, text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for first in (1000, 1500)
    ]  # fmt: skip
    ended = [child.communicate() for child in children]
    for child, (_, errors) in zip(children, ended, strict=True):
        assert child.returncode == 0, f"ended with {child.returncode}: {errors[-2000:]}"
    reports = [json.loads(out.splitlines()[-1]) for out, _ in ended]
    assert [report["wrong"] for report in reports] == [{}, {}]
    done = {key: sum(report["done"].get(key, 0) for report in reports) for key in reports[0]["done"]}
    assert done["graphs"] + done.get("none", 0) == 2 * RANDOM_GRAPHS and done["graphs"] > 1.9 * RANDOM_GRAPHS
    least = {"Conv2D": 3000, "Conv2D sum": 100, "DepthwiseConv2dNative": 50, "ConcatV2": 50, "MaxPool": 30,
             "AvgPool": 30, "MatMul": 500, "excluded": 200, "float": 2000, "range": 2000}  # fmt: skip
    fewest = {key: count * 2 * RANDOM_GRAPHS / 1000 for key, count in least.items()}
    assert {key: done[key] for key, count in fewest.items() if done[key] < count} == {}


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(first, marks=SLOW if first < 2 else LONG) for first in range(1, 9))]
)
def test_no_fetch_feed_or_batch_size_ends_the_process(first):
    """One graph in a process of its own: each float fed and each tensor fetched, on 0, 1 and 3 examples."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.plan_attack", str(first), "1"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["graphs"] == 1 and counts["runs"] > 100 and counts["errors"] < counts["runs"]


def _const(graph_def: graph_pb2.GraphDef, ending: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    node = next(n for n in graph_def.node if n.op == "Const" and n.name.endswith(ending))
    value = tf.make_ndarray(node.attr["value"].tensor)
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(change(value).astype(value.dtype)))


def _last_channel_of_the_bias(graph_def: graph_pb2.GraphDef) -> None:
    def change(bias: np.ndarray) -> np.ndarray:
        bias = bias.copy()
        bias[-1] += 0.05 * np.abs(bias).max() + 0.05
        return bias

    _const(graph_def, "/int8/bias", change)


def _range(graph_def: graph_pb2.GraphDef) -> None:
    """The upper limit of the first kernel's result is two per cent off."""
    kernel = next(n for n in graph_def.node if n.op == "_FusedQuantizedConv2D")
    _const(graph_def, kernel.input[-1], lambda limit: limit * 1.02)


def _weight_scale(graph_def: graph_pb2.GraphDef) -> None:
    kernel = next(n for n in graph_def.node if n.op == "_FusedQuantizedConv2D")
    _const(graph_def, kernel.input[6], lambda limit: limit * 1.02)


def _padding(graph_def: graph_pb2.GraphDef) -> None:
    kernel = next(n for n in graph_def.node if n.op == "_FusedQuantizedConv2D")
    kernel.attr["padding"].s = b"EXPLICIT"
    kernel.attr["explicit_paddings"].list.i[:] = [0, 0, 0, 2, 1, 1, 0, 0]


@pytest.mark.parametrize("spoil", [_last_channel_of_the_bias, _range, _weight_scale, _padding])
def test_a_spoilt_kernel_is_seen(spoil):
    """So small a defect in any one kernel's constants or attributes would not show in the outputs' error."""
    seen = tried = 0
    for seed in (0, 3, 4, 8, 12):
        _, conversion, config, data = converted(seed)
        Checked(conversion, config, data).check()
        try:
            spoil(conversion.graph_def)
        except StopIteration:
            continue
        tried += 1
        try:
            Checked(conversion, config, data).check()
        except WrongError:
            seen += 1
    assert tried >= 3 and seen == tried
