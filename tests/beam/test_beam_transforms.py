"""Calibration and evaluation on Beam: the very result of one process, whatever the order and the number of workers."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from quantizer_core.beam import Calibrate, Evaluate, SampleExamples, WriteOne, read_one, runs
from quantizer_core.calibration.run import CalibrationRun, calibrate
from quantizer_core.calibration.run import checked as checked_calibration
from quantizer_core.errors import DataError, MachineError
from quantizer_core.evaluation import evaluate
from quantizer_core.evaluation.run import EvaluationRun
from quantizer_core.evaluation.run import checked as checked_evaluation
from quantizer_core.graph.files import save_graph
from quantizer_core.onednn import SWITCH
from quantizer_core.prepare import save_prepared
from quantizer_core.reads import Work
from quantizer_core.sample import SmallestHashes
from tests.helpers.beam_runs import direct, run
from tests.helpers.classifier import CONFIG, INPUTS, OUTPUTS, classifier, prepared_classifier, records

LENIENT = dataclasses.replace(CONFIG, max_bad_fraction=0.5)
MODES = [
    pytest.param(1, "in_memory", id="one"),
    pytest.param(2, "multi_threading", id="two-threads"),
    pytest.param(2, "multi_processing", id="two-processes", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = str(tmp_path_factory.mktemp("prepared") / "graph")
    save_prepared(prepared_classifier(), directory)
    return directory


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("graphs")
    paths = str(folder / "fp32.pb"), str(folder / "int8.pb")
    for path, noise in zip(paths, (0.0, 0.5), strict=True):
        save_graph(classifier(noise), path)
    return paths


@pytest.mark.parametrize(("workers", "mode"), MODES)
def test_calibration_is_that_of_one_process(tmp_path: Path, prepared_dir: str, workers: int, mode: str) -> None:
    examples = records(45, bad=3)
    expected = calibrate(prepared_classifier(), examples, LENIENT)
    found, counters = run(examples[::-1], Calibrate(prepared_dir, LENIENT), tmp_path, direct(workers, mode))
    assert found.statistics.to_bytes() == expected.statistics.to_bytes()
    assert found == expected
    assert found.reads.reasons == {"wrong_shape": 3}
    check_counters(found.work, counters)


def check_counters(work: Work, counters: dict[str, int]) -> None:
    """What 45 records, of which 3 hold too few values, are counted as: in the result as in the runner's counters."""
    assert work.records == 45 and work.batches >= 11 and work.microseconds > 0
    assert counters == {
        "examples_read": 42,
        "examples_skipped": 3,
        "examples_skipped_wrong_shape": 3,
        "batches": work.batches,
        "inference_microseconds": work.microseconds,
    }


@pytest.mark.parametrize(("workers", "mode"), MODES)
def test_evaluation_is_that_of_one_process(tmp_path: Path, graphs: tuple[str, str], workers: int, mode: str) -> None:
    examples = records(45, bad=3)
    expected = evaluate(classifier(), classifier(0.5), INPUTS, OUTPUTS, examples, LENIENT)
    assert 0 < expected.counts.agreement < 42
    transform = Evaluate(*graphs, INPUTS, OUTPUTS, LENIENT)
    found, counters = run(examples[::-1], transform, tmp_path, direct(workers, mode))
    assert found == expected
    check_counters(found.work, counters)


def test_an_empty_input_and_bad_records_fail_where_the_pipeline_was_started(
    tmp_path: Path, prepared_dir: str, graphs: tuple[str, str]
) -> None:
    calibration, evaluation = Calibrate(prepared_dir, CONFIG), Evaluate(*graphs, INPUTS, OUTPUTS, CONFIG)
    for examples, message in (([], "there are no examples for"), (records(10, bad=3), "3 of 10 examples for")):
        found, _ = run(examples, calibration, tmp_path, direct())
        with pytest.raises(DataError, match=f"{message} calibration"):
            checked_calibration(found, CONFIG)
        found, _ = run(examples, evaluation, tmp_path, direct())
        with pytest.raises(DataError, match=f"{message} evaluation"):
            checked_evaluation(found, CONFIG)


