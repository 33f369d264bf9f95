"""What decides here how INT8 graphs are made and run, as plain data: TensorFlow, oneDNN and the processor."""

from __future__ import annotations

import platform
from typing import Any

import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port

from quantizer_core.onednn import SWITCH, given_switch, isa_limit
from quantizer_core.runtime import cpu_flags, has_vnni

#: The processor's features that oneDNN's INT8 kernels go by, as Linux spells them.
INT8_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")


def describe_machine() -> dict[str, Any]:
    """Returns the facts about this machine as JSON takes them.

    ``cpu_features`` says of each of ``INT8_FEATURES`` whether the processor has it, ``vnni_used`` whether oneDNN will
    use VNNI, and ``weight_bits`` what follows from that where the configuration leaves it open.
    """
    flags, vnni = cpu_flags(), has_vnni()
    return {
        "tensorflow": tf.version.VERSION,
        "onednn": bool(_pywrap_util_port.IsMklEnabled()),
        SWITCH: given_switch(),
        "ONEDNN_MAX_CPU_ISA": isa_limit(),
        "cpu": _cpu_model(),
        "cpu_features": {name: name in flags for name in INT8_FEATURES},
        "vnni_used": vnni,
        "weight_bits": 8 if vnni else 7,
    }


def _cpu_model() -> str:
    """Returns the processor's name as Linux spells it, or the machine's architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
