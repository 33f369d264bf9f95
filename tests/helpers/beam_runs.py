"""Beam pipelines over serialized examples, run to their end on any runner."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineRunner

from quantizer_core.beam import ReadRecords, WriteOne, read_one
from quantizer_core.data import write_tfrecords


def direct(workers: int = 1, mode: str = "in_memory") -> list[str]:
    """Returns the arguments of a pipeline on Beam's own runner on this machine."""
    return ["--runner=DirectRunner", f"--direct_num_workers={workers}", f"--direct_running_mode={mode}"]


def run(
    examples: list[bytes],
    transform: beam.PTransform,
    folder: Path,
    arguments: Sequence[str],
    runner: PipelineRunner | None = None,
) -> tuple[object, dict[str, int]]:
    """Returns the one element that the transform gives for examples read from sharded files, and the counters."""
    number = len(list(folder.iterdir()))
    (folder / f"out{number}").mkdir()
    paths = write_tfrecords(examples, str(folder / f"in{number}"), shards=3) if examples else []
    out = str(folder / f"out{number}" / "element")
    pipeline = beam.Pipeline(runner, PipelineOptions(list(arguments)))
    records = pipeline | (ReadRecords(paths) if paths else beam.Create([], reshuffle=False))
    _ = records | transform | WriteOne(out)
    result = pipeline.run()
    result.wait_until_finish()
    counters: collections.Counter[str] = collections.Counter()
    for metric in result.metrics().query(MetricsFilter().with_namespace("quantizer"))["counters"]:
        counters[metric.key.metric.name] += metric.committed  # one for each step that counts
    return read_one(out), dict(counters)
