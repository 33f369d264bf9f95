"""A folder of images (or other files) as examples: the files' bytes as they are, and their classes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import tensorflow as tf

from quantizer_core.data.examples import bytes_feature, int64_feature, serialize
from quantizer_core.data.labels import LabelSource, label_of, parse_labels, read_labels
from quantizer_core.errors import ConfigError, DataError, nearest

IMAGE_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
#: What a folder is searched for if nothing is said: the first of these kinds that it holds.
DEFAULT_EXTENSIONS = (IMAGE_EXTENSIONS, (".wav",))


def find_files(folder: str, extensions: Sequence[str] | None = None) -> list[str]:
    """Returns the paths, relative to the folder, of its files of one kind, sub-folders included.

    Each sub-folder gives one file in turn, in the order of the names, so that the first files of a folder of class
    folders hold all classes. Names that begin with a dot are passed over, as is what the Mac puts into archives
    (``__MACOSX``), and a link to a folder in which it lies.

    Raises:
      DataError: if the folder does not exist, or one cannot be read or holds a name that is no UTF-8.
    """
    found: list[str] = []
    above: dict[str, frozenset[str]] = {}  # directory → where it and those above really are, links followed
    if not tf.io.gfile.isdir(folder):
        raise DataError(f"folder {folder!r} does not exist, or is none")
    try:
        for directory, folders, names in tf.io.gfile.walk(folder):
            directory = directory.rstrip("/")
            known = above.get(os.path.dirname(directory), frozenset()) | {os.path.realpath(directory)}
            above[directory] = known
            folders[:] = [
                name for name in folders
                if not _passed_over(name) and os.path.realpath(os.path.join(directory, name)) not in known
            ]  # fmt: skip
            relative = os.path.relpath(directory, folder) if directory != folder.rstrip("/") else ""
            found.extend(os.path.join(relative, name) for name in names if not name.startswith("."))
    except tf.errors.OpError as error:
        raise DataError(f"folder {folder!r} cannot be read: {error.message}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"folder {folder!r} holds a name that is no UTF-8: {error.object!r}") from None
    for wanted in (tuple(extensions),) if extensions else DEFAULT_EXTENSIONS:
        endings = tuple("." + ending.lower().lstrip(".") for ending in wanted)
        files = [path for path in found if path.lower().endswith(endings)]
        if files:
            return _in_turn(files)
    return []


def _passed_over(folder: str) -> bool:
    return folder.startswith(".") or folder.rstrip("/") == "__MACOSX"


def is_folder_of_files(path: str, extensions: Sequence[str] | None = None) -> bool:
    """Tells whether a path is a folder of images (or other files), which ``read_folder`` reads."""
    return tf.io.gfile.isdir(path) and bool(find_files(path, extensions))


def _in_turn(files: Sequence[str]) -> list[str]:
    folders: dict[str, list[str]] = {}
    for path in sorted(files):
        folders.setdefault(os.path.dirname(path), []).append(path)
    turns = [(turn, os.path.basename(path), path) for paths in folders.values() for turn, path in enumerate(paths)]
    return [path for _, _, path in sorted(turns)]


def read_folder(
    folder: str,
    *,
    labels: str | LabelSource | None = None,
    classes: Sequence[str] | None = None,
    label_key: str = "image/class/label",
    image_key: str = "image/encoded",
    extensions: Sequence[str] | None = None,
) -> Iterator[bytes]:
    """Yields one serialized example a file, in the order of ``find_files``.

    Features: ``image_key`` (the file's bytes), ``label_key`` (int64, where a class is known), and for images
    ``image/filename`` and ``image/format`` (``jpeg``, ``png``…), for other files ``filename``.

    Args:
      folder: any path that TensorFlow knows.
      labels: a CSV file with the classes, see ``parse_labels``. Without it the class is the sub-folder's number in
        alphabetical order, if all files lie in sub-folders and there are at least two; else there are no labels.
      classes: the sub-folders' names in the order of the class index, in place of the alphabetical order.
      extensions: which files to take; by default images, or else WAV files.

    Raises:
      ConfigError: for ``classes`` that do not name the sub-folders.
      DataError: if the folder holds no such file, a file cannot be read, or the CSV file lacks a label.
    """
    files = find_files(folder, extensions)
    if not files:
        wanted = ", ".join(extensions or [ending for kind in DEFAULT_EXTENSIONS for ending in kind])
        raise DataError(f"folder {folder!r} holds no file of {wanted}")
    source = parse_labels(labels) if isinstance(labels, str) else labels
    table = read_labels(source) if source else None
    index = None if table is not None else _class_index(folder, files, classes)
    for path in files:
        features = {image_key: bytes_feature([_read(os.path.join(folder, path))])}
        ending = os.path.splitext(path)[1].lower()
        if ending in IMAGE_EXTENSIONS:
            features["image/filename"] = bytes_feature([path.encode()])
            features["image/format"] = bytes_feature([{".jpg": "jpeg"}.get(ending, ending[1:]).encode()])
        else:
            features["filename"] = bytes_feature([path.encode()])
        if table is not None and source is not None:
            features[label_key] = int64_feature([label_of(table, path, source.path)])
        elif index is not None:
            features[label_key] = int64_feature([index[path.split(os.sep)[0]]])
        yield serialize(features)


def _class_index(folder: str, files: Sequence[str], classes: Sequence[str] | None) -> dict[str, int] | None:
    tops = {path.split(os.sep)[0] if os.sep in path else "" for path in files}
    if classes:
        for name in sorted(tops):
            if name not in classes:
                raise ConfigError(f"sub-folder {name!r} of {folder!r} is not in classes{nearest(name, classes)}")
        return {name: number for number, name in enumerate(classes)}
    if "" in tops or len(tops) < 2:
        return None
    # A class without any file still counts: the index follows the folders, not what happens to lie in them.
    names = (name.rstrip("/") for name in tf.io.gfile.listdir(folder))
    folders = [name for name in names if not _passed_over(name) and tf.io.gfile.isdir(os.path.join(folder, name))]
    return {name: number for number, name in enumerate(sorted(folders))}


def _read(path: str) -> bytes:
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read()
    except tf.errors.OpError as error:
        raise DataError(f"file {path!r} cannot be read: {error.message}") from None
