"""The accuracy benchmark: its arithmetic, its tables, and how it deals with tools that are absent or fail."""

from __future__ import annotations

import ast
import io
import json
import math
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from benchmarks import ablation, accuracy, accuracy_cases, accuracy_table, peers, tables
from benchmarks.ablation import Result
from benchmarks.accuracy_table import Row

TITLES = {"net": "The Net"}
ROW = Row("net", "ours", 200, 0.75, 0.745, 0.95, 0.5, "9 of 10", 2.5, 0.25, divergence=0.01234)
PEER = peers.Peer("Peer", ("some-package==1",), "driver.py")


def test_a_peer_is_scored_by_its_classes() -> None:
    labels = np.array([0, 1, 2, 3, 4, 5, 6, 7])
    fp32, int8 = labels.copy(), labels.copy()
    fp32[:2] = 9  # FP32 wrong on 0 and 1, INT8 on 1 (with another class), 2 and 3
    int8[1:4] = 8
    row = accuracy_table.scored("net", "peer", fp32, int8, labels, 3.0)
    assert (row.images, row.fp32, row.int8, row.agreement) == (8, 0.75, 0.625, 0.5)
    assert row.p == pytest.approx(1.0)  # one against two
    assert accuracy_table.scored("net", "peer", fp32, int8[:3], labels, 3.0).failure == "gave 3 classes for 8 images"


def test_cells_give_percent_or_the_failure() -> None:
    assert accuracy_table.cells(ROW, "The Net") == (
        "The Net", "ours", "200", "75.00", "74.50", "+0.50", "95.00 %", "0.0123", "0.50", "9 of 10", "2.5 + 0.2",
    )  # fmt: skip
    failed = accuracy_table.cells(Row("net", "peer", failure="broken"), "The Net")
    assert failed[-1] == "broken" and len(failed) == len(accuracy_table.COLUMNS)


