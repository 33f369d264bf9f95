"""GraphConverter, the Python API of 2020: its arguments and attributes, both ways of calibration, and what it keeps."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from quantizer_core import ConfigError, DataError, GraphConverter, GraphError, UnknownNodeError, load_graph, quantize
from quantizer_core.config import QuantizationConfig
from quantizer_core.data import tensor_example
from quantizer_core.graph.summarize import input_specs
from quantizer_core.runtime import GraphSession
from quantizer_core.stages import STAGES
from tests.helpers.nets import build, relative_error

SCRIPT = Path(__file__).resolve().parent / "helpers" / "run_graph.py"
DATA = np.random.default_rng(0).normal(size=(16, 12, 12, 8)).astype(np.float32)
GRAPH, (OUTPUT,) = build(
    lambda net, x: net.conv(net.depthwise(net.conv(x, 16, relu="relu6"), relu="relu"), 8, relu="relu"), seed=4
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.pb").write_bytes(GRAPH.SerializeToString())
    return tmp_path


def feeds() -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(DATA), 5):
        yield {"x:0" if start else "x": DATA[start : start + 5]}


def converter(folder: Path, **arguments: object) -> GraphConverter:
    made = GraphConverter(folder / "net.pb", arguments.pop("output_graph", None), **arguments)  # type: ignore[arg-type]
    made.calibration_feeds = feeds()
    made.only_faster = False
    return made


def result(path: Path) -> np.ndarray:
    graph_def = load_graph(path)
    with GraphSession(graph_def, input_specs(graph_def, ["x"]), [OUTPUT]) as session:
        return session.run({"x": DATA[:4]})[0]


def test_arguments_are_those_of_2020_and_attributes_too(folder: Path) -> None:
    given = inspect.signature(GraphConverter).parameters
    assert list(given) == [
        "input_graph", "output_graph", "inputs", "outputs", "excluded_ops", "excluded_nodes", "per_channel",
        "input_graph_is_binary", "algo",
    ]  # fmt: skip
    assert [given[name].default for name in list(given)[2:]] == [(), (), (), (), False, True, "DIRECT"]
    made = GraphConverter(folder / "net.pb", None)
    assert made.gen_calib_data_cmds is None and made.debug is False and made.only_faster is True
    assert made.output_graph == str(folder / "net_int8.pb")
    assert GraphConverter.covert is GraphConverter.convert


@pytest.mark.slow
def test_feeds_and_a_command_give_the_same_graph(folder: Path) -> None:
    made = converter(folder, output_graph=folder / "feeds.pb")
    plan = made.covert().plan
    assert plan.quantized == plan.candidates == 3 and not any(node.per_channel for node in plan.nodes if node.name)
    assert relative_error(result(folder / "feeds.pb"), result(folder / "net.pb")) < 0.05
    np.save(folder / "rows.npy", DATA)
    by_command = GraphConverter(folder / "net.pb", folder / "command.pb", ["x"], [OUTPUT])
    by_command.gen_calib_data_cmds = (
        f"'{sys.executable}' '{SCRIPT}' --input_graph {{}} --feeds '{folder}/rows.npy' --output {OUTPUT} "
        "--batch_size 16"
    )
    by_command.timeout, by_command.only_faster = 120, False
    by_command.convert()
    assert (folder / "command.pb").read_bytes() == (folder / "feeds.pb").read_bytes()


def test_debug_keeps_the_graphs_between(folder: Path) -> None:
    made = converter(folder, output_graph=folder / "int8.pb")
    made.debug = True
    made.convert()
    kept = {stage: folder / f"int8_{stage}.pb" for stage in STAGES}
    assert set(folder.iterdir()) == {folder / "net.pb", folder / "int8.pb", *kept.values()}
    fp32 = result(folder / "net.pb")
    errors = {stage: relative_error(result(path), fp32) for stage, path in kept.items()}
    assert errors["fp32_optimized"] < 1e-5 and errors["instrumented"] < 1e-5
    assert 1e-4 < errors["dynamic_range"] < 0.05 and 1e-4 < errors["frozen_range"] < 0.05
    ops = {stage: {node.op for node in load_graph(path).node} for stage, path in kept.items()}
    assert "PrintV2" in ops["instrumented"] and "QuantizeAndDequantizeV2" in ops["dynamic_range"]
    assert {"QuantizeV2", "Dequantize"} <= ops["frozen_range"]


def test_each_algorithm_chooses_its_ranges(folder: Path) -> None:
    methods = {"DIRECT": "minmax", "MA": "moving_average", "KL": "kl", "PERCENTILE": "percentile", "MSE": "mse"}
    limits = {}
    for algo, method in methods.items():
        conversion = converter(folder, algo=algo).convert()
        config = QuantizationConfig(outputs=(OUTPUT,), per_channel=False, calibration_method=method, only_faster=False)
        records = [tensor_example({"x": row}) for row in DATA]
        expected = quantize(load_graph(folder / "net.pb"), records, config).plan
        limits[algo] = tuple(tensor.limit for tensor in conversion.plan.tensors.values())
        assert limits[algo] == tuple(tensor.limit for tensor in expected.tensors.values())
    assert len(set(limits.values())) >= 4
    assert all(limit <= widest for own in limits.values() for limit, widest in zip(own, limits["DIRECT"], strict=True))


def test_exclusions_and_granularity_reach_the_plan(folder: Path) -> None:
    last = converter(folder, per_channel=True).convert().plan.nodes[-1].name
    plan = converter(folder, excluded_nodes=[last], per_channel=True).convert().plan
    assert [node.op for node in plan.nodes if node.quantized] == ["Conv2D", "DepthwiseConv2dNative"]
    assert all(node.per_channel for node in plan.nodes if node.quantized)
    plan = converter(folder, excluded_ops=["DepthwiseConv2dNative"]).convert().plan
    assert "DepthwiseConv2dNative" not in {node.op for node in plan.nodes if node.quantized}
    with pytest.raises(UnknownNodeError, match="excluded_nodes: .* 'convolution'"):
        converter(folder, excluded_nodes=["convolution"]).convert()
    with pytest.raises(ConfigError, match="excluded_ops: .* 'Conv3'"):
        converter(folder, excluded_ops=["Conv3"]).convert()


def test_text_graphs_are_read_where_they_are_announced(folder: Path) -> None:
    (folder / "net.pbtxt").write_text(text_format.MessageToString(GRAPH))
    for binary in (True, False):
        made = GraphConverter(folder / "net.pbtxt", folder / "int8.pb", input_graph_is_binary=binary)
        made.calibration_feeds, made.only_faster = feeds(), False
        if binary:
            with pytest.raises(GraphError, match="text GraphDef"):
                made.convert()
        else:
            assert made.convert().plan.quantized == 3


def test_wrong_use_is_told_at_once(folder: Path) -> None:
    for arguments, message in (
        ({"algo": "DIRECTT"}, "did you mean 'DIRECT'"),
        ({"outputs": OUTPUT}, "outputs must be a list"),
        ({"output_graph": folder / "none" / "int8.pb"}, "directory .* does not exist"),
        ({"output_graph": folder / "net.pb"}, "the same path"),
    ):
        with pytest.raises(ConfigError, match=message):
            converter(folder, **arguments)
    made = GraphConverter(folder / "net.pb", None)
    with pytest.raises(ConfigError, match="one of the two"):
        made.convert()
    made.gen_calib_data_cmds, made.calibration_feeds = "true", feeds()
    with pytest.raises(ConfigError, match="one of the two"):
        made.convert()
    assert list(folder.iterdir()) == [folder / "net.pb"]


def test_feeds_that_do_not_fit_are_told(folder: Path) -> None:
    made = GraphConverter(folder / "net.pb", None)
    made.calibration_feeds = [{"y": DATA}]
    with pytest.raises(DataError, match="no value for the graph input 'x'; given: y"):
        made.convert()
    assert list(folder.iterdir()) == [folder / "net.pb"]


def test_a_command_gets_a_binary_graph_where_all_others_are_text(folder: Path) -> None:
    (folder / "net.pbtxt").write_text(text_format.MessageToString(GRAPH))
    np.save(folder / "rows.npy", DATA)
    made = GraphConverter(folder / "net.pbtxt", None, input_graph_is_binary=False)
    made.debug, made.only_faster = True, False
    made.gen_calib_data_cmds = (
        f"{sys.executable} {SCRIPT} --input_graph={{}} --feeds {folder / 'rows.npy'} --input x --output {OUTPUT} "
        "--batch_size 4"
    )
    assert made.convert().plan.quantized == 3
    assert (folder / "net_int8_instrumented.pbtxt").read_text().startswith("node")
