"""Graph files: read GraphDefs of either form, write them whole or not at all."""

from __future__ import annotations

import os
import re
import warnings

import tensorflow as tf
from google.protobuf import message, text_format
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from quantizer_core.errors import GraphError
from quantizer_core.graph.names import node_of
from quantizer_core.graph.saved_model import FrozenModel, freeze_saved_model
from quantizer_core.graph.state import check_frozen
from quantizer_core.whole_file import whole_file

__all__ = ["FrozenModel", "check_frozen", "freeze_saved_model", "is_saved_model", "load_graph", "save_graph"]

#: Files of such names are written as text.
TEXT_ENDING = ".pbtxt"
#: How a text GraphDef begins, comments aside. A binary one begins with a tag byte and a length, which never fit.
_TEXT_START = re.compile(rb"\s*(#[^\n]*\n\s*)*(node|library|versions?)\s*[:{<]")

_EXPORT = "load it in Keras, model.export() it, and freeze that SavedModel"

#: What other files that are given in error begin with.
_OTHER_FORMATS = (
    (0, b"\x89HDF\r\n", f"a Keras HDF5 file; {_EXPORT}"),
    (0, b"PK\x03\x04", f"a ZIP archive (a .keras file?); {_EXPORT}"),
    (0, b"\x1f\x8b", "compressed with gzip; uncompress it first"),
    (0, b"\xfd7zXZ", "compressed with xz; uncompress it first"),
    (4, b"TFL3", "a TensorFlow Lite model, which cannot be converted back"),
    (0, b"version https://git-lfs", "a Git LFS pointer; fetch the real file with git lfs pull"),
    (0, b"<", "an HTML or XML page, perhaps an error message in place of a download"),
)


def load_graph(path: str | os.PathLike[str], binary: bool | None = None) -> graph_pb2.GraphDef:
    """Reads a GraphDef from any path that TensorFlow's file system knows.

    Args:
      path: a binary (``.pb``) or text (``.pbtxt``) GraphDef; the file's content decides, not its name.
      binary: True or False insists on one form; None detects it.

    Raises:
      GraphError: if the file is missing, a directory, truncated, damaged, empty, or something else than a GraphDef;
        the message names the path and the way out.
    """
    path = os.fspath(path)
    data = _read(path)
    if not data:
        raise GraphError(f"{path!r} is an empty file; expected a GraphDef")
    text = _TEXT_START.match(data) is not None
    if binary is True and text:
        raise GraphError(f"{path!r} is a text GraphDef, but a binary one was asked for; leave the form to detection")
    for offset, magic, what in _OTHER_FORMATS:
        if not text and data.startswith(magic, offset):
            raise GraphError(f"{path!r} is not a GraphDef but {what}")
    graph_def = _parse_text(path, data) if text or binary is False else _parse_binary(path, data)
    _check_whole(path, graph_def)
    return graph_def


def is_saved_model(directory: str) -> bool:
    """Tells whether a path is the directory of a SavedModel."""
    return bool(tf.io.gfile.isdir(directory) and tf.io.gfile.exists(os.path.join(directory, "saved_model.pb")))


