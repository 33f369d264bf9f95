"""What is safe to emit, as data: every INT8 kernel with the forms in which it was found exact, and what to keep from.

Each entry was measured on TensorFlow 2.16.2 against a float64 reference (``tests/lowering/test_kernels.py``); what
the notes warn of is pinned by ``tests/lowering/test_quirks.py``. Planning asks this table, ``quantizer doctor`` shows
it. This file needs no TensorFlow.
"""

from __future__ import annotations

import dataclasses

QINT8, QUINT8, FLOAT32 = "qint8", "quint8", "float32"
BOTH = (QUINT8, QINT8)
#: Taps of the largest depthwise filter that is emitted, 11×11. With AVX512_VNNI oneDNN writes every tap out in machine
#: code; where the room for that ends (between 144 and 152 taps) results are wrong, or the process ends or hangs.
MOST_TAPS = 121


@dataclasses.dataclass(frozen=True)
class SafeKernel:
    """A kernel and the forms in which it is exact (half a step of its output's codes, no more).

    Attributes:
      op: the FP32 op that it stands for.
      form: how a plan uses it; see ``NodePlan.form``.
      kernel: its op in stock TensorFlow.
      sources, results: dtypes read and written.
      fusions: what it may compute besides, in this order.
      paddings: SAME, VALID, EXPLICIT; () where there is none.
      per_channel: takes one weight scale an output channel as well as one a tensor.
      dilation: takes dilations.
      narrow_bits: (source dtype, width) of the weights on CPUs without VNNI; with VNNI the width is always 8. Of 7
        bits over quint8, codes up to 127 are used where neighbours allow it (``weights.grid``).
      notes: what must not be emitted, and why.
    """

    op: str
    form: str
    kernel: str
    sources: tuple[str, ...]
    results: tuple[str, ...]
    fusions: tuple[str, ...] = ()
    paddings: tuple[str, ...] = ()
    per_channel: bool = False
    dilation: bool = False
    narrow_bits: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()


_SUM = (
    "a sum needs a quint8 summand, Relu after it and a quint8 result: a qint8 summand stops at code 127, a qint8 "
    "result ends the process",
    "a sum's summand must be held by no one else and have the result's shape, or the process ends: it is emitted "
    "only inside a function that copies it and checks its shape",
)
_PRODUCT = (
    "the kernel reads quint8: qint8 codes c are handed to it as c + 128, and the bias takes the shift back",
    "mode MIN_FIRST with a float bias gives garbage", "transpose_b is ignored: the constant is transposed",
    "scales per channel are refused: they multiply the float result instead",
)  # fmt: skip
_NARROW = ((QUINT8, 7), (QINT8, 7))

SAFE: tuple[SafeKernel, ...] = (
    SafeKernel(
        "Conv2D", "convolution", "_FusedQuantizedConv2D", BOTH, BOTH, ("BiasAdd", "Sum", "Relu", "Requantize"),
        ("SAME", "VALID", "EXPLICIT"), True, True, _NARROW,
        (*_SUM, "without Requantize (qint32 result) scales per channel are wrong",
         "1×1 filters with strides get a second column, of zeros, unless they read a multiple of 16 channels: without "
         "AVX-512 the kernel for them mixes up pixels now and then where two threads run it"),
    ),
    SafeKernel(
        "DepthwiseConv2dNative", "convolution", "_FusedQuantizedDepthwiseConv2D", BOTH, BOTH,
        ("BiasAdd", "Sum", "Relu", "Requantize"), ("SAME", "VALID", "EXPLICIT"), True, True,
        ((QUINT8, 8), (QINT8, 7)),
        (*_SUM, "depth multiplier 1 alone",
         f"filters of more than {MOST_TAPS} taps stay FP32: the kernel's code runs over its room, and ends the process",
         "the dedicated QuantizedDepthwise kernels refuse qint8 sources",
         "each output channel sums few products: 8-bit weights do not saturate over quint8"),
    ),
    SafeKernel(
        "MatMul", "matmul", "QuantizedMatMulWithBiasAndDequantize", BOTH, (FLOAT32,), ("BiasAdd", "Dequantize"),
        (), False, False, _NARROW, _PRODUCT,
    ),
    SafeKernel(
        "Conv2D", "matmul", "QuantizedMatMulWithBiasAndDequantize", BOTH, (FLOAT32,), ("BiasAdd", "Dequantize"),
        ("SAME", "VALID"), False, False, _NARROW,
        ("1×1 filters of stride 1 whose result floats alone read: there it is not rounded", *_PRODUCT),
    ),
    SafeKernel(
        "MatMul", "matmul_as_convolution", "_FusedQuantizedConv2D", BOTH, BOTH, ("BiasAdd", "Relu", "Requantize"),
        ("VALID",), True, False, _NARROW, ("the rows are the height of one image: as its batch they are slow",),
    ),
    SafeKernel("MaxPool", "pool", "QuantizedMaxPool", BOTH, BOTH, (), ("SAME", "VALID")),
    SafeKernel(
        "AvgPool", "pool", "QuantizedAvgPool", BOTH, BOTH, (), ("SAME", "VALID"),
        notes=("averages that use a small part of the source's range keep few codes",),
    ),
    *(
        SafeKernel(
            op, "average", "_FusedQuantizedDepthwiseConv2D", BOTH, BOTH, ("Requantize",), paddings,
            notes=(f"a depthwise filter of equal weights and up to {MOST_TAPS} taps: the result has its own range",),
        )
        for op, paddings in (("AvgPool", ("VALID",)), ("Mean", ()))
    ),
    SafeKernel(
        "ConcatV2", "concat", "ConcatV2", BOTH, BOTH,
        notes=(
            "the sources must share one range: their codes are copied; QuantizedConcatV2 takes two to four times as "
            "long, and rescales other ranges up to two thirds of a step off",
        ),
    ),
)  # fmt: skip

_BY_FORM = {(entry.op, entry.form): entry for entry in SAFE}


def kernel_of(op: str, form: str) -> SafeKernel | None:
    """Returns the entry for an op in a form of a plan, or None (ops that move codes have no kernel of their own)."""
    return _BY_FORM.get((op, form))


def weight_bits(op: str, form: str, source: str, narrow: bool) -> int:
    """Returns the width of the weights' codes, 8 or 7; 0 for kernels without weights.

    Args:
      op, form: as of a plan's node.
      source: dtype of the tensor read.
      narrow: the graph is to be exact on CPUs without VNNI.
    """
    entry = kernel_of(op, form)
    if entry is None or not entry.narrow_bits:
        return 0
    return dict(entry.narrow_bits).get(source, 8) if narrow else 8
