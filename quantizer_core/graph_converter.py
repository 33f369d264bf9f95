"""GraphConverter: the Python API of 2020, a thin face on ``prepare``, calibration and ``convert``."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from quantizer_core.calibration.callback import calibrate_by_callback
from quantizer_core.calibration.command import command_words
from quantizer_core.calibration.run import CalibrationRun, calibrate
from quantizer_core.config import QuantizationConfig
from quantizer_core.errors import ConfigError, nearest
from quantizer_core.feeds import example_of, examples_of_batch
from quantizer_core.graph.files import load_graph, save_graph
from quantizer_core.graph.names import path_beside
from quantizer_core.prepare import prepare
from quantizer_core.quantize import Conversion, convert
from quantizer_core.runtime import check_machine
from quantizer_core.stages import INSTRUMENTED, save_stages_after, save_stages_before, stage_paths
from quantizer_core.types import PreparedGraph

#: Names of 2020 for the ways from values to a range, and two more.
ALGORITHMS = {
    "DIRECT": "minmax",
    "MA": "moving_average",
    "KL": "kl",
    "PERCENTILE": "percentile",
    "MSE": "mse",
}

_log = logging.getLogger(__name__)


class GraphConverter:
    """Converts a frozen FP32 graph to INT8, calibrated by a command or by feeds.

    Set one of ``gen_calib_data_cmds`` and ``calibration_feeds``, then call ``convert``. The other attributes are the
    arguments, and may be set until then.

    Args:
      input_graph: path of a frozen GraphDef.
      output_graph: path of the INT8 graph, in a directory that exists; a file there is replaced. None: the input's name
        with ``_int8``, beside it.
      inputs, outputs: names of nodes; empty: the placeholders, and the nodes that no one reads.
      excluded_ops, excluded_nodes: op types and names of nodes that stay FP32.
      per_channel: one weight scale for each output channel instead of one for all.
      input_graph_is_binary: False lets ``input_graph`` be of text (``.pbtxt``).
      algo: a key of ``ALGORITHMS``: how values become a range.

    Attributes:
      gen_calib_data_cmds: a command line that runs the graph on a small part of the training data (see
        ``quantizer_core.calibration.command.command_words``).
      calibration_feeds: batches of examples in its place: input name → array, as a session is fed them; read once, one
        after the other.
      timeout: seconds that the command may take; None: any.
      only_faster: leave FP32 what INT8 would make slower.
      mixed_precision: leave the first layers of a classifier FP32 where their rounding costs most.
      debug: keep the intermediate graphs beside the output (see ``quantizer_core.stages``).

    Raises:
      ConfigError: for an unknown ``algo``, names that are no list, an output in no directory or in the input's place.
    """

    def __init__(
        self,
        input_graph: str | os.PathLike[str],
        output_graph: str | os.PathLike[str] | None,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        excluded_ops: Sequence[str] = (),
        excluded_nodes: Sequence[str] = (),
        per_channel: bool = False,
        input_graph_is_binary: bool = True,
        algo: str = "DIRECT",
    ):
        self.input_graph = os.fspath(input_graph)
        self.output_graph = path_beside(self.input_graph, "int8") if output_graph is None else os.fspath(output_graph)
        self.inputs, self.outputs = inputs, outputs
        self.excluded_ops, self.excluded_nodes = excluded_ops, excluded_nodes
        self.per_channel = per_channel
        self.input_graph_is_binary = input_graph_is_binary
        self.algo = algo
        self.gen_calib_data_cmds: str | None = None
        self.calibration_feeds: Iterable[Mapping[str, np.ndarray]] | None = None
        self.timeout: float | None = None
        self.only_faster = True
        self.mixed_precision = True
        self.debug = False
        self._config()

    def convert(self) -> Conversion:
        """Prepares, calibrates and converts the graph, and writes the INT8 one, which it also returns with its plan.

        Raises:
          ConfigError: see the class; or if neither or both ways of calibration are set.
          CommandError: if the command cannot be started, fails, takes too long or prints no ranges.
          MachineError, GraphError, DataError: see ``prepare``, ``calibrate`` and ``convert``.
        """
        config = self._config()
        if (self.gen_calib_data_cmds is None) == (self.calibration_feeds is None):
            raise ConfigError("set gen_calib_data_cmds (a command) or calibration_feeds (batches), one of the two")
        if self.gen_calib_data_cmds is not None:
            command_words(self.gen_calib_data_cmds, self.input_graph)
        check_machine()
        prepared = prepare(load_graph(self.input_graph, True if self.input_graph_is_binary else None), config)
        if self.debug:
            save_stages_before(prepared, self.output_graph, config.refine_examples > 0)
        run = self._calibrated(prepared, config)
        conversion = convert(prepared, run.statistics, config, run.sample)
        if self.debug:
            save_stages_after(conversion, self.output_graph)
        save_graph(conversion.graph_def, self.output_graph, overwrite=True)
        plan = conversion.plan
        _log.info("%s: %d of %d nodes in INT8", self.output_graph, plan.quantized, plan.candidates)
        return conversion

    #: As the quick start of 2020 spells it.
    covert = convert

    def _config(self) -> QuantizationConfig:
        if self.algo not in ALGORITHMS:
            raise ConfigError(
                f"algo is {self.algo!r}{nearest(str(self.algo), ALGORITHMS)}; choose one of {', '.join(ALGORITHMS)}"
            )
        directory = os.path.dirname(self.output_graph)
        if directory and not os.path.isdir(directory):
            raise ConfigError(f"output_graph: directory {directory!r} does not exist; create it first")
        if os.path.realpath(self.output_graph) == os.path.realpath(self.input_graph):
            raise ConfigError(f"output_graph and input_graph are the same path {self.input_graph!r}")
        return QuantizationConfig(
            inputs=tuple(_names("inputs", self.inputs)),
            outputs=tuple(_names("outputs", self.outputs)),
            excluded_ops=tuple(_names("excluded_ops", self.excluded_ops)),
            excluded_nodes=tuple(_names("excluded_nodes", self.excluded_nodes)),
            per_channel=self.per_channel,
            calibration_method=ALGORITHMS[self.algo],
            only_faster=self.only_faster,
            mixed_precision=self.mixed_precision,
        )

    def _calibrated(self, prepared: PreparedGraph, config: QuantizationConfig) -> CalibrationRun:
        if self.calibration_feeds is not None:
            return calibrate(prepared, _records(self.calibration_feeds, prepared), config)
        return calibrate_by_callback(
            prepared,
            self.gen_calib_data_cmds or "",
            config,
            timeout=self.timeout,
            on_line=lambda line: _log.info("%s", line),
            graph_path=stage_paths(self.output_graph)[INSTRUMENTED] if self.debug else None,
        )


def _names(option: str, names: Sequence[str] | None) -> Sequence[str]:
    if isinstance(names, str):
        raise ConfigError(f"{option} must be a list of names, not the string {names!r}")
    return names or ()


def _records(batches: Iterable[Mapping[str, np.ndarray]], prepared: PreparedGraph) -> Iterator[bytes]:
    examples = itertools.chain.from_iterable(examples_of_batch(feeds, prepared.inputs) for feeds in batches)
    return (example_of(example, prepared.inputs) for example in examples)
