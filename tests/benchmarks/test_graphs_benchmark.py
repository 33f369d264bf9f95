"""Trained graphs of the shared data, converted at the defaults, each held to its bar in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import graphs

#: The keyword nets that take seconds; `python -m benchmarks.graphs` holds every graph to its bar.
QUICK = ("ds_cnn", "cnn", "dnn")


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_graph_reaches_its_bar(name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTIZER_SHARED_DATA", str(shared_data))
    result = graphs.run(name)
    assert result.figures.passed, graphs.cells(result)
    converted, candidates = result.weighted
    reasons = {key: count for key, count in result.left.items() if key.split(":")[0] in graphs.WEIGHTED}
    assert candidates > 0
    assert converted >= graphs.SHARE * candidates or sum(reasons.values()) == candidates - converted, result.left
