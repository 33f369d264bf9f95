"""read_examples: whatever a user points at, as serialized examples."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf

from quantizer_core.data.folders import DEFAULT_EXTENSIONS, is_folder_of_files, read_folder
from quantizer_core.data.labels import LabelSource
from quantizer_core.data.tfrecords import read_tfrecords
from quantizer_core.errors import ConfigError, DataError

_FILES = tuple(ending for kind in DEFAULT_EXTENSIONS for ending in kind)
#: How files of TFRecords are called: by their kind, or as one of several (``train-00000-of-01024``, but not the data of
#: a checkpoint). In a folder of nothing else, whatever has the kind in its name or is compressed is taken too.
_RECORD_NAME = re.compile(
    r"(?!.*\.data-).*(\.?tfrecords?|\.records?|-\d{5}-of-\d{5})(-\d+-of-\d+)?(\.gz)?", re.IGNORECASE
)
_MAYBE_RECORD_NAME = re.compile(rf"{_RECORD_NAME.pattern}|.*tfrecord.*|.*\.gz", re.IGNORECASE)


def read_examples(
    path: str | os.PathLike[str],
    *,
    labels: str | LabelSource | None = None,
    classes: Sequence[str] | None = None,
    label_key: str = "image/class/label",
    image_key: str = "image/encoded",
    extensions: Sequence[str] | None = None,
) -> Iterator[bytes]:
    """Returns an iterator over the serialized ``tf.Example``s at a path, always in the same order.

    Args:
      path: a folder of images or WAV files (see ``read_folder``), or TFRecord files: one file, a glob pattern
        (``data/train-*.gz``) or a folder, read in the order of their names.
      labels: for folders of files: a CSV file, ``FILE.csv[:NAME_COLUMN[:LABEL_COLUMN[:OFFSET]]]``.
      classes: for folders of class folders: their names in the order of the class index.
      label_key: for folders of files: the feature that gets the class.
      image_key: for folders of files: the feature that gets the file's bytes.
      extensions: for folders of files: which to take.

    Raises:
      ConfigError: if labels, classes or extensions are given for TFRecords.
      DataError: at once if nothing is there, or a folder holds images and TFRecords; while iterating if something
        cannot be read.
    """
    path = os.fspath(path)
    if is_folder_of_files(path, extensions):
        records = [] if extensions else _files_of_names(path, _RECORD_NAME)
        if records:
            raise DataError(
                f"folder {path!r} holds TFRecords ({os.path.basename(records[0])}) and images or sounds: name those "
                f"by a pattern ({os.path.join(path, '*tfrecord*')!r}), or move them apart"
            )
        return read_folder(
            path, labels=labels, classes=classes, label_key=label_key, image_key=image_key, extensions=extensions
        )
    files = _record_files(path)
    if labels or classes or extensions:
        raise ConfigError(f"labels, classes and extensions go with a folder of files; {path!r} is read as TFRecords")
    return read_tfrecords(files)


def _record_files(path: str) -> list[str]:
    if tf.io.gfile.isdir(path):
        files = _files_of_names(path, _MAYBE_RECORD_NAME)
        if not files:
            raise DataError(
                f"folder {path!r} holds neither files of {', '.join(_FILES)} nor TFRecords (*tfrecord*, *.record, "
                "*.gz, *-00000-of-00001)"
            )
        return files
    try:
        if tf.io.gfile.exists(path):  # whatever characters are in its name
            return [path]
        files = _not_folders(sorted(tf.io.gfile.glob(path)))
    except tf.errors.OpError:
        files = []
    if not files:
        raise DataError(f"no examples at {path!r}: no such file or folder, and no file matches it as a pattern")
    return files


def _files_of_names(folder: str, wanted: re.Pattern[str]) -> list[str]:
    names = [name for name in sorted(tf.io.gfile.listdir(folder)) if not name.startswith((".", "_"))]
    return _not_folders(os.path.join(folder, name) for name in names if wanted.fullmatch(name))


def _not_folders(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if not tf.io.gfile.isdir(path)]
