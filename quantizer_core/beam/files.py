"""What goes into a Beam pipeline, the records of TFRecord files, and what comes out, one object in a file."""

from __future__ import annotations

import hashlib
import os
import pickle
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import tensorflow as tf
from apache_beam.io.filesystems import FileSystems

from quantizer_core.data.tfrecords import read_tfrecords
from quantizer_core.errors import DataError

_PARTIAL = ".partial"


class ReadRecords(beam.PTransform):
    """Reads the TFRecord files of some patterns, as ``read_tfrecords`` does: PBegin → PCollection[bytes].

    The pipeline fails with DataError if a file is damaged, which it names, and if a worker does not see the files that
    are seen where the pipeline is made, by path and size: Beam itself would read nothing and say nothing. Workers need
    not know local paths if the patterns are none.

    Raises:
      DataError: if no file matches a pattern.
    """

    def __init__(self, patterns: Sequence[str]):
        super().__init__()
        self._patterns = list(patterns)

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[bytes]:
        seen = [(pattern, _files(pattern)) for pattern in self._patterns]
        for pattern, files in seen:
            if not files:
                raise DataError(f"no file matches {pattern}")
        return (
            pipeline
            | "Patterns" >> beam.Create([(pattern, len(files), _digest(files)) for pattern, files in seen])
            | "Files" >> beam.FlatMapTuple(_checked_files)
            | "SpreadFiles" >> beam.Reshuffle()
            | "ReadFiles" >> beam.FlatMap(_records)
        )


def _files(pattern: str) -> list[tuple[str, int]]:
    """Returns the paths and sizes in bytes of a pattern's files, by path."""
    return sorted((file.path, file.size_in_bytes) for file in FileSystems.match([pattern])[0].metadata_list)


def _digest(files: Sequence[tuple[str, int]]) -> str:
    return hashlib.sha256(repr(files).encode()).hexdigest()


def _checked_files(pattern: str, wanted: int, digest: str) -> list[str]:
    found = _files(pattern)
    if len(found) != wanted:
        raise DataError(
            f"a Beam worker sees {len(found)} of the {wanted} files {pattern}: put them where all workers can read them"
        )
    if _digest(found) != digest:
        raise DataError(
            f"a Beam worker sees files {pattern} of other names or sizes than the process that made the pipeline: "
            "put them where all workers can read them"
        )
    return [path for path, _ in found]


def _records(path: str) -> Iterator[bytes]:
    return read_tfrecords([path])


class WriteOne(beam.PTransform):
    """Writes a PCollection's only element to files for ``read_one``; the only sink of its pipeline.

    Each attempt to write goes to a file of its own, named by its contents, and is renamed when it is whole: a bundle
    that a runner tries twice leaves the same file, never a mixture, and a second element is not lost in the first.
    """

    def __init__(self, path: str):
        super().__init__()
        self._path = path

    def expand(self, elements: beam.PCollection[Any]) -> beam.PCollection[None]:
        return elements | "Write" >> beam.Map(_write_pickle, self._path)


def _write_pickle(element: Any, path: str) -> None:
    data = pickle.dumps(element)
    whole = f"{path}-{hashlib.sha256(data).hexdigest()[:16]}"
    partial = f"{whole}.{uuid.uuid4().hex}{_PARTIAL}"
    try:
        with tf.io.gfile.GFile(partial, "wb") as file:
            file.write(data)
        tf.io.gfile.rename(partial, whole, overwrite=True)
    finally:
        if tf.io.gfile.exists(partial):
            tf.io.gfile.remove(partial)


def read_one(path: str) -> Any:
    """Reads the object that ``WriteOne`` wrote to ``path``, once the pipeline is done.

    Raises:
      DataError: if there is none (a runner that lost it may have said "done" all the same), or there are several that
        are not equal.
    """
    folder, name = os.path.split(path)
    found = [
        file for file in sorted(tf.io.gfile.listdir(folder)) if file.startswith(f"{name}-") and _PARTIAL not in file
    ]
    if not found:
        raise DataError(f"the Beam pipeline ended without writing {name}; see the runner's log")
    elements = []
    for file in found:
        with tf.io.gfile.GFile(os.path.join(folder, file), "rb") as opened:
            elements.append(pickle.loads(opened.read()))
    if any(element != elements[0] for element in elements[1:]):
        raise DataError(
            f"the Beam pipeline wrote {len(elements)} different results to {name}, not one; see the runner's log"
        )
    return elements[0]
