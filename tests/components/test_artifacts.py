"""The artifact types take the form that every runner accepts, and meta.json is read as it was written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tfx.utils import import_utils

from components import artifacts
from quantizer_core.errors import GraphError


@pytest.mark.parametrize("kind", [artifacts.FrozenGraph, artifacts.QuantizationEvaluation, artifacts.CalibrationRanges])
def test_type_name_is_the_import_path_that_kubeflow_asks_for(kind: type) -> None:
    assert f"components.{kind.__name__}" == kind.TYPE_NAME
    assert import_utils.import_class_by_path(kind.TYPE_NAME) is kind  # as a step does
    assert re.fullmatch(r"[a-z][a-z0-9-_]{2,20}[.][A-Z]\w*", kind.TYPE_NAME)
    assert not kind.PROPERTIES


def test_meta_round_trips_and_replaces(tmp_path: Path) -> None:
    artifacts.write_meta(str(tmp_path), artifacts.GraphMeta(("old",), ("old",)))
    meta = artifacts.GraphMeta(("a", "b"), ("c",), "here")
    artifacts.write_meta(str(tmp_path), meta)
    assert artifacts.read_meta(str(tmp_path)) == meta
    assert [path.name for path in tmp_path.iterdir()] == ["meta.json"]


@pytest.mark.parametrize("text", [None, "{", '{"inputs": []}', "[1]", '{"nothing": 1}'])
def test_missing_or_damaged_meta_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "meta.json").write_text(text)
    with pytest.raises(GraphError, match=r"meta\.json is missing or damaged"):
        artifacts.read_meta(str(tmp_path))
