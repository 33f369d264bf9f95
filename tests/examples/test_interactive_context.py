"""The example with InteractiveContext runs as printed, from a process of its own, to a blessed INT8 model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import ml_metadata as mlmd
import pytest
from tfx.orchestration.metadata import sqlite_metadata_connection_config

from pipelines.local import metadata_path
from quantizer_core.graph.files import load_graph
from tests.conftest import REPO_ROOT

EXAMPLE = "examples/interactive_context.py"


def test_cells_are_those_that_jupytext_reads() -> None:
    """A cell is told by its marker alone; a header names the form."""
    text = (REPO_ROOT / EXAMPLE).read_text(encoding="utf-8")
    assert text.startswith("# ---\n# jupyter:\n") and "format_name: percent" in text
    header, *cells = re.split(r"^# %%", text, flags=re.MULTILINE)
    assert all(line.startswith("#") for line in header.strip().splitlines())
    kinds = [cell.splitlines()[0].strip() for cell in cells]
    assert set(kinds) == {"", "[markdown]"}
    for kind, cell in zip(kinds, cells, strict=True):
        lines = [line for line in cell.splitlines()[1:] if line]
        assert lines and all(line.startswith("#") for line in lines) == (kind == "[markdown]")


@pytest.mark.slow
def test_example_blesses_and_pushes_an_int8_model(tmp_path: Path) -> None:
    output = tmp_path / "output"
    finished = subprocess.run(
        # The line that the example's head gives.
        [sys.executable, "-m", "IPython", EXAMPLE, "--", "--output", str(output), "--train_steps", "100"],
        cwd=REPO_ROOT,
        env={**os.environ, "PYTHONPATH": str(REPO_ROOT), "IPYTHONDIR": str(tmp_path / "ipython")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
    )
    printed = finished.stdout
    assert finished.returncode == 0, printed[-4000:]
    assert "Quantizer: 3 of 3 Conv2D in INT8" in printed
    assert re.search(r"Blessed +│ yes", printed), printed
    answers = dict(re.findall(r"^(labels|answers) +([\d ]+)$", printed, re.MULTILINE))
    pairs = list(zip(answers["labels"].split(), answers["answers"].split(), strict=True))
    assert len(pairs) == 12 and sum(label == answer for label, answer in pairs) >= 9

    store = mlmd.MetadataStore(sqlite_metadata_connection_config(metadata_path(str(output))))
    (blessing,) = store.get_artifacts_by_type("ModelBlessing")
    assert blessing.custom_properties["blessed"].int_value == 1
    (evaluation,) = store.get_artifacts_by_type("components.QuantizationEvaluation")
    facts = json.loads((Path(evaluation.uri) / "evaluation.json").read_text(encoding="utf-8"))
    assert facts["int8"] > 0.8 and facts["fp32"] - facts["int8"] <= 0.01
    graphs = [artifact.uri for artifact in store.get_artifacts_by_type("Model") if "Quantizer" in artifact.uri]
    (graph,) = (load_graph(os.path.join(uri, "quantized_graph.pb")) for uri in graphs)
    assert not {"Conv2D", "DepthwiseConv2dNative", "MatMul"} & {node.op for node in graph.node}
    (pushed,) = store.get_artifacts_by_type("PushedModel")
    assert Path(pushed.custom_properties["pushed_destination"].string_value, "saved_model.pb").exists()
