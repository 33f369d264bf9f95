"""Labels from a CSV file: file name → class."""

from __future__ import annotations

import csv
import io
import os
import re
from typing import NamedTuple

import tensorflow as tf

from quantizer_core.errors import ConfigError, DataError, nearest

_SPEC = re.compile(r"(?P<path>.+?\.csv)(?::(?P<name>[^:]*)(?::(?P<label>[^:]*)(?::(?P<offset>[+-]?\d+))?)?)?", re.I)


class LabelSource(NamedTuple):
    """Where labels come from: a CSV file, its two columns ('' for the default) and a number added to each label."""

    path: str
    name_column: str = ""
    label_column: str = ""
    offset: int = 0


def parse_labels(text: str) -> LabelSource:
    """Reads ``FILE.csv[:NAME_COLUMN[:LABEL_COLUMN[:OFFSET]]]``, for example ``images.csv:ImageId:TrueLabel:-1``.

    Raises:
      ConfigError: if the text has another form.
    """
    match = _SPEC.fullmatch(text)
    if match is None:
        raise ConfigError(f"labels {text!r} is not of the form FILE.csv[:NAME_COLUMN[:LABEL_COLUMN[:OFFSET]]]")
    return LabelSource(match["path"], match["name"] or "", match["label"] or "", int(match["offset"] or 0))


def read_labels(source: str | LabelSource) -> dict[str, int]:
    """Returns file name (as in the file, with or without extension) → class.

    Without column names the first column holds the name and the second the label, and a first row whose label is a
    number is data, not a heading.

    Raises:
      ConfigError: for an unknown column (the nearest is named), or one that is to hold both.
      DataError: if the file cannot be read, is empty, names a file twice, or holds a label that is no integer.
    """
    if isinstance(source, str):
        source = parse_labels(source)
    rows = _rows(source.path)
    name_index = label_index = None
    if source.name_column or source.label_column or not _is_data(rows[0]):
        heading, rows = [title.strip() for title in rows[0]], rows[1:]
        name_index = _column(heading, source.name_column, source.path)
        label_index = _column(heading, source.label_column, source.path)
    name_index = 0 if name_index is None else name_index
    label_index = 1 if label_index is None else label_index
    if name_index == label_index:
        raise ConfigError(
            f"labels file {source.path!r}: column {name_index + 1} would hold both names and labels; name both columns"
        )
    labels: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{source.path!r}, data row {number}"
        if len(row) <= max(name_index, label_index):
            raise DataError(f"{where} has {len(row)} columns, the label is in column {label_index + 1}")
        name, text = row[name_index].strip(), row[label_index].strip()
        if name in labels:
            raise DataError(f"{where} names {name!r} a second time")
        try:
            labels[name] = int(text) + source.offset
        except ValueError:
            raise DataError(f"{where}: the label {text!r} of {name!r} is no integer") from None
        if not -(1 << 63) <= labels[name] < 1 << 63:
            raise DataError(f"{where}: the label {text!r} of {name!r} is no class: it has more than 64 bits")
    return labels


def label_of(labels: dict[str, int], relative_path: str, source: str) -> int:
    """Returns the label of a file, looked for by path, by name, and by each of them without its extension.

    Raises:
      DataError: if there is none; the nearest name is given.
    """
    name = os.path.basename(relative_path)
    for key in (relative_path, os.path.splitext(relative_path)[0], name, os.path.splitext(name)[0]):
        if key in labels:
            return labels[key]
    raise DataError(f"{source!r} has no label for file {relative_path!r}{nearest(name, labels)}")


def _rows(path: str) -> list[list[str]]:
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except tf.errors.OpError as error:
        raise DataError(f"labels file {path!r} cannot be read: {error.message}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"labels file {path!r} is no UTF-8 text: {error}") from None
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise DataError(f"labels file {path!r} is no CSV: {error}") from None
    if not rows:
        raise DataError(f"labels file {path!r} is empty")
    return rows


def _is_data(row: list[str]) -> bool:
    return len(row) > 1 and re.fullmatch(r"\s*[+-]?\d+\s*", row[1]) is not None


def _column(heading: list[str], name: str, path: str) -> int | None:
    if not name:
        return None
    if name not in heading:
        raise ConfigError(f"labels file {path!r} has no column {name!r}{nearest(name, heading)}")
    return heading.index(name)
