"""The GraphImporter brings in a graph file, checked, with its inputs and outputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import tensorflow as tf
from tfx.orchestration.data_types import RuntimeParameter

from components.artifacts import FrozenGraph, GraphMeta, graph_path, read_meta
from components.graph_importer.component import GraphImporter
from components.graph_importer.executor import Executor
from quantizer_core.errors import ConfigError, GraphError, UnknownNodeError
from quantizer_core.graph.files import load_graph, save_graph
from tests.helpers.tfx_artifacts import conv_net


def _import(path: Path, uri: Path, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> FrozenGraph:
    artifact = FrozenGraph()
    artifact.uri = str(uri)
    properties = {
        "graph_path": str(path),
        "inputs": json.dumps(list(inputs)),
        "outputs": json.dumps(list(outputs)),
        "fingerprint": "",
        "core_version": "1.2",
    }
    Executor().Do({}, {"frozen_graph": [artifact]}, properties)
    return artifact


@pytest.mark.parametrize("name", ["g.pb", "g.pbtxt"])
def test_graph_is_copied_and_its_ends_are_found(tmp_path: Path, name: str) -> None:
    save_graph(conv_net(), str(tmp_path / name))
    for _ in range(2):
        artifact = _import(tmp_path / name, tmp_path / "frozen")
    assert load_graph(graph_path(artifact.uri), binary=True) == conv_net()
    assert read_meta(artifact.uri) == GraphMeta(("images",), ("logits",), str(tmp_path / name))


def test_named_ends_are_kept(tmp_path: Path) -> None:
    save_graph(conv_net(), str(tmp_path / "g.pb"))
    artifact = _import(tmp_path / "g.pb", tmp_path / "frozen", ["images"], ["Relu"])
    assert read_meta(artifact.uri).outputs == ("Relu",)


def test_unknown_output_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    save_graph(conv_net(), str(tmp_path / "g.pb"))
    with pytest.raises(UnknownNodeError, match="did you mean 'logits'"):
        _import(tmp_path / "g.pb", tmp_path / "frozen", [], ["logit"])
    assert not (tmp_path / "frozen").exists()


def test_graph_with_a_variable_is_refused(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        tf.compat.v1.get_variable("weights", [2, 2])
    save_graph(graph.as_graph_def(), str(tmp_path / "g.pb"))
    with pytest.raises(GraphError, match="weights"):
        _import(tmp_path / "g.pb", tmp_path / "frozen")


def test_a_table_above_the_named_inputs_is_cut_off(tmp_path: Path) -> None:
    graph_def = conv_net()
    graph_def.node.add(name="table", op="HashTableV2")
    graph_def.node.add(name="words", op="LookupTableFindV2", input=["table", "images", "images"])
    path = tmp_path / "g.pb"
    save_graph(graph_def, str(path))
    with pytest.raises(GraphError, match="uses a lookup table"):
        _import(path, tmp_path / "frozen")
    assert read_meta(_import(path, tmp_path / "frozen", ["images"], ["logits"]).uri).outputs == ("logits",)


def test_cache_key_follows_the_files_content(tmp_path: Path) -> None:
    path = tmp_path / "g.pb"
    save_graph(conv_net(0), str(path))
    first = GraphImporter(str(path)).exec_properties["fingerprint"]
    assert GraphImporter(str(path)).exec_properties["fingerprint"] == first
    save_graph(conv_net(1), str(path), overwrite=True)
    assert GraphImporter(str(path)).exec_properties["fingerprint"] != first
    with pytest.raises(ConfigError, match=r"none\.pb"):
        GraphImporter(str(tmp_path / "none.pb"))


def test_a_path_that_only_the_run_knows_needs_a_fingerprint() -> None:
    path = RuntimeParameter("path", str)
    with pytest.raises(ConfigError, match="graph_path is a RuntimeParameter, .* give its fingerprint"):
        GraphImporter(graph_path=path)
    assert GraphImporter(graph_path=path, fingerprint="1").exec_properties["graph_path"] is path
