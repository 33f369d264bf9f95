"""The same bytes on Prism, a real portable runner: with workers in this process and in processes of their own."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import ExternalEnvironment

from quantizer_core.beam import Calibrate, Evaluate, SampleExamples
from quantizer_core.calibration.run import CalibrationRun, calibrate
from quantizer_core.calibration.run import checked as checked_calibration
from quantizer_core.errors import DataError
from quantizer_core.evaluation import evaluate
from quantizer_core.graph.files import save_graph
from quantizer_core.prepare import save_prepared
from quantizer_core.reads import ReadCounts, Work
from tests.helpers.beam_runs import run
from tests.helpers.classifier import CONFIG, INPUTS, OUTPUTS, classifier, prepared_classifier, records
from tests.helpers.prism import portable_options, worker_pool

PARTS = 3


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = str(tmp_path_factory.mktemp("prepared") / "graph")
    save_prepared(prepared_classifier(), directory)
    return directory


@pytest.fixture(scope="module", params=["loopback", pytest.param("external", marks=pytest.mark.slow)])
def arguments(request: pytest.FixtureRequest, prism_endpoint: str) -> Iterator[list[str]]:
    if request.param == "loopback":
        yield portable_options(prism_endpoint)
        return
    with worker_pool() as pool:
        yield portable_options(prism_endpoint, pool)


def test_calibration_is_that_of_one_process(tmp_path: Path, prepared_dir: str, arguments: list[str]) -> None:
    examples = records(45, bad=3)
    lenient = dataclasses.replace(CONFIG, max_bad_fraction=0.5)
    expected = calibrate(prepared_classifier(), examples, lenient)
    found, counters = run(examples[::-1], Calibrate(prepared_dir, lenient), tmp_path, arguments)
    assert found.statistics.to_bytes() == expected.statistics.to_bytes()
    assert checked_calibration(found, lenient) == expected
    assert found.work.records == 45
    check_counters(counters, found.reads, found.work)


def check_counters(counters: dict[str, int], reads: ReadCounts, work: Work) -> None:
    """The runner's counters are those of the result, or fewer.

    Prism 2.61 loses those of a bundle that it has split, which it does if a worker is slow: why the figures go the way
    of the results too.
    """
    expected = {
        "examples_read": reads.read,
        "examples_skipped": reads.skipped,
        **{f"examples_skipped_{reason}": count for reason, count in reads.reasons.items()},
        "batches": work.batches,
        "inference_microseconds": work.microseconds,
    }
    assert counters and counters.keys() <= expected.keys()
    assert all(counters[name] <= expected[name] for name in counters)


@dataclasses.dataclass(frozen=True)
class _Found:
    """A run, and the processes that it was made in."""

    run: CalibrationRun
    processes: frozenset[int]

    def merge(self, other: _Found) -> _Found:
        return _Found(self.run.merge(other.run), self.processes | other.processes)


class _Part(beam.PTransform):
    """Calibrates on a part of the records and notes in which process."""

    def __init__(self, prepared_dir: str):
        super().__init__()
        self._prepared_dir = prepared_dir

    def expand(self, part: beam.PCollection[bytes]) -> beam.PCollection[_Found]:
        found = part | Calibrate(self._prepared_dir, CONFIG)
        return found | "Note" >> beam.Map(lambda run: _Found(run, frozenset({os.getpid()})))


class _Parts(beam.PTransform):
    """Calibrates on each of several parts in a worker of its own and merges the runs.

    Prism starts one worker for each kind of machine that a pipeline asks for, so each part asks for another.
    """

    def __init__(self, prepared_dir: str):
        super().__init__()
        self._prepared_dir = prepared_dir

    def expand(self, records: beam.PCollection[bytes]) -> beam.PCollection[_Found]:
        parts = records | beam.Partition(lambda record, count: zlib.crc32(record) % count, PARTS)
        found = [
            part | f"Part{number}" >> _Part(self._prepared_dir).with_resource_hints(min_ram=f"{number + 1}GB")
            for number, part in enumerate(parts)
        ]
        return found | beam.Flatten() | beam.CombineGlobally(_joined).without_defaults()


def _joined(found: Iterable[_Found]) -> _Found:
    return functools.reduce(_Found.merge, found)


@pytest.mark.slow
def test_several_workers_of_a_pool_give_what_one_process_gives(
    tmp_path: Path, prepared_dir: str, prism_endpoint: str
) -> None:
    examples = records(60)
    expected = calibrate(prepared_classifier(), examples, CONFIG)
    with worker_pool(warm=PARTS + 1) as pool:  # one more reads
        found, counters = run(examples, _Parts(prepared_dir), tmp_path, portable_options(prism_endpoint, pool))
    assert len(found.processes) == PARTS and os.getpid() not in found.processes
    assert found.run == expected
    assert found.run.statistics.to_bytes() == expected.statistics.to_bytes()
    assert found.run.work.records == 60
    check_counters(counters, found.run.reads, found.run.work)


def test_a_sample_is_the_same_records(tmp_path: Path, prism_endpoint: str) -> None:
    examples = records(30)
    found, _ = run(examples, _ListedSample(), tmp_path, portable_options(prism_endpoint))
    assert sorted(found) == sorted(sorted(examples, key=lambda record: hashlib.sha256(record).digest())[:8])


class _ListedSample(beam.PTransform):
    def expand(self, records: beam.PCollection[bytes]) -> beam.PCollection[list[bytes]]:
        return records | SampleExamples(8) | beam.combiners.ToList()


def test_evaluation_is_that_of_one_process(tmp_path: Path, arguments: list[str]) -> None:
    paths = str(tmp_path / "fp32.pb"), str(tmp_path / "int8.pb")
    for path, noise in zip(paths, (0.0, 0.5), strict=True):
        save_graph(classifier(noise), path)
    examples = records(45)
    found, counters = run(examples, Evaluate(*paths, INPUTS, OUTPUTS, CONFIG), tmp_path, arguments)
    assert found == evaluate(classifier(), classifier(0.5), INPUTS, OUTPUTS, examples, CONFIG)
    assert 0 < found.counts.agreement < 45
    assert found.work.records == 45
    check_counters(counters, found.reads, found.work)


def test_bad_examples_are_the_same_error_as_anywhere(tmp_path: Path, prepared_dir: str, prism_endpoint: str) -> None:
    arguments = portable_options(prism_endpoint)
    found, _ = run(records(10, bad=3), Calibrate(prepared_dir, CONFIG), tmp_path, arguments)
    with pytest.raises(DataError, match="3 of 10 examples for calibration"):
        checked_calibration(found, CONFIG)


class _Noted(beam.PTransform):
    """Calibrates with one step spread over the workers; each notes its process before it takes its records."""

    def __init__(self, prepared_dir: str):
        super().__init__()
        self._prepared_dir = prepared_dir

    def expand(self, records: beam.PCollection[bytes]) -> beam.PCollection[_Found]:
        processes = (
            records
            | "Spread" >> beam.Reshuffle()
            | beam.Map(lambda record: os.getpid()).with_output_types(int)
            | beam.combiners.ToList()
        )
        return (
            records
            | Calibrate(self._prepared_dir, CONFIG)
            | beam.Map(lambda run, seen: _Found(run, frozenset(seen)), beam.pvalue.AsSingleton(processes))
        )


@pytest.mark.slow
def test_one_step_spread_over_the_workers_of_a_pool(tmp_path: Path, prepared_dir: str) -> None:
    """Unlike Prism, Beam's runner in Python gives the bundles of one step to several workers of a pool."""
    examples = records(60)
    with worker_pool(warm=PARTS) as pool:
        runner = FnApiRunner(default_environment=ExternalEnvironment(pool))
        found, counters = run(examples, _Noted(prepared_dir), tmp_path, [f"--direct_num_workers={PARTS}"], runner)
    assert len(found.processes) == PARTS and os.getpid() not in found.processes
    assert found.run == calibrate(prepared_classifier(), examples, CONFIG)
    assert counters["examples_read"] == found.run.work.records == 60
    assert counters["batches"] == found.run.work.batches > 1
