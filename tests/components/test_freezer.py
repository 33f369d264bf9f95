"""The Freezer turns a model's signature into a graph with the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tfx.types import Channel, standard_artifacts

from components.artifacts import FrozenGraph, graph_path, read_meta
from components.freezer.component import Freezer
from components.freezer.executor import Executor
from quantizer_core.errors import ConfigError
from quantizer_core.graph.files import check_frozen, load_graph
from quantizer_core.graph.summarize import input_specs
from quantizer_core.runtime import GraphSession
from quantizer_core.version import VERSION


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> standard_artifacts.Model:
    class Affine(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = tf.Variable([[1.0, 2.0], [3.0, 4.0]])

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": x @ self.matrix + 1.0}

    artifact = standard_artifacts.Model()
    artifact.uri = str(tmp_path_factory.mktemp("model"))
    module = Affine()
    tf.saved_model.save(module, f"{artifact.uri}/Format-Serving", signatures={"tensors": module.serve})
    return artifact


def _freeze(model: standard_artifacts.Model, uri: Path, signature: str) -> FrozenGraph:
    artifact = FrozenGraph()
    artifact.uri = str(uri)
    Executor().Do({"model": [model]}, {"frozen_graph": [artifact]}, {"signature": signature, "core_version": "1.2"})
    return artifact


def test_frozen_graph_answers_as_the_signature_does_and_freezing_again_replaces_it(
    model: standard_artifacts.Model, tmp_path: Path
) -> None:
    for _ in range(2):
        artifact = _freeze(model, tmp_path / "frozen", "tensors")
    graph_def, meta = load_graph(graph_path(artifact.uri)), read_meta(artifact.uri)
    check_frozen(graph_def)
    assert sorted(path.name for path in (tmp_path / "frozen").iterdir()) == ["graph.pb", "meta.json"]
    assert meta.source.endswith("Format-Serving:tensors")
    x = np.array([[1, 0], [0, 1], [2, 3]], np.float32)
    with GraphSession(graph_def, input_specs(graph_def, meta.inputs), meta.outputs) as session:
        (answer,) = session.run({meta.inputs[0]: x})
    np.testing.assert_allclose(answer, x @ [[1, 2], [3, 4]] + 1)
    assert artifact.get_string_custom_property("signature") == "tensors"
    assert artifact.get_string_custom_property("core_version") == VERSION


def test_unknown_signature_is_refused_and_leaves_nothing(model: standard_artifacts.Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tensors'"):
        _freeze(model, tmp_path / "frozen", "tensor")
    assert not (tmp_path / "frozen").exists()


def test_component_declares_its_contract() -> None:
    component = Freezer(model=Channel(type=standard_artifacts.Model), signature="tensors", core_version="1.2")
    assert component.outputs["frozen_graph"].type is FrozenGraph
    assert component.exec_properties == {"signature": "tensors", "core_version": "1.2"}
