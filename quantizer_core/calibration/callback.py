"""Calibration by callback: a user's command runs the graph on examples of its own, and the graph tells its ranges.

The command may be any program in any place that loads the graph with TensorFlow, feeds its inputs and fetches its
outputs. What it shows is what direct calibration would see of the same examples in the same batches, to the bit, the
bounded sample of the inputs included, so it goes on to the same INT8 graph.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from quantizer_core.calibration.command import command_words, run_command
from quantizer_core.calibration.fixed_point import limb_sums
from quantizer_core.calibration.instrument import instrument
from quantizer_core.calibration.log import LogReader, Record
from quantizer_core.calibration.run import CalibrationRun, checked
from quantizer_core.calibration.statistics import CalibrationStatistics, TensorStatistics, join_extremes
from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.errors import CommandError, DataError
from quantizer_core.feeds import example_of, examples_of_batch
from quantizer_core.graph.control_flow import sporadic_nodes
from quantizer_core.graph.files import TEXT_ENDING, save_graph
from quantizer_core.graph.graph import node_of
from quantizer_core.reads import ReadCounts
from quantizer_core.sample import KEPT_RECORDS, SmallestHashes, digest_of
from quantizer_core.types import PreparedGraph

#: How many of the command's last lines an error tells.
_LAST_LINES = 8


def calibrate_by_callback(
    prepared: PreparedGraph,
    command: str,
    config: QuantizationConfig,
    *,
    timeout: float | None = None,
    on_example: Callable[[int], None] | None = None,
    on_line: Callable[[str], None] | None = None,
    graph_path: str | None = None,
) -> CalibrationRun:
    """Runs a command that runs the graph on examples, and gathers what the graph prints.

    Memory does not grow with the number of examples. ``sampled_config`` returns the config to convert with.

    Args:
      prepared: the graph and what to watch in it.
      command: the command line; ``{}`` stands for the graph's path (see ``command_words``). It runs without a shell.
      config: the share of bad records to accept, and whether weights are chosen on examples (``refine_examples``): if
        not, the inputs are not printed, which make up most of the log.
      timeout: seconds that the command may take; None: any.
      on_example: called with the number of examples seen so far.
      on_line: called with each other line that the command prints.
      graph_path: where to keep the graph that prints; None: nowhere. The command gets a binary GraphDef, which that
        file is not if it is to be of text (``.pbtxt``).

    Raises:
      ConfigError: if the command is empty, or has words that only a shell understands.
      CommandError: if it cannot be started, fails, takes too long or prints no ranges.
      DataError: if a watched tensor held NaN or infinity.
    """
    command_words(command, "")  # before any work
    gathered = Gathered(prepared, on_example)
    last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)

    def note(line: str) -> None:
        last.append(line)
        if on_line is not None:
            on_line(line)

    reader = LogReader(gathered.add, note)
    with _place(graph_path) as path:
        instrumented = instrument(prepared, with_inputs=config.refine_examples > 0)
        save_graph(instrumented, path, overwrite=True)
        if graph_path is not None and graph_path.endswith(TEXT_ENDING):
            save_graph(instrumented, graph_path, overwrite=True)
        words = command_words(command, path)
        code = run_command(words, reader.feed, timeout)
    reader.finish(whole=code == 0)
    told = f"; it said last: {' | '.join(last)}" if last else "; it printed nothing else"
    if code:
        how = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
        raise CommandError(f"the calibration command {how}{told}")
    if not gathered.tensors:
        raise CommandError(
            f"the calibration command ended well, but its log holds no ranges: did it load the graph that it was given "
            f"({words[0]} … {path}), run it, fetch one of {', '.join(prepared.outputs)}, and let standard error "
            f"through?{told}"
        )
    return checked(gathered.run(), config)


def sampled_config(config: QuantizationConfig) -> QuantizationConfig:
    """Returns the config to read a callback's sample with: it holds the inputs themselves, ready to be fed."""
    return dataclasses.replace(config, preprocess=PreprocessConfig())


@contextlib.contextmanager
def _place(path: str | None) -> Iterator[str]:
    if path is not None and not path.endswith(TEXT_ENDING):
        yield os.path.abspath(path)
        return
    with tempfile.TemporaryDirectory(prefix="quantizer_") as directory:
        yield os.path.join(directory, "calibration.pb")


