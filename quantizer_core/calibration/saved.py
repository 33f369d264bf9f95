"""What calibration saw, as a file: everything needed to convert again, with other choices, without the data.

A saved calibration is a TFRecord file, whose records carry checksums: a JSON header, the statistics, and the bounded
sample of examples that weights are chosen on. The same calibration gives the same bytes. It holds examples of the data,
so treat it as you treat these.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from quantizer_core.calibration.run import CalibrationRun, checked
from quantizer_core.calibration.statistics import CalibrationStatistics
from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.data.tfrecords import read_tfrecords
from quantizer_core.errors import ConfigError, DataError
from quantizer_core.reads import ReadCounts
from quantizer_core.types import PreparedGraph
from quantizer_core.version import VERSION
from quantizer_core.whole_file import whole_file

_logger = logging.getLogger(__name__)

#: The file's name in a directory that holds a saved calibration, as a pipeline's artifact does.
CALIBRATION_FILE = "calibration.ranges"

_FORMAT = "quantizer calibration"
_FORMAT_VERSION = 1
_EXCLUSIONS = ("excluded_nodes", "excluded_ops")
#: What shapes an example's tensors, by the kind of preprocessing; labels and the other kinds' options do not.
_SHAPING = {
    "tensors": ("kind", "features"),
    "image": ("kind", "image_key", "image_size", "resize", "normalize", "bgr"),
    "module": ("kind",),
}


@dataclasses.dataclass(frozen=True)
class SavedCalibration:
    """What calibration saw, and of what.

    Attributes:
      run: statistics, counts and sample.
      fingerprint: of the prepared graph, its inputs and outputs (see ``fingerprint_of``).
      inputs, outputs: node names.
      preprocess: what shaped the examples' tensors, as JSON data; a module by the SHA-256 of its file.
      excluded_nodes, excluded_ops: what was to stay FP32, and so was not watched.
      source: what the examples were: a path, or the split of a pipeline's examples.
      core_version: the version of the product that calibrated.
    """

    run: CalibrationRun
    fingerprint: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    preprocess: Mapping[str, Any]
    excluded_nodes: tuple[str, ...] = ()
    excluded_ops: tuple[str, ...] = ()
    source: str = ""
    core_version: str = VERSION

    @classmethod
    def of(
        cls, run: CalibrationRun, prepared: PreparedGraph, config: QuantizationConfig, source: str = ""
    ) -> SavedCalibration:
        """Returns a run with what it was of, ready to be written.

        Raises:
          ConfigError: if the preprocessing is a module that cannot be read.
        """
        return cls(
            run=run,
            fingerprint=fingerprint_of(prepared),
            inputs=tuple(spec.name for spec in prepared.inputs),
            outputs=prepared.outputs,
            preprocess=_shaping(config.preprocess),
            excluded_nodes=config.excluded_nodes,
            excluded_ops=config.excluded_ops,
            source=source,
        )

    def run_for(
        self, prepared: PreparedGraph, config: QuantizationConfig, name: str = "the saved calibration"
    ) -> CalibrationRun:
        """Returns the run for another conversion of the same graph: other methods, exclusions, granularity, rounding.

        Its statistics are those of the tensors that this conversion watches, so it converts to the very graph that
        calibrating again on the same examples would give (at the same batch size).

        Args:
          prepared: the graph as prepared for the new conversion.
          config: the new choices.
          name: what errors call this calibration.

        Raises:
          ConfigError: if the calibration is of another graph, other inputs or outputs, or another preprocessing; or
            if it did not watch a tensor that is needed now, because the node was excluded then.
          DataError: as ``calibrate`` does.
        """
        problem = self._other_graph(prepared, config) or self._other_preprocessing(config)
        if problem:
            raise ConfigError(f"{name} {problem}")
        tensors = {}
        for observed in prepared.observed:
            found = self.run.statistics.tensors.get(observed.name)
            if found is None or (observed.channel_axis is not None and found.finite and found.channel_sums is None):
                raise ConfigError(f"{name} {self._lacks(observed.name, found is None, config)}")
            if observed.channel_axis is None:
                found = dataclasses.replace(found, channel_sums=None, channel_extremes=None)
            tensors[observed.name] = found
        if config.refine_examples and self.run.reads.read and not self.run.hashed:
            _logger.warning("%s holds no examples: weights are rounded to nearest, as without refine_examples", name)
        statistics = CalibrationStatistics(tensors, self.run.statistics.num_examples)
        return checked(dataclasses.replace(self.run, statistics=statistics), config)

    def _other_graph(self, prepared: PreparedGraph, config: QuantizationConfig) -> str:
        for what, mine, theirs in (
            ("inputs", self.inputs, tuple(spec.name for spec in prepared.inputs)),
            ("outputs", self.outputs, prepared.outputs),
        ):
            if mine != theirs:
                return f"is of a graph with the {what} {', '.join(mine)}, not {', '.join(theirs)}; calibrate this graph"
        if self.fingerprint == fingerprint_of(prepared):
            return ""
        by = f" (by version {self.core_version}; this is {VERSION})" if self.core_version != VERSION else ""
        excluded = (self.excluded_nodes, self.excluded_ops), (config.excluded_nodes, config.excluded_ops)
        rewritten = ""
        if excluded[0] != excluded[1]:
            then, now = (", ".join(itertools.chain(*each)) or "nothing" for each in excluded)
            rewritten = f" (what is excluded is not folded into kernels: it was {then}, and is {now})"
        return f"is of another graph{by}: its nodes or weights differ{rewritten}; calibrate this graph"

    def _other_preprocessing(self, config: QuantizationConfig) -> str:
        mine, theirs = self.preprocess, _shaping(config.preprocess)
        for key in sorted({*mine, *theirs}, key=lambda key: (key != "kind", key)):
            if mine.get(key) != theirs.get(key):
                return (
                    f"was made with the preprocessing option {key}={json.dumps(mine.get(key))}, and this conversion "
                    f"has {json.dumps(theirs.get(key))}; give the same, or calibrate again"
                )
        return ""

    def _lacks(self, tensor: str, whole: bool, config: QuantizationConfig) -> str:
        what = "did not watch" if whole else "has no channel means of"
        then, now = (
            " and ".join(f"{key}={','.join(getattr(each, key))}" for key in _EXCLUSIONS if getattr(each, key))
            for each in (self, config)
        )
        return (
            f"{what} tensor {tensor!r}, which this conversion needs: it was made with {then or 'nothing excluded'}, "
            f"and this conversion has {now or 'nothing excluded'}; calibrate again"
        )


def fingerprint_of(prepared: PreparedGraph) -> str:
    """Returns the SHA-256 of a prepared graph's nodes and functions, in hexadecimal digits."""
    digest = hashlib.sha256()
    for message in (*prepared.graph_def.node, *prepared.graph_def.library.function):
        data = message.SerializeToString(deterministic=True)
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _shaping(preprocess: PreprocessConfig) -> dict[str, Any]:
    found = {name: getattr(preprocess, name) for name in _SHAPING[preprocess.kind]}
    if preprocess.module_file:
        try:
            with tf.io.gfile.GFile(preprocess.module_file, "rb") as file:
                found["module"] = hashlib.sha256(file.read()).hexdigest()
        except tf.errors.OpError as error:
            raise ConfigError(f"module_file {preprocess.module_file!r} cannot be read: {error.message}") from None
    plain: dict[str, Any] = json.loads(json.dumps(found))  # tuples become the lists that a header gives back
    return plain


