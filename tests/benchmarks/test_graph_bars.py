"""Every shared graph reaches its bar at the defaults; and what the figures are made of."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import graphs, yolox
from benchmarks.graph_cases import GRAPH_CASES, Figures, _classes, _faces, _signal_to_noise
from benchmarks.graphs import Result

FIGURES = Figures("PSNR", math.nan, 44.3, True, "35 dB", "worst 42")
RESULT = Result("espcn", FIGURES, (3, 3), (3, 4), {"X: no": 1}, 32, 0.3, (1.2, 1.1, 1.3), 1.5, 9.0)


@pytest.mark.parametrize("vnni", [True, False])
def test_accuracy_is_judged_by_the_drop_and_the_agreement(vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 7-bit weights twice as much may be lost."""
    monkeypatch.setattr("quantizer_core.runtime.has_vnni", lambda: vnni)
    times = 1 if vnni else 2
    judge = _classes(1.0, 90.0)
    exact = [[np.eye(4)[i % 4]] for i in range(200)]
    labels = [i % 4 for i in range(200)]

    def moved(count: int, by: int) -> list[list[np.ndarray]]:
        return [[np.eye(4)[(i + by * (i < count)) % 4]] for i in range(200)]

    assert judge(exact, moved(2 * times, 1), range(200), labels).passed  # 1 point, 99 % agree
    assert not judge(exact, moved(2 * times + 1, 1), range(200), labels).passed
    wrong = [(each + 1) % 4 for each in labels]  # both are wrong, and differ
    assert not judge(exact, moved(20 * times + 1, 2), range(200), wrong).passed


def test_the_signal_to_noise_ratio_is_in_decibels() -> None:
    found = _signal_to_noise([[np.zeros((2, 2))]], [[np.full((2, 2), 0.01)]], [0], [None])
    assert found.int8 == pytest.approx(40) and found.passed
    assert not _signal_to_noise([[np.zeros(4)]], [[np.full(4, 0.02)]], [0], [None]).passed


def test_faces_are_matched_by_their_overlap() -> None:
    box = np.array([[0.0, 0, 10, 10]])
    assert yolox.overlap(box, np.array([[0.0, 0, 10, 5], [20, 20, 30, 30]])).tolist() == [[0.5, 0.0]]
    fp32, int8 = [[box], [np.zeros((0, 4))]], [[np.array([[0.0, 1, 10, 10], [50, 50, 60, 60]])], [np.zeros((0, 4))]]
    found = _faces(fp32, int8, [0, 1], [None, None])
    assert found.int8 == 100 and found.more == "1 of 1, 1 others"
    assert _faces(fp32, [[np.zeros((0, 4))], [box]], [0, 1], [None, None]).more == "0 of 1, 1 others"


def test_boxes_are_decoded_from_their_cells() -> None:
    output = np.zeros((3549, 85), np.float32)
    cell = 52 * 52 + 26 * 3 + 5  # row 3, column 5 of the second grid
    output[cell, :5] = [0.5, 0.25, math.log(2.0), math.log(4.0), 0.8]
    output[cell, 5 + 17] = 0.5
    boxes, classes, scores = yolox.decode(output)
    assert boxes[cell].tolist() == pytest.approx([3.25 * 16 - 32, 5.5 * 16 - 16, 3.25 * 16 + 32, 5.5 * 16 + 16])
    assert classes[cell] == 17 and scores[cell] == pytest.approx(0.4)
    found = yolox.boxes(3, output)
    assert len(found.boxes) == 1 and found.scores.tolist() == pytest.approx([0.4])


def test_objects_lie_where_the_scaled_image_has_them() -> None:
    annotations = {
        "images": [{"id": 9, "file_name": "b.jpg", "height": 208, "width": 832},
                   {"id": 4, "file_name": "a.jpg", "height": 416, "width": 416}],
        "categories": [{"id": 1}, {"id": 44}],
        "annotations": [{"image_id": 9, "category_id": 44, "bbox": [100, 20, 40, 60], "iscrowd": 0}],
    }  # fmt: skip
    first, second = yolox.truth(annotations, [0, 1])
    assert (first.image, len(first.boxes)) == (4, 0)
    assert second.boxes.tolist() == [[10, 50, 40, 70]] and second.classes.tolist() == [1]


def test_every_example_is_evaluated_by_a_conversion_that_did_not_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [str(number).encode() for number in range(100)]
    case = dataclasses.replace(GRAPH_CASES["vww"], examples=lambda: examples, calibrate=20, folds=3)
    seen = []
    for calibration, evaluation, numbers in case.parts():
        assert len(calibration) == 20 and not set(calibration) & set(evaluation)
        assert [examples[number] for number in numbers] == evaluation
        seen += evaluation
    assert sorted(seen) == sorted(examples)


def test_the_table_has_a_row_a_graph_and_the_reasons_below() -> None:
    text = graphs.markdown([RESULT], "a machine")
    assert "| 3 of 3 | 3 of 4 | 32 | PSNR | – | 44.30 | worst 42 | 35 dB: reached |" in text
    assert "| 0.30 | 1.20 × (1.10–1.30) | 1.5 + 9.0 |" in text
    assert "- ESPCN ×2, super-resolution: 1 × X: no" in text
    assert Result.from_json(json.dumps(dataclasses.asdict(RESULT))).figures.bar == "35 dB"


def test_nodes_that_stay_fp32_need_a_reason() -> None:
    few = dataclasses.replace(RESULT, weighted=(3, 6))
    assert not few.passed and not dataclasses.replace(few, left={"ConcatV2: no": 3}).passed
    assert dataclasses.replace(few, left={"Conv2D: no": 3}).passed
    assert RESULT.passed and not dataclasses.replace(RESULT, figures=dataclasses.replace(FIGURES, passed=False)).passed


def test_a_missed_bar_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, shared_data: Path, tmp_path: Path) -> None:
    missed = dataclasses.replace(RESULT, figures=dataclasses.replace(RESULT.figures, passed=False))
    monkeypatch.setattr(graphs, "run", lambda name, settings: missed)
    result = CliRunner().invoke(graphs.main, ["--graph", "espcn", "--output", str(tmp_path / "out.json")])
    assert result.exit_code == 1 and "bars missed: ESPCN" in result.output
    assert json.loads((tmp_path / "out.json").read_text())["results"][0]["case"] == "espcn"


# What CI has time for: depthwise over 8-bit weights, sounds. The others run by `make test-long`.
FEW = ("mobilenet_8bit", "ds_cnn")
OTHERS = [name for name in GRAPH_CASES if name not in (*FEW, "mobilenet", "squeezenet")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FEW, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)])
def test_the_graph_reaches_its_bar(name: str, shared_data: Path) -> None:
    result = graphs.run(name)
    assert result.passed, result