def test_the_table_goes_between_its_marks_and_leaves_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.md"
    table = accuracy_table.markdown([ROW], TITLES, "a machine")
    begin, end = "<!-- begin accuracy table, AMX -->", "<!-- end accuracy table, AMX -->"
    path.write_text(f"# Title\n\nbefore\n{begin}\nold\n{end}\nafter\n")
    for _ in range(2):
        tables.write_markdown(path, table, processor="AMX")
        text = path.read_text()
        assert text.startswith("# Title\n\nbefore\n") and text.endswith(f"{end}\nafter\n")
        assert "old" not in text and text.count("| The Net | ours | 200 |") == 1 and "a machine" in text
    new = tmp_path / "new.md"
    tables.write_markdown(new, table)
    assert table in new.read_text() and [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_another_processor_gets_a_table_of_its_own_behind_the_others(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.md"
    first, second = (f"<!-- {where} accuracy table, AMX -->" for where in ("begin", "end"))
    path.write_text(f"# Title\n\n{first}\nkept\n{second}\n\nafter\n")
    tables.write_markdown(path, "new", processor="no VNNI")
    begin, end = (f"<!-- {where} accuracy table, no VNNI -->" for where in ("begin", "end"))
    assert path.read_text() == f"# Title\n\n{first}\nkept\n{second}\n\n{begin}\nnew\n{end}\n\nafter\n"


@pytest.mark.parametrize(
    ("flags", "kind", "machine"),
    [
        ("avx2", "no VNNI", "Some CPU, no VNNI, 2 cores"),
        ("avx2 avx512_vnni", "AVX512_VNNI", "Some CPU, AVX512_VNNI, 2 cores"),
        ("avx_vnni avx512_vnni", "AVX512_VNNI, AVX_VNNI", "Some CPU, AVX512_VNNI, AVX_VNNI, 2 cores"),
        ("avx_vnni", "AVX_VNNI", "Some CPU, AVX_VNNI, 2 cores"),
        ("avx512_vnni avx_vnni amx_int8", "AMX", "Some CPU, AVX512_VNNI, AVX_VNNI, AMX-INT8, 2 cores"),
    ],
)
def test_tables_are_of_a_kind_of_processor(flags, kind, machine, monkeypatch) -> None:
    monkeypatch.setattr(tables, "_cpu", lambda: ("Some CPU", frozenset(flags.split())))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    assert (tables.processor_kind(), tables.machine()) == (kind, machine)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert tables.processor_kind() == f"{kind} limited to AVX2"  # of which the processor's own table knows nothing


def test_folds_and_thinning_meet_all_classes() -> None:
    """Class folders give one image each in turn."""
    found = accuracy_cases.shuffled([bytes([index % 10]) for index in range(2000)])
    for fold in range(3):
        others = [example for index, example in enumerate(found) if index % 3 != fold]
        counts = np.bincount([example[0] for example in others[::10][:128]], minlength=10)
        assert counts.min() >= 4
    assert found == accuracy_cases.shuffled([bytes([index % 10]) for index in range(2000)])


def test_variants_lie_on_top_of_the_config() -> None:
    assert accuracy._variants((), '{"per_channel": false}') == {"ours": '{"per_channel": false}'}
    found = accuracy._variants(("plain=", 'kl={"calibration_method": "kl"}'), '{"per_channel": false}')
    assert list(found) == ["plain", "kl"] and json.loads(found["plain"]) == {"per_channel": False}
    assert json.loads(found["kl"]) == {"per_channel": False, "calibration_method": "kl"}
    for wrong in (("a",), ("a=", "a="), ("a={",), ("a=[]",)):
        with pytest.raises(click.UsageError):
            accuracy._variants(wrong, "{}")


def test_folds_evaluate_every_image_once_and_calibrate_on_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [str(number).encode() for number in range(400)]
    monkeypatch.setattr("quantizer_core.data.read_examples", lambda *args, **options: found)
    case = accuracy.CASES["resnet8"]
    assert case.examples() == (found[:128], found[128:])
    parts = [case.examples(fold, 3) for fold in range(3)]
    assert sorted(example for _, evaluated in parts for example in evaluated) == sorted(found)
    for calibration, evaluated in parts:
        assert len(set(calibration)) == 128 and not set(calibration) & set(evaluated)
        assert 160 < np.mean([int(example) for example in calibration]) < 240  # spread over all


def test_views_show_the_same_image_otherwise() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded.getvalue()])),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[7])),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    assert accuracy_cases.views_of([example], 1) == [example]
    found = [tf.train.Example.FromString(each).features.feature for each in accuracy_cases.views_of([example] * 2, 4)]
    assert len(found) == 8 and {each["image/class/label"].int64_list.value[0] for each in found} == {7}
    plain, mirrored, down, up = (
        np.asarray(Image.open(io.BytesIO(each["image/encoded"].bytes_list.value[0]))) for each in found[4:]
    )
    np.testing.assert_array_equal(plain, pixels)
    np.testing.assert_array_equal(mirrored, pixels[:, ::-1])
    np.testing.assert_array_equal(down[2:, 3:], pixels[:-2, :-3])
    np.testing.assert_array_equal(up[:-2, :-3], pixels[:, ::-1][2:, 3:])


def test_other_tools_are_not_measured_in_folds(shared_data: Path) -> None:
    result = CliRunner().invoke(accuracy.main, ["--folds", "3", "--peers"])
    assert result.exit_code == 2 and "one part of the images" in result.output


def test_other_tools_are_not_simulated(shared_data: Path) -> None:
    result = CliRunner().invoke(accuracy.main, ["--simulate", "vnni", "--peers"])
    assert result.exit_code == 2 and "on this processor's kernels" in result.output