class Gathered:
    """What records add up to.

    Args:
      prepared: the graph that they are of.
      on_example: called with the number of examples so far.

    Attributes:
      tensors: tensor name → statistics.
    """

    def __init__(self, prepared: PreparedGraph, on_example: Callable[[int], None] | None = None):
        self.tensors: dict[str, TensorStatistics] = {}
        self._prepared = prepared
        self._sporadic = prepared.graph.remembered(sporadic_nodes)
        self._kept = SmallestHashes(KEPT_RECORDS)
        self._watched = frozenset(observed.name for observed in prepared.observed)
        self._on_example = on_example
        self._examples = self._fed = 0

    def add(self, record: Record) -> None:
        """Takes a record.

        Raises:
          CommandError: if it is of another graph.
        """
        if not record.examples:  # a batch of none
            return
        if not record.tensor:
            self._sample(record)
            return
        if record.tensor not in self._watched or len(record.arrays) not in (3, 4, 5):
            raise CommandError(f"the command's log tells of tensor {record.tensor!r}, which this graph does not watch")
        found = _statistics(record)
        known = self.tensors.get(record.tensor)
        self.tensors[record.tensor] = found if known is None else known.merge(found)
        if node_of(record.tensor) not in self._sporadic:
            self._count(self.tensors[record.tensor].examples)

    def run(self) -> CalibrationRun:
        """Returns all that was seen.

        Raises:
          CommandError: if a tensor that every run computes was never told of.
        """
        unseen = dict.fromkeys(sorted(self._watched.difference(self.tensors)), TensorStatistics())
        missing = [name for name in unseen if node_of(name) not in self._sporadic]
        if missing:
            raise CommandError(
                f"the calibration command never computed {missing[0]!r} ({len(missing)} of the {len(self._watched)} "
                f"watched tensors): it has to fetch the outputs {', '.join(self._prepared.outputs)}"
            )
        # A graph that is watched in loops and branches alone, its inputs unseen, tells of no example but by these.
        examples = self._examples or max(found.examples for found in self.tensors.values())
        statistics = CalibrationStatistics({**self.tensors, **unseen}, examples)
        return CalibrationRun(statistics, ReadCounts(examples), tuple(self._kept.chosen()))

    def _count(self, examples: int) -> None:
        if examples > self._examples:
            self._examples = examples
            if self._on_example is not None:
                self._on_example(examples)

    def _sample(self, record: Record) -> None:
        specs = self._prepared.inputs
        if len(record.arrays) != len(specs):
            raise CommandError(f"the command's log tells of {len(record.arrays)} inputs; this graph has {len(specs)}")
        self._fed += record.examples
        self._count(self._fed)
        feeds: Mapping[str, np.ndarray] = dict(zip((spec.name for spec in specs), record.arrays, strict=True))
        with contextlib.suppress(DataError):  # a batch that no example can be made of tells its ranges all the same
            for example in examples_of_batch(feeds, specs):
                digest = digest_of(example)
                if self._kept.wants(digest):
                    self._kept.add(example_of(example, specs), digest)


def _statistics(record: Record) -> TensorStatistics:
    """Returns the statistics of one run, as ``Observer`` counts them.

    Where a value is not finite, or a tensor empty, only that is told: there is one error of it in the end.
    """
    (minima, maxima), keys, counts, *channels = record.arrays
    empty = minima > maxima  # a tensor without negative values starts from 0
    nan = np.isnan(minima) | np.isnan(maxima)
    positive, negative = np.isposinf(maxima) & ~nan & ~empty, np.isneginf(minima) & ~nan & ~empty
    finite = ~(empty | nan | positive | negative)
    if not finite.all():
        return TensorStatistics(
            examples=len(minima),
            nan=int(nan.sum()),
            positive_infinite=int(positive.sum()),
            negative_infinite=int(negative.sum()),
            channel_sums=np.zeros((2, channels[0].shape[1]), np.int64) if channels else None,
            channel_extremes=(
                np.repeat(np.array([[np.inf], [-np.inf]], np.float32), channels[1].shape[1], 1)
                if len(channels) > 1
                else None
            ),
        )
    bins, places = np.unique(keys.astype(np.uint16), return_inverse=True)
    totals = np.zeros(len(bins), np.int64)
    np.add.at(totals, places, counts.astype(np.int64))
    return TensorStatistics(
        examples=len(minima),
        minimum=float(minima.min()),
        maximum=float(maxima.max()),
        finite=len(minima),
        extreme_sums=limb_sums(np.stack([minima, maxima]), -1),
        keys=bins,
        counts=totals,
        channel_sums=limb_sums(channels[0], 0) if channels else None,
        channel_extremes=join_extremes(channels[1], channels[1]) if len(channels) > 1 else None,
    )
