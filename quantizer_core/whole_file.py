"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator

import tensorflow as tf

from quantizer_core.errors import QuantizerError


@contextlib.contextmanager
def whole_file(path: str, overwrite: bool) -> Iterator[str]:
    """Yields a temporary name in the same directory to write to, and renames it to ``path`` when that is done.

    Nothing is left if the writing fails, and a file that is there stays as it was.

    Args:
      path: any path that TensorFlow's file system knows.
      overwrite: whether a file of that name may be replaced.

    Raises:
      tf.errors.OpError: if the file cannot be renamed.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        tf.io.gfile.rename(temporary, path, overwrite=overwrite)
    finally:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.remove(temporary)


def write_text(path: str, text: str) -> None:
    """Writes a text file, in place of one that is there; raises QuantizerError if that cannot be done."""
    try:
        with whole_file(path, overwrite=True) as temporary, tf.io.gfile.GFile(temporary, "w") as file:
            file.write(text)
    except tf.errors.OpError as error:
        raise QuantizerError(f"cannot write {path!r}: {error.message}") from None