def test_the_table_of_options_has_a_row_a_variant_and_a_column_a_graph() -> None:
    results = [
        Result(name, variant, 400, 0.5, 0.5 + shift, 0.9, 0.0123, 2.0)
        for name in ("mobilenet", "resnet8") for variant, shift in (("defaults", 0.0), ("rounding: nearest", -0.01))
    ]  # fmt: skip
    lines = ablation.markdown(results, "a machine", 3).splitlines()
    assert lines[2] == "| options | MobileNet V1 0.25 224 | MLPerf ResNet-8 |" and len(lines) == 6
    assert lines[5] == "| rounding: nearest | 12.30 · 90.0 · -1.0 · 2.0 | 12.30 · 90.0 · -1.0 · 2.0 |"


def test_absent_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTIZER_SHARED_DATA", str(tmp_path / "nowhere"))
    result = CliRunner().invoke(accuracy.main, [])
    assert result.exit_code == 1 and "no shared data in" in result.output


def test_a_failing_conversion_gives_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    row = accuracy.measure_ours("resnet8", '{"no_such_option": 1}', "ours", 1, 1, "")
    assert "unknown option 'no_such_option'" in row.failure and math.isnan(row.int8)


def test_a_peer_that_cannot_be_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(peer: peers.Peer, folder: Path) -> Path:
        raise RuntimeError("no such package")

    monkeypatch.setattr(peers, "install", absent)
    monkeypatch.setattr(accuracy, "measure_ours", lambda name, settings, tool, *_: Row(name, tool))
    console = Console(record=True, width=200)
    rows = list(accuracy.measure(("resnet8",), {"ours": "{}"}, ("openvino",), 1, 1, "", console))
    assert [row.tool for row in rows] == ["ours"]
    assert "OpenVINO/NNCF is left out, it cannot be installed: no such package" in console.export_text()


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def record(command: list[str], cwd: Path | None = None) -> str:
        calls.append(list(command))
        (tmp_path / "peer").mkdir(exist_ok=True)
        return ""

    monkeypatch.setattr(peers, "_run", record)
    python = peers.install(PEER, tmp_path / "peer")
    assert python == tmp_path / "peer" / "bin" / "python" and calls[-1][-1] == "some-package==1"
    made = len(calls)
    assert peers.install(PEER, tmp_path / "peer") == python and len(calls) == made


def test_a_driver_runs_in_its_environment_and_its_last_word_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "HERE", tmp_path)
    (tmp_path / "driver.py").write_text("import sys\nprint('chatter')\nprint(len(sys.argv[1]) * 0 + 1.5)\n")
    assert peers.run(PEER, Path(sys.executable), tmp_path) == 1.5
    (tmp_path / "driver.py").write_text("raise ValueError('it does not know this op')\n")
    with pytest.raises(RuntimeError, match="ValueError: it does not know this op"):
        peers.run(PEER, Path(sys.executable), tmp_path)


@pytest.mark.parametrize("peer", peers.PEERS.values(), ids=lambda peer: peer.title)
def test_drivers_import_nothing_of_ours(peer: peers.Peer) -> None:
    tree = ast.parse((peers.HERE / peer.driver).read_text(encoding="utf-8"))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in modules} & {"quantizer_core", "benchmarks", "components", "pipelines"}


@pytest.mark.slow
def test_resnet8_is_measured_end_to_end(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTIZER_SHARED_DATA", str(shared_data))
    monkeypatch.setattr(accuracy, "measure_peers", lambda installed, name, views: iter(()))
    options = ["--graph", "resnet8", "--output", tmp_path / "out.json", "--markdown", tmp_path / "out.md"]
    options += ["--views", "1"]
    result = CliRunner().invoke(accuracy.main, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["images"] == 1872 and abs(row["fp32"] - row["int8"]) < 0.01 and row["agreement"] > 0.95
    assert "| MLPerf ResNet-8 | ours | 1872 |" in (tmp_path / "out.md").read_text()
    accuracy.write_arrays("resnet8", tmp_path, 1)
    assert np.load(tmp_path / "calibration.npy").shape == (128, 32, 32, 3)
    right = np.load(tmp_path / "fp32.npy") == np.load(tmp_path / "labels.npy")
    assert right.mean() == pytest.approx(row["fp32"], abs=1e-3)
