"""How every executor here treats its outputs: from empty directories, whole or not at all, with the core's version."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
from tfx.types import Artifact, artifact_utils

#: The parameter of every component, and property of every output, with the version of the product.
CORE_VERSION = "core_version"


@contextlib.contextmanager
def fresh_outputs(
    output_dict: Mapping[str, list[Artifact]], exec_properties: Mapping[str, Any]
) -> Iterator[dict[str, Artifact]]:
    """Yields the one artifact of each output, in an empty directory; empties them again if the work on them fails.

    A step may so be run again over the remains of an attempt before, and leaves nothing half made. Each output gets the
    core's version as a custom property.
    """
    outputs = {key: artifact_utils.get_single_instance(artifacts) for key, artifacts in output_dict.items()}
    for artifact in outputs.values():
        clear(artifact.uri)
    try:
        yield outputs
    except BaseException:
        for artifact in outputs.values():
            clear(artifact.uri)
        raise
    for artifact in outputs.values():
        artifact.set_string_custom_property(CORE_VERSION, exec_properties[CORE_VERSION])


def clear(uri: str) -> None:
    """Makes ``uri`` an empty directory."""
    if tf.io.gfile.exists(uri):
        tf.io.gfile.rmtree(uri)
    tf.io.gfile.makedirs(uri)


def describe(artifact: Artifact, properties: Mapping[str, Any]) -> None:
    """Sets custom properties: text, whole numbers (truth as 0 and 1) and other numbers."""
    for key, value in properties.items():
        if isinstance(value, str):
            artifact.set_string_custom_property(key, value)
        elif isinstance(value, int):
            artifact.set_int_custom_property(key, int(value))
        else:
            artifact.set_float_custom_property(key, float(value))
