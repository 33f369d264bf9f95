"""Switches TensorFlow's oneDNN kernels on: stock TensorFlow leaves them off on processors without VNNI or AMX."""

from __future__ import annotations

import os

#: The environment variable that TensorFlow reads: parts of it when it is imported, others when it first runs a graph.
SWITCH = "TF_ENABLE_ONEDNN_OPTS"

#: Whether ``use_onednn`` has set it, the environment having left it open.
_asked_here = False


def onednn_environment() -> dict[str, str]:
    """Returns this process's environment for another one, oneDNN asked for where it does not say otherwise."""
    return {SWITCH: "1", **os.environ}


def use_onednn() -> None:
    """Asks for oneDNN in this process and those that it starts, where the environment does not say otherwise.

    INT8 graphs need it. To be called before TensorFlow is imported.
    """
    global _asked_here
    if SWITCH not in os.environ:
        os.environ[SWITCH] = "1"
        _asked_here = True


def given_switch() -> str | None:
    """Returns what the environment said of oneDNN before this process asked for it; None where it said nothing."""
    return None if _asked_here else os.environ.get(SWITCH)


def isa_limit() -> str | None:
    """Returns the instruction set beyond which oneDNN is told not to go, None for none."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
