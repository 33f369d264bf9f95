"""Where the examples of a split lie, for the Quantizer's Beam pipelines to read, and the first of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import tensorflow as tf
from tfx.components.util import examples_utils
from tfx.proto import example_gen_pb2
from tfx.types import Artifact, artifact_utils

from quantizer_core.data.tfrecords import read_tfrecords
from quantizer_core.errors import DataError, nearest

_TF_EXAMPLE = example_gen_pb2.PayloadFormat.FORMAT_TF_EXAMPLE
#: Files that are read in turn.
_OPEN_FILES = 16
_TFRECORD_FILES = ("tfrecords_gzip", "FORMAT_TFRECORDS_GZIP")


def split_patterns(examples: Sequence[Artifact], split: str) -> list[str]:
    """Returns the file patterns of a split, one an artifact.

    Raises:
      DataError: if the payload is not ``tf.Example``, the files are not TFRecords, an artifact has no such split (the
        known ones are named) or no file matches.
    """
    patterns = []
    for artifact in examples:
        payload = examples_utils.get_payload_format(artifact)
        if payload != _TF_EXAMPLE:
            raise DataError(
                f"the examples at {artifact.uri} have the payload format "
                f"{example_gen_pb2.PayloadFormat.Name(payload)}; only FORMAT_TF_EXAMPLE can be read"
            )
        file_format = examples_utils.get_file_format(artifact)
        if file_format not in _TFRECORD_FILES:
            raise DataError(f"the examples at {artifact.uri} are {file_format} files; only TFRecords can be read")
        known = sorted(artifact_utils.decode_split_names(artifact.split_names))
        if split not in known:
            raise DataError(
                f"the examples at {artifact.uri} have no split {split!r}{nearest(split, known)}; "
                f"they have {', '.join(known) or 'none'}"
            )
        pattern = examples_utils.get_split_file_patterns([artifact], split)[0]
        if not tf.io.gfile.glob(pattern):
            raise DataError(f"split {split!r} is empty: no file matches {pattern}")
        patterns.append(pattern)
    return patterns


def records_in_turn(patterns: Sequence[str]) -> Iterator[bytes]:
    """Yields the first record of each file, then the second of each, and so on; of many files, of some at a time.

    Raises:
      DataError: while iterating, if a file cannot be read, or in the end if there was no record.
    """
    files = [path for pattern in patterns for path in sorted(tf.io.gfile.glob(pattern))]
    found = False
    for start in range(0, len(files), _OPEN_FILES):
        readers = [read_tfrecords([path]) for path in files[start : start + _OPEN_FILES]]
        while readers:
            for reader in list(readers):
                record = next(reader, None)
                if record is None:
                    readers.remove(reader)
                else:
                    found = True
                    yield record
    if not found:
        raise DataError(f"there are no examples in {', '.join(patterns)}")