def test_lost_and_repeated_records_fail_the_run(
    tmp_path: Path, prepared_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner that drops or repeats records behind the point where they are counted, and says that all went well."""
    for kept, through in ((slice(0, 7), 7), (slice(0, 10), 20)):
        again = 2 if through > 10 else 1
        spoiled = beam.CombineGlobally(beam.combiners.ToListCombineFn()) | beam.FlatMap(
            lambda found, kept=kept, again=again: sorted(found)[kept] * again
        )
        monkeypatch.setattr(runs.beam, "Reshuffle", lambda spoiled=spoiled: spoiled)
        with beam.Pipeline() as pipeline:
            out = str(tmp_path / str(through))
            _ = pipeline | beam.Create(records(10)) | Calibrate(prepared_dir, CONFIG) | WriteOne(out)
        monkeypatch.undo()
        found = read_one(out)
        assert found.reads.read == through
        with pytest.raises(DataError, match=f"of 10 examples for calibration, {through} came through"):
            checked_calibration(found, CONFIG)


def test_a_worker_loads_the_graph_once_for_all_its_threads(
    tmp_path: Path, prepared_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = runs.load_prepared
    monkeypatch.setattr(runs, "load_prepared", lambda directory: loads.append(directory) or load(directory))
    run(records(40), Calibrate(prepared_dir, CONFIG), tmp_path, direct(3, "multi_threading"))
    assert loads == [prepared_dir]


def test_a_worker_of_another_kind_or_version_is_refused(
    prepared_dir: str, graphs: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "has_vnni", lambda: True)
    made = Evaluate(*graphs, INPUTS, OUTPUTS, CONFIG)._arguments
    either_way = Evaluate(*graphs, INPUTS, OUTPUTS, dataclasses.replace(CONFIG, reduce_range="on"))._arguments
    calibration = Calibrate(prepared_dir, CONFIG)._arguments
    runs._Evaluation(*made)
    monkeypatch.setattr(runs, "has_vnni", lambda: False)
    with pytest.raises(MachineError, match="worker's processor has no VNNI .* set reduce_range to 'on'"):
        runs._Evaluation(*made)
    runs._Evaluation(*either_way)
    runs._Calibration(*calibration)
    monkeypatch.setattr(runs, "VERSION", "9.9")
    for load, arguments in ((runs._Evaluation, either_way), (runs._Calibration, calibration)):
        with pytest.raises(MachineError, match="a Beam worker has version 9.9 of quantizer_core"):
            load(*arguments)


#: Tells whether TensorFlow was there when oneDNN was asked for, what was asked for, and whether TensorFlow has it.
ASKING = f"""
import os, sys
from quantizer_core import onednn
ask, before = onednn.use_onednn, []
onednn.use_onednn = lambda: (before.append("tensorflow" in sys.modules), ask())
import quantizer_core.beam
from tensorflow.python.util import _pywrap_util_port
print(before[0], os.environ[{SWITCH!r}], int(_pywrap_util_port.IsMklEnabled()))
"""


@pytest.mark.parametrize(("given", "asked"), [(None, "1"), ("0", "0")])
def test_a_worker_that_nobody_told_asks_for_onednn(given: str | None, asked: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != SWITCH}
    if given is not None:
        environment[SWITCH] = given
    said = subprocess.run(
        [sys.executable, "-c", ASKING],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.split() == ["False", asked, asked]  # TensorFlow was not there yet, and found it


def test_graphs_are_read_from_any_path_that_tensorflow_knows(tmp_path: Path) -> None:
    """``ram://`` is no local file system: a path that were opened as a local file would not be found."""
    save_prepared(prepared_classifier(), "ram://beam/prepared")
    for name, noise in (("fp32", 0.0), ("int8", 0.5)):
        save_graph(classifier(noise), f"ram://beam/{name}.pb", overwrite=True)
    examples = records(9)
    found, _ = run(examples, Calibrate("ram://beam/prepared", CONFIG), tmp_path, direct())
    assert found == calibrate(prepared_classifier(), examples, CONFIG)
    transform = Evaluate("ram://beam/fp32.pb", "ram://beam/int8.pb", INPUTS, OUTPUTS, CONFIG)
    found, _ = run(examples, transform, tmp_path, direct())
    assert found == evaluate(classifier(), classifier(0.5), INPUTS, OUTPUTS, examples, CONFIG)


def test_what_a_run_took_is_no_part_of_its_result() -> None:
    for kind in (CalibrationRun, EvaluationRun):
        one, two = kind(work=Work(1, 7, 3)), kind(work=Work(2, 5))
        assert one == two
        assert one.merge(two).work == two.merge(one).work == Work(3, 12, 3)


def test_windowed_input_gives_one_element(prepared_dir: str) -> None:
    expected = calibrate(prepared_classifier(), records(9), CONFIG)
    with beam.Pipeline() as pipeline:
        found = (
            pipeline
            | beam.Create(list(enumerate(records(9))))
            | beam.MapTuple(lambda time, record: beam.window.TimestampedValue(record, time))
            | beam.WindowInto(beam.window.FixedWindows(2))
            | Calibrate(prepared_dir, CONFIG)
            | beam.Map(lambda result: result.statistics.to_bytes())
        )
        assert_that(found, equal_to([expected.statistics.to_bytes()]))


@pytest.mark.parametrize("count", [0, 1, 7, 40, 100])
def test_a_sample_depends_on_the_records_alone(count: int) -> None:
    examples = [f"record {i}".encode() for i in range(38)] + [b"twin", b"twin"]
    smallest = sorted(examples, key=lambda record: hashlib.sha256(record).digest())[: count or 40]
    for order in (examples, examples[::-1]):
        with beam.Pipeline() as pipeline:
            assert_that(pipeline | beam.Create(order) | SampleExamples(count), equal_to(smallest))


def test_a_sample_holds_few_records_at_a_time() -> None:
    combine = SampleExamples(5).combine_fn()
    accumulator, longest = combine.create_accumulator(), 0
    for index in range(1000):
        accumulator = combine.add_input(accumulator, str(index).encode())
        longest = max(longest, len(accumulator))
    assert longest < 100 and len(combine.extract_output(accumulator)) == 5


def test_samples_of_many_bundles_are_merged_few_records_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    combine = SampleExamples(5).combine_fn()
    accumulators = [combine.create_accumulator() for _ in range(100)]
    for index in range(1000):
        combine.add_input(accumulators[index % 100], str(index).encode())
    longest, add = 0, SmallestHashes.add

    def watched(kept: SmallestHashes, record: bytes, digest: bytes | None = None) -> None:
        nonlocal longest
        add(kept, record, digest)
        longest = max(longest, len(kept))

    monkeypatch.setattr(SmallestHashes, "add", watched)
    merged = combine.extract_output(combine.merge_accumulators(iter(accumulators)))
    smallest = sorted((str(index).encode() for index in range(1000)), key=lambda each: hashlib.sha256(each).digest())
    assert [record for _, record in merged] == smallest[:5] and 5 <= longest < 100
