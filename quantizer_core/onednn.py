"""Switches TensorFlow's oneDNN kernels on: stock TensorFlow leaves them off on processors without VNNI or AMX."""

from __future__ import annotations

import os

#: The environment variable that TensorFlow reads once, when it first runs a graph.
SWITCH = "TF_ENABLE_ONEDNN_OPTS"


def use_onednn() -> None:
    """Asks for oneDNN in this process and those that it starts, where the environment does not say otherwise.

    INT8 graphs need it. To be called before TensorFlow first runs a graph (before it is imported is always in time);
    ``quantizer_core.runtime.check_machine`` tells whether it was.
    """
    os.environ.setdefault(SWITCH, "1")
