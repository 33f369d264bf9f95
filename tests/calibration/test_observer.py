"""What the observer sees: against NumPy on small graphs, and the same bits in any order on real ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from quantizer_core.calibration import observer as observer_module
from quantizer_core.calibration.observer import SAMPLE_SIZE, Observer
from quantizer_core.calibration.statistics import CalibrationStatistics
from quantizer_core.errors import DataError, GraphError, UnknownNodeError
from quantizer_core.graph.files import load_graph
from quantizer_core.graph.summarize import input_specs
from quantizer_core.types import ObservedTensor, PreparedGraph, TensorSpec


def prepared(
    graph_def: tf.GraphDef, shape: tuple[int, ...] | None, *observed: ObservedTensor, dtype: str = "float32"
) -> PreparedGraph:
    return PreparedGraph(graph_def, (TensorSpec("x", dtype, shape),), ("y",), observed, ())


def identity(*shape: int | None) -> tf.GraphDef:
    with tf.Graph().as_default() as graph:
        tf.identity(tf.placeholder(tf.float32, shape, name="x"), name="y")
    return graph.as_graph_def()


def feeds(values: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    return [{"x": np.asarray(value, np.float32)} for value in values]


def observe(graph: PreparedGraph, examples: list[dict[str, np.ndarray]], batch: int = 4) -> CalibrationStatistics:
    with Observer(graph, batch) as observer:
        return observer.observe(examples)


@pytest.mark.parametrize("count", [1, 4, 6])
@pytest.mark.parametrize("axis", [-1, 1, 3])
def test_small_tensors_are_counted_value_by_value(count: int, axis: int) -> None:
    values = np.random.default_rng(0).normal(size=(count, 5, 6, 3)).astype(np.float32)
    stats = observe(prepared(identity(None, 5, 6, 3), (-1, 5, 6, 3), ObservedTensor("y", axis)), feeds(values)).tensors[
        "y"
    ]
    keys, counts = np.unique(values.view(np.uint32) >> 16, return_counts=True)
    np.testing.assert_array_equal(stats.keys, keys)
    np.testing.assert_array_equal(stats.counts, counts)
    assert (stats.minimum, stats.maximum) == (values.min(), values.max())
    np.testing.assert_allclose(
        stats.mean_extremes(), [values.min((1, 2, 3)).mean(), values.max((1, 2, 3)).mean()], rtol=1e-6
    )
    others = tuple(i for i in range(4) if i != axis % 4)
    np.testing.assert_allclose(stats.channel_means(), values.mean(others), atol=1e-6)
    np.testing.assert_array_equal(stats.channel_extremes, [values.min(others), values.max(others)])
    assert stats.examples == stats.finite == count


def test_padding_is_not_counted() -> None:
    graph = prepared(identity(None, 2), (-1, 2), ObservedTensor("y", -1))
    examples = feeds([[1, 2], [3, 4], [5, 6]])
    assert observe(graph, examples, batch=16) == observe(graph, examples, batch=3)


@pytest.mark.parametrize(("shape", "axis"), [((40, 40, 24), -1), ((24, 40, 40), 1), ((40_000,), None), ((64, 999), -1)])
def test_large_tensors_are_sampled_evenly_but_their_extremes_are_exact(
    shape: tuple[int, ...], axis: int | None
) -> None:
    values = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    # Each channel has a level of its own, so a sample that leaves some out would show.
    channel = 1 if axis == 1 else values.ndim - 1
    count = values.shape[channel]
    values += (1000 * np.arange(count) / count).reshape([-1 if i == channel else 1 for i in range(values.ndim)])
    values.reshape(-1)[[5, -5]] = [-1e6, 1e6]
    stats = observe(prepared(identity(None, *shape), (-1, *shape), ObservedTensor("y", axis)), feeds(values)).tensors[
        "y"
    ]
    assert (stats.minimum, stats.maximum) == (-1e6, 1e6)
    assert 3 * SAMPLE_SIZE / 2 < stats.count <= 3 * SAMPLE_SIZE
    centres = (stats.keys.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    inside = np.abs(centres) < 1e5
    mean = np.average(centres[inside], weights=stats.counts[inside])
    assert mean == pytest.approx(np.median(values), rel=0.03)


def test_shapes_known_only_at_run_time_are_sampled_too() -> None:
    graph = prepared(identity(None, None, None, 2), (-1, -1, -1, 2), ObservedTensor("y", -1))
    small, large = np.ones((3, 5, 2)), np.ones((80, 90, 2))
    stats = observe(graph, feeds([small, small]), batch=2).merge(observe(graph, feeds([large]), batch=2)).tensors["y"]
    assert stats.examples == 3
    assert 60 + SAMPLE_SIZE / 2 < stats.count <= 60 + SAMPLE_SIZE


@pytest.mark.parametrize("channels", [3, 6, 24])
def test_all_channels_are_sampled_where_the_step_could_be_a_multiple_of_three(channels: int) -> None:
    """480×640×3 values make steps of 225: each would meet the first channel."""
    graph = prepared(identity(None, None, None, channels), (-1, -1, -1, channels), ObservedTensor("y", -1))
    image = np.zeros((480, 640 * 3 // channels, channels), np.float32) + 2.0 ** np.arange(channels)
    stats = observe(graph, feeds([image]), batch=2).tensors["y"]
    assert len(stats.keys) == channels


def test_a_graph_that_fixes_batch_one_runs_one_by_one() -> None:
    graph = prepared(identity(1, 3), (1, 3), ObservedTensor("y", -1))
    with Observer(graph, 16) as observer:
        assert observer.batch_size == 1
        stats = observer.observe(feeds([[1, 2, 3], [4, 5, 6]])).tensors["y"]
    assert (stats.minimum, stats.maximum, stats.examples) == (1, 6, 2)
    np.testing.assert_allclose(stats.channel_means(), [2.5, 3.5, 4.5])


def test_a_tensor_that_folds_the_batch_is_seen_whole() -> None:
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, 4, 3], name="x")
        tf.reshape(x, [-1, 3], name="y")
    values = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    with Observer(prepared(graph.as_graph_def(), (-1, 4, 3), ObservedTensor("y", -1)), 16) as observer:
        assert observer.batch_size == 1
        stats = observer.observe(feeds(values)).tensors["y"]
    assert (stats.examples, stats.count) == (2, 24)
    assert stats.mean_extremes() == (6.0, 17.0)
    np.testing.assert_allclose(stats.channel_means(), values.mean((0, 1)))
    np.testing.assert_array_equal(stats.channel_extremes, [values.min((0, 1)), values.max((0, 1))])


@pytest.mark.parametrize(
    ("value", "field"), [(np.nan, "nan"), (np.inf, "positive_infinite"), (-np.inf, "negative_infinite")]
)
@pytest.mark.parametrize("position", [0, 7, 70_000])
def test_one_value_that_is_no_number_is_found_in_any_place(value: float, field: str, position: int) -> None:
    values = np.random.default_rng(0).normal(size=(3, 70_001)).astype(np.float32)
    values[1, position] = value
    graph = prepared(identity(None, 70_001), (-1, 70_001), ObservedTensor("y", -1))
    stats = observe(graph, feeds(values)).tensors["y"]
    assert {name: getattr(stats, name) for name in ("nan", "positive_infinite", "negative_infinite")} == {
        "nan": 0, "positive_infinite": 0, "negative_infinite": 0, field: 1,
    }  # fmt: skip
    assert stats.finite == 2
    assert stats == observe(graph, feeds(values[[0, 2]])).tensors["y"].merge(
        observe(graph, feeds(values[[1]])).tensors["y"]
    )
    kept = values[[0, 2]]
    assert (stats.minimum, stats.maximum) == (kept.min(), kept.max())


def test_minus_zero_does_not_depend_on_order() -> None:
    graph = prepared(identity(None, 1), (-1, 1), ObservedTensor("y", -1))
    examples = feeds([[0.0], [-0.0]])
    found = observe(graph, examples, 1)
    assert found.to_bytes() == observe(graph, examples[::-1], 1).to_bytes()
    assert (found.tensors["y"].keys.tolist(), found.tensors["y"].counts.tolist()) == ([0], [2])


def test_steps_wait_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = prepared(identity(None, 50), (-1, 50), ObservedTensor("y", -1))
    values = np.random.default_rng(0).normal(size=(40, 50))
    values[17, 3], values[30, 8] = np.nan, np.inf
    examples = feeds(values)
    expected = observe(graph, examples)
    assert (expected.tensors["y"].finite, expected.tensors["y"].counts.sum()) == (38, 38 * 50)
    monkeypatch.setattr(observer_module, "_PENDING_VALUES", 300)
    with Observer(graph, 4) as observer:
        for start in range(0, 40, 4):
            observer.add(examples[start : start + 4])
            assert observer._pending_values < 300
        assert observer.take() == expected
        assert observer.take() == CalibrationStatistics()


def test_forks_share_the_session_and_nothing_else() -> None:
    graph = prepared(identity(None, 2), (-1, 2), ObservedTensor("y", -1))
    with Observer(graph, 2) as observer:
        other = observer.fork()
        observer.add(feeds([[1, 2]]))
        other.add(feeds([[3, 4]]))
        assert observer.take().tensors["y"].maximum == 2
        assert other.take().tensors["y"].minimum == 3


def test_errors_name_the_tensor() -> None:
    graph_def = identity(None, 2)
    with pytest.raises(UnknownNodeError, match="'z'"):
        Observer(prepared(graph_def, (-1, 2), ObservedTensor("z")), 2)
    with pytest.raises(GraphError, match="'y' of rank 2 has no channel axis 3"):
        Observer(prepared(graph_def, (-1, 2), ObservedTensor("y", 3)), 2)
    with pytest.raises(GraphError, match="axis 0 of tensor 'y' holds the examples"):
        Observer(prepared(graph_def, (-1, 2), ObservedTensor("y", 0)), 2)
    with tf.Graph().as_default() as graph:
        tf.identity(tf.placeholder(tf.int32, [None, 2], name="x"), name="y")
    with pytest.raises(GraphError, match="'y' is int32"):
        Observer(prepared(graph.as_graph_def(), (-1, 2), ObservedTensor("y"), dtype="int32"), 2)


def test_a_batch_that_fails_adds_nothing() -> None:
    with Observer(prepared(identity(None, 2), (-1, 2), ObservedTensor("y", -1)), 2) as observer:
        observer.add(feeds([[1, 2]]))
        with pytest.raises(DataError):
            observer.add(feeds([[1, 2, 3]]))
        assert observer.take().num_examples == 1


def real(shared_data: Path, file: str, size: int, count: int) -> tuple[PreparedGraph, list[dict[str, np.ndarray]]]:
    """Returns a real graph in which all activations are watched, and smooth pictures with noise to run it on."""
    graph_def = load_graph(str(shared_data / "graphs" / file))
    watched = ("Relu", "Relu6", "BiasAdd", "AddV2", "MaxPool", "MatMul", "FusedBatchNormV3")
    observed = [ObservedTensor(node.name, -1) for node in graph_def.node if node.op in watched]
    specs = input_specs(graph_def, ["input"])
    observed = [tensor for tensor in observed if "batchnorm" not in tensor.name.lower()]
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(count, 8, 8, 3))
    images = np.repeat(np.repeat(coarse, size // 8, 1), size // 8, 2) + 0.1 * rng.normal(size=(count, size, size, 3))
    examples = [{"input": image.astype(np.float32)} for image in images]
    return PreparedGraph(graph_def, specs, ("none",), tuple(observed), ()), examples


@pytest.mark.parametrize(
    ("file", "size", "count"),
    [("cifar10_resnet20.pb", 32, 22), ("mobilenet_v1_0.25_224_frozen.pb", 224, 7), ("squeezenet1.1.pb", 224, 6)],
)
def test_order_sharding_and_slot_leave_no_trace_on_real_graphs(
    shared_data: Path, file: str, size: int, count: int
) -> None:
    graph, examples = real(shared_data, file, size, count)
    with Observer(graph, 4) as observer:
        whole = observer.observe(examples)
        assert len(whole.tensors) > 10 and whole.num_examples == count
        shuffled = examples[:]
        random.Random(1).shuffle(shuffled)
        assert observer.observe(shuffled).to_bytes() == whole.to_bytes()
        shards = [observer.observe(shuffled[i::3]) for i in range(3)]
        assert shards[2].merge(shards[0]).merge(shards[1]).to_bytes() == whole.to_bytes()
        alone = CalibrationStatistics()
        for example in examples:  # each in slot 0, its copies beside it
            alone = alone.merge(observer.observe([example]))
        assert alone.to_bytes() == whole.to_bytes()


@pytest.mark.parametrize("axis", [None, -1])
def test_of_a_tensor_that_cannot_be_negative_zero_bounds_the_minima(axis: int | None) -> None:
    values = np.abs(np.random.default_rng(0).normal(size=(5, 60, 60, 3))).astype(np.float32) + np.float32(0.5)
    values[3, 7, 7, 1] = 0.25
    known = observe(prepared(identity(None, 60, 60, 3), (-1, 60, 60, 3), ObservedTensor("y", axis)), feeds(values))
    watched = ObservedTensor("y", axis, nonnegative=True)
    found = observe(prepared(identity(None, 60, 60, 3), (-1, 60, 60, 3), watched), feeds(values)).tensors["y"]
    exact = known.tensors["y"]
    assert found.maximum == exact.maximum == values.max()
    assert (exact.minimum, found.minimum) == (0.25, 0)
    np.testing.assert_array_equal(found.counts, exact.counts)
    if axis is not None:
        assert found.channel_extremes is not None and exact.channel_extremes is not None
        np.testing.assert_array_equal(found.channel_extremes[0], np.zeros(3))
        np.testing.assert_array_equal(found.channel_extremes[1], exact.channel_extremes[1])
        np.testing.assert_array_equal(found.channel_means(), exact.channel_means())


@pytest.mark.parametrize(("value", "field"), [(np.nan, "nan"), (np.inf, "positive_infinite")])
@pytest.mark.parametrize("position", [0, 4000, 10799])
def test_no_number_goes_unseen_where_minima_are_not_looked_for(value: float, field: str, position: int) -> None:
    values = np.ones((3, 60, 60, 3), np.float32)
    values[1].reshape(-1)[position] = value
    watched = ObservedTensor("y", -1, nonnegative=True)
    stats = observe(prepared(identity(None, 60, 60, 3), (-1, 60, 60, 3), watched), feeds(values)).tensors["y"]
    assert getattr(stats, field) == 1 and stats.finite == 2


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((0, 5, 3), -1), ((4, 5, 0), -1), ((0, 5, 3), None)])
def test_a_tensor_without_values_has_no_range(shape: tuple[int, ...], axis: int | None, nonnegative: bool) -> None:
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, (None, 6), name="x")
        tf.zeros([tf.shape(x)[0], *shape], name="none")
        tf.identity(x, name="y")
    watched = ObservedTensor("none", axis, nonnegative), ObservedTensor("y", -1)
    data = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    found = observe(prepared(graph.as_graph_def(), (-1, 6), *watched), feeds(data)).tensors
    assert found["none"].finite == found["none"].nan == found["none"].counts.sum() == 0
    np.testing.assert_array_equal(found["y"].channel_extremes, [data.min(0), data.max(0)])
    assert (found["y"].minimum, found["y"].maximum) == (data.min(), data.max())
