"""Every executor starts from empty outputs, and leaves them empty if it fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tfx.types import Artifact, standard_artifacts

from components import artifacts
from components.artifacts import FrozenGraph
from components.freezer.executor import Executor as Freezer
from components.graph_importer.executor import Executor as GraphImporter
from components.outputs import clear, describe, fresh_outputs
from quantizer_core.graph.files import save_graph
from quantizer_core.version import VERSION
from tests.helpers.tfx_artifacts import conv_net

PROPERTIES = {"core_version": "1.2"}


def _outputs(root: Path) -> dict[str, list[Artifact]]:
    found = {"a": [FrozenGraph()], "b": [standard_artifacts.Model()]}
    for key, (artifact,) in found.items():
        artifact.uri = str(root / key)
        (root / key / "deep").mkdir(parents=True)
        (root / key / "deep" / "left").write_text("by the attempt before")
    return found


def _files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_outputs_are_empty_at_first_and_carry_the_version_at_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = _outputs(tmp_path)
    with fresh_outputs(found, PROPERTIES) as outputs:
        assert _files(tmp_path) == ["a", "b"]
        assert outputs == {"a": found["a"][0], "b": found["b"][0]}
        (tmp_path / "a" / "file").write_text("new")
    assert _files(tmp_path) == ["a", "a/file", "b"]
    assert [each.get_string_custom_property("core_version") for each in outputs.values()] == [VERSION, VERSION]
    assert f"this step runs version {VERSION} of the product, the pipeline was made with 1.2" in caplog.text
    caplog.clear()
    with fresh_outputs(found, {"core_version": VERSION}):
        pass
    assert not caplog.text


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_empties_all_outputs_again(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), fresh_outputs(_outputs(tmp_path), PROPERTIES):
        (tmp_path / "b" / "half").write_text("made")
        raise error
    assert _files(tmp_path) == ["a", "b"]


def test_clear_leaves_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "out" / "deep").mkdir(parents=True)
    clear(str(tmp_path / "out"))
    clear(str(tmp_path / "new"))
    assert _files(tmp_path) == ["new", "out"]


def test_properties_keep_their_kinds() -> None:
    artifact = FrozenGraph()
    describe(artifact, {"text": "a", "whole": 3, "truth": True, "number": 0.5})
    assert artifact.get_string_custom_property("text") == "a"
    assert artifact.get_int_custom_property("whole") == 3
    assert artifact.get_int_custom_property("truth") == 1
    assert artifact.get_float_custom_property("number") == 0.5


def _freezer(folder: Path) -> tuple[Any, dict[str, list[Artifact]], dict[str, Any]]:
    import tensorflow as tf

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": x + 1.0}

    model = standard_artifacts.Model()
    model.uri = str(folder / "model")
    tf.saved_model.save(module := Model(), f"{model.uri}/Format-Serving", signatures={"tensors": module.serve})
    return Freezer(), {"model": [model]}, {"signature": "tensors", **PROPERTIES}


def _importer(folder: Path) -> tuple[Any, dict[str, list[Artifact]], dict[str, Any]]:
    save_graph(conv_net(), str(folder / "net.pb"))
    path = str(folder / "net.pb")
    return GraphImporter(), {}, {"graph_path": path, "inputs": "[]", "outputs": "[]", "fingerprint": "", **PROPERTIES}


@pytest.mark.parametrize("make", [_freezer, _importer], ids=["Freezer", "GraphImporter"])
def test_a_graph_without_its_names_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any]
) -> None:
    def full_disk(*arguments: object) -> None:
        assert (tmp_path / "frozen" / "graph.pb").exists()
        raise OSError("no space left")

    executor, inputs, properties = make(tmp_path)
    artifact = FrozenGraph()
    artifact.uri = str(tmp_path / "frozen")
    monkeypatch.setattr(artifacts, "write_meta", full_disk)
    with pytest.raises(OSError, match="no space"):
        executor.Do(inputs, {"frozen_graph": [artifact]}, properties)
    assert _files(tmp_path / "frozen") == []