def save_graph(graph_def: graph_pb2.GraphDef, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Writes a GraphDef: as text if the path ends in ``.pbtxt``, else binary; equal graphs give equal bytes.

    The file appears whole or not at all: it is written under a temporary name in the same directory and renamed.

    Raises:
      GraphError: if the path exists (unless ``overwrite``), its directory does not, or the graph exceeds the 2 GB
        that a protobuf can hold.
    """
    path = os.fspath(path)
    directory = os.path.dirname(path)
    _check_free(path, overwrite)
    if directory and "://" not in path and not tf.io.gfile.isdir(directory):  # object stores have no directories
        raise GraphError(f"cannot write {path!r}: directory {directory!r} does not exist; create it first")
    try:
        if path.endswith(TEXT_ENDING):
            data = text_format.MessageToString(graph_def).encode()
        else:
            data = graph_def.SerializeToString(deterministic=True)
    except (ValueError, message.EncodeError) as error:
        raise GraphError(f"cannot write {path!r}: a GraphDef holds at most 2 GB ({error})") from None
    try:
        with whole_file(path, overwrite) as temporary:
            with tf.io.gfile.GFile(temporary, "wb") as file:
                file.write(data)
            _check_free(path, overwrite)
    except tf.errors.OpError as error:
        raise GraphError(f"cannot write {path!r}: {error.message}") from None


def _check_free(path: str, overwrite: bool) -> None:
    if tf.io.gfile.isdir(path):
        raise GraphError(f"cannot write {path!r}: it exists and is a directory; name a file inside it")
    if not overwrite and tf.io.gfile.exists(path):
        raise GraphError(f"cannot write {path!r}: it exists already; remove it, or ask for it to be overwritten")


def _read(path: str) -> bytes:
    try:
        if tf.io.gfile.isdir(path):
            if is_saved_model(path):
                raise GraphError(f"{path!r} is a SavedModel, not a GraphDef; freeze it with freeze_saved_model() first")
            raise GraphError(f"{path!r} is a directory; name the GraphDef file (.pb or .pbtxt) inside it")
        if not tf.io.gfile.exists(path):
            raise GraphError(f"{path!r} does not exist; expected a frozen GraphDef")
        # Of a hundred megabytes TensorFlow's file system makes several copies.
        with tf.io.gfile.GFile(path, "rb") if "://" in path else open(path, "rb") as file:
            data: bytes = file.read()
        return data
    except (tf.errors.OpError, OSError) as error:
        raise GraphError(f"cannot read {path!r}: {getattr(error, 'message', error)}") from None


def _parse_text(path: str, data: bytes) -> graph_pb2.GraphDef:
    try:
        return text_format.Parse(data.decode("utf-8"), graph_pb2.GraphDef())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise GraphError(f"{path!r} is no valid text GraphDef, or is truncated: {error}") from None


def _parse_binary(path: str, data: bytes) -> graph_pb2.GraphDef:
    graph_def = graph_pb2.GraphDef()
    if _parses(graph_def, data) and graph_def.node and all(node.name and node.op for node in graph_def.node):
        return graph_def
    saved_model = saved_model_pb2.SavedModel()
    if _parses(saved_model, data) and any(each.graph_def.node for each in saved_model.meta_graphs):
        raise GraphError(
            f"{path!r} is part of a SavedModel, not a GraphDef; call freeze_saved_model() on its directory"
        )
    meta_graph = meta_graph_pb2.MetaGraphDef()
    if _parses(meta_graph, data) and meta_graph.graph_def.node:
        raise GraphError(
            f"{path!r} is a MetaGraphDef (a checkpoint's .meta file), not a frozen graph; freeze the checkpoint"
        )
    raise GraphError(f"{path!r} is no GraphDef, or is truncated or damaged; compare its size with the original's")


def _parses(proto: message.Message, data: bytes) -> bool:
    with warnings.catch_warnings():
        # Python's protobuf stops at a stray end-group tag with no more than a warning and the bytes it has read.
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            return proto.MergeFromString(data) == len(data)
        except message.DecodeError:
            return False


def _check_whole(path: str, graph_def: graph_pb2.GraphDef) -> None:
    """A file cut between two nodes still parses, but what is left reads nodes that are missing."""
    if not graph_def.node:
        raise GraphError(f"{path!r} holds a graph without nodes; the file may be truncated")
    names = {node.name for node in graph_def.node}
    for node in graph_def.node:
        for tensor in node.input:
            if node_of(tensor) not in names:
                raise GraphError(
                    f"{path!r} is truncated or damaged: node {node.name!r} reads {tensor!r}, which the graph does not "
                    "hold; compare the file's size with the original's"
                )
