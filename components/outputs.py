"""How every executor here treats its outputs: from empty directories, whole or not at all, with the core's version."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
from tfx.types import Artifact, artifact_utils

from quantizer_core.version import VERSION

#: The parameter of every component, part of the cache key, with the version of the product where the pipeline is made;
#: and the property of every output with the version that made it.
CORE_VERSION = "core_version"

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def fresh_outputs(
    output_dict: Mapping[str, list[Artifact]], exec_properties: Mapping[str, Any]
) -> Iterator[dict[str, Artifact]]:
    """Yields the one artifact of each output, in an empty directory; empties them again if the work on them fails.

    A step may so be run again over the remains of an attempt before, and leaves nothing half made. Each output gets the
    version that runs here as a custom property, which is told if the pipeline was made with another.
    """
    if exec_properties[CORE_VERSION] != VERSION:
        _logger.warning(
            "this step runs version %s of the product, the pipeline was made with %s: results in the cache go by the "
            "latter, so make the pipeline with the version that the image has",
            VERSION,
            exec_properties[CORE_VERSION],
        )
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
        artifact.set_string_custom_property(CORE_VERSION, VERSION)


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