def save_calibration(saved: SavedCalibration, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Writes a saved calibration to any path that TensorFlow's file system knows: whole, or not at all.

    Raises:
      ConfigError: if the path exists (unless ``overwrite``).
      DataError: if it cannot be written.
    """
    path = os.fspath(path)
    if tf.io.gfile.isdir(path):
        raise ConfigError(f"cannot write {path!r}: it exists and is a directory; name a file inside it")
    if tf.io.gfile.exists(path) and not overwrite:
        raise ConfigError(f"cannot write {path!r}: it exists already; remove it, or ask for it to be overwritten")
    try:
        with whole_file(path, overwrite) as temporary, tf.io.TFRecordWriter(temporary) as writer:
            for record in _records(saved):
                writer.write(record)
    except tf.errors.OpError as error:
        raise DataError(f"cannot write {path!r}: {error.message}") from None


def _records(saved: SavedCalibration) -> Iterator[bytes]:
    header = {field.name: getattr(saved, field.name) for field in dataclasses.fields(saved) if field.name != "run"}
    header |= {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "reads": json.loads(saved.run.reads.to_bytes()),
        "sample": [digest.hex() for digest, _ in saved.run.hashed],
    }
    yield json.dumps(header, sort_keys=True).encode()
    yield saved.run.statistics.to_bytes()
    for _, record in saved.run.hashed:
        yield record


def load_calibration(path: str | os.PathLike[str]) -> SavedCalibration:
    """Reads a saved calibration.

    Args:
      path: the file, or the directory that holds it as ``calibration.ranges`` (a pipeline's artifact).

    Raises:
      ConfigError: if there is none.
      DataError: if it is something else, of a later format, damaged or cut short.
    """
    path = os.fspath(path)
    if tf.io.gfile.isdir(path):
        directory, path = path, os.path.join(path, CALIBRATION_FILE)
        if not tf.io.gfile.exists(path):
            raise ConfigError(f"directory {directory!r} holds no {CALIBRATION_FILE}; it is no saved calibration")
    if not tf.io.gfile.exists(path):
        raise ConfigError(f"{path!r} does not exist; expected a saved calibration")
    foreign = f"{path!r} is no saved calibration: convert --save_calibration and the Quantizer write them"
    records = read_tfrecords([path])
    try:
        header = json.loads(next(records, b""))
        if header["format"] != _FORMAT:
            raise DataError(foreign)
    except (ValueError, KeyError, TypeError):  # JSON's and Unicode's errors are ValueErrors
        raise DataError(foreign) from None
    except DataError as error:
        raise DataError(f"{foreign} ({error})") from None
    if header.get("format_version") != _FORMAT_VERSION:
        raise DataError(
            f"{path!r} is a saved calibration of format {header.get('format_version')}, by version "
            f"{header.get('core_version')}; this version reads format {_FORMAT_VERSION}: calibrate again"
        )
    return _parse(path, header, records)


def _parse(path: str, header: Mapping[str, Any], records: Iterator[bytes]) -> SavedCalibration:
    try:
        statistics = CalibrationStatistics.from_bytes(next(records, b""))
        digests = [bytes.fromhex(digest) for digest in header["sample"]]
        sample = list(records)
        if len(sample) != len(digests):
            raise DataError(f"it holds {len(sample)} of the {len(digests)} examples of its sample")
        reads = ReadCounts.from_bytes(json.dumps(header["reads"]).encode())
        run = CalibrationRun(statistics, reads, tuple(zip(digests, sample, strict=True)))
        return SavedCalibration(
            run=run,
            fingerprint=header["fingerprint"],
            inputs=tuple(header["inputs"]),
            outputs=tuple(header["outputs"]),
            preprocess=header["preprocess"],
            excluded_nodes=tuple(header["excluded_nodes"]),
            excluded_ops=tuple(header["excluded_ops"]),
            source=header["source"],
            core_version=header["core_version"],
        )
    except (DataError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path!r} is damaged or cut short: {error}") from None
