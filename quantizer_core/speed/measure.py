"""Times graphs over threads and batch sizes, each setting in a process of its own, graphs in turn."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorflow.core.framework import graph_pb2

from quantizer_core.errors import QuantizerError
from quantizer_core.graph.files import save_graph
from quantizer_core.onednn import onednn_environment
from quantizer_core.runtime import batch_limit, stack_batch
from quantizer_core.speed.feeds import Feeds, save_feeds
from quantizer_core.types import TensorSpec


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a graph is run: size of the thread pools, examples a step."""

    threads: int
    batch: int


@dataclasses.dataclass(frozen=True)
class Timing:
    """The times of one graph in one setting.

    Attributes:
      graph: the name it was given.
      setting: how it was run.
      milliseconds: the median time of a step, one a repeat; repeats of the graphs took turns.
    """

    graph: str
    setting: Setting
    milliseconds: tuple[float, ...]

    @property
    def latency(self) -> float:
        """Milliseconds of a step, the median of the repeats."""
        return statistics.median(self.milliseconds)

    @property
    def throughput(self) -> float:
        """Examples a second."""
        return 1000 * self.setting.batch / self.latency

    def speedup_over(self, other: Timing) -> tuple[float, float, float]:
        """Returns how many times faster than ``other``: median, least and most, of repeats that ran side by side."""
        ratios = [theirs / ours for ours, theirs in zip(self.milliseconds, other.milliseconds, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


@dataclasses.dataclass(frozen=True)
class NodeTime:
    """Mean microseconds that a node takes in one step; ``op`` is its type in the graph as TensorFlow runs it."""

    node: str
    op: str
    microseconds: float


@dataclasses.dataclass(frozen=True)
class Trace:
    """Where the time of a graph's step goes: its nodes, slowest first."""

    graph: str
    setting: Setting
    nodes: tuple[NodeTime, ...]

    @property
    def total(self) -> float:
        """Microseconds of all nodes; with one thread, nearly those of the step."""
        return sum(node.microseconds for node in self.nodes)

    def by_op(self) -> dict[str, tuple[int, float]]:
        """Returns op type → number of nodes and their microseconds, slowest first."""
        sums: dict[str, tuple[int, float]] = {}
        for node in self.nodes:
            count, time = sums.get(node.op, (0, 0.0))
            sums[node.op] = (count + 1, time + node.microseconds)
        return dict(sorted(sums.items(), key=lambda item: -item[1][1]))


def batches_for(inputs: Sequence[TensorSpec], wanted: Sequence[int]) -> tuple[int, ...]:
    """Returns the batch sizes to time: those wanted, or the one that the graph fixes."""
    fixed = batch_limit(inputs)
    return tuple(dict.fromkeys(wanted)) if fixed is None else (fixed,)


def in_turn(names: Iterable[str], repeat: int) -> list[str]:
    """Returns who follows whom in a repeat: in order, then backwards: a machine that slows down favours no one."""
    return list(names)[:: -1 if repeat % 2 else 1]


class Bench:
    """Graphs and feeds written out for the processes that time them.

    Use it as a context manager: the files are in a temporary folder.

    Args:
      graphs: name → frozen graph; all have the same inputs and outputs.
      inputs, outputs: of the graphs.
      examples: what to feed, input → array without batch dimension; a batch repeats them as often as it takes.
      bfloat16: names of graphs in which TensorFlow may compute in bfloat16.
    """

    def __init__(
        self,
        graphs: Mapping[str, graph_pb2.GraphDef],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[str],
        examples: Sequence[Feeds],
        bfloat16: Collection[str] = (),
    ):
        self._inputs, self._outputs, self._examples = tuple(inputs), tuple(outputs), tuple(examples)
        self._graphs, self._bfloat16 = dict(graphs), frozenset(bfloat16)
        self._folder = tempfile.TemporaryDirectory(prefix="quantizer_benchmark_")

    def __enter__(self) -> Bench:
        for index, graph_def in enumerate(self._graphs.values()):
            save_graph(graph_def, str(self._graph_path(index)), overwrite=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def time(
        self,
        settings: Sequence[Setting],
        repeats: int,
        seconds: float,
        on_done: Callable[[int, int], None] | None = None,
    ) -> list[Timing]:
        """Times every graph in every setting.

        In each repeat the graphs follow each other in one setting before the next setting begins, so that what slows
        the machine for a while meets them all; every other time backwards (see ``in_turn``).

        Args:
          settings: how to run.
          repeats: how often.
          seconds: how long a graph runs each time, after the steps that warm it up; three steps at least.
          on_done: called with the number of processes done and of all.

        Returns:
          One timing a setting and graph, in their order.

        Raises:
          QuantizerError: if a graph cannot be run.
        """
        found: dict[tuple[Setting, str], list[float]] = {}
        total, done = repeats * len(settings) * len(self._graphs), 0
        for repeat in range(repeats):
            for setting in settings:
                for name in in_turn(self._graphs, repeat):
                    found.setdefault((setting, name), []).append(self.once(name, setting, seconds))
                    done += 1
                    if on_done is not None:
                        on_done(done, total)
        return [Timing(name, setting, tuple(times)) for (setting, name), times in found.items()]

    def once(self, name: str, setting: Setting, seconds: float) -> float:
        """Returns the median milliseconds of a step of one graph, in a process of its own; see ``time``."""
        return float(self._child(name, setting, {"seconds": seconds})["milliseconds"])

    def trace(self, name: str, setting: Setting, timeline: str = "") -> Trace:
        """Returns the time of each node of a graph; writes them as a Chrome trace too if a path is given.

        Raises:
          QuantizerError: if the graph cannot be run, or the file not be written.
        """
        answer = self._child(name, setting, {"trace": True, "timeline": timeline})
        return Trace(name, setting, tuple(NodeTime(*node) for node in answer["nodes"]))

    def _graph_path(self, index: int) -> Path:
        return Path(self._folder.name) / f"graph_{index}.pb"

    def _feeds_path(self, batch: int) -> Path:
        path = Path(self._folder.name) / f"feeds_{batch}"
        if not path.exists():
            taken = [self._examples[index % len(self._examples)] for index in range(batch)]
            save_feeds(stack_batch(taken, self._inputs, batch), path)
        return path

    def _child(self, name: str, setting: Setting, task: Mapping[str, Any]) -> dict[str, Any]:
        request = {
            "graph": str(self._graph_path(list(self._graphs).index(name))),
            "inputs": [dataclasses.asdict(spec) for spec in self._inputs],
            "outputs": self._outputs,
            "feeds": str(self._feeds_path(setting.batch)),
            "threads": setting.threads,
            "bfloat16": name in self._bfloat16,
            **task,
        }
        done = subprocess.run(
            [sys.executable, "-m", "quantizer_core.speed.child"],
            input=json.dumps(request),
            env=onednn_environment(),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            reason = done.stderr.strip().splitlines() or [f"the process ended with exit code {done.returncode}"]
            where = f"{setting.threads} threads and batch {setting.batch}"
            raise QuantizerError(f"the {name} graph cannot be timed with {where}: {reason[-1]}")
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer
