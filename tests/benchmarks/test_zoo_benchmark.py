"""The Model Zoo's benchmark: a model all the way, on the shared data."""

from __future__ import annotations

import pathlib

import pytest

from benchmarks import zoo


@pytest.mark.slow
@pytest.mark.usefixtures("shared_data")
def test_a_model_is_converted_compared_and_timed(tmp_path: pathlib.Path) -> None:
    result = zoo.measure("mobilenet_v1", tmp_path, repeats=2)
    assert result.weighted == (28, 28)
    assert 0.6 < result.closeness <= 1 and result.boxes == 0
    fp32, int8 = result.fp32.milliseconds, result.int8.milliseconds
    assert len(fp32) == len(int8) == 2 and min(*fp32, *int8) > 0
    assert 0.2 < result.size < 0.27
    assert "| mobilenet_v1 | 28 of 28 | cosine" in zoo.markdown([result], "a machine")
