"""Every INT8 convolution that lowering emits, in each dtype, granularity, padding, stride and fusion.

Run as a script it prints one line a case, ``name error``, the error in steps of the output's codes.
"""

from __future__ import annotations

import itertools
import sys

from quantizer_core.lowering.conformance import (
    ConvCase,
    average_error,
    concat_error,
    convolution_error,
    matmul_as_convolution_error,
    pool_error,
    product_error,
)
from quantizer_core.lowering.kernels import QINT8, QUINT8

CONV, DEPTHWISE = "Conv2D", "DepthwiseConv2dNative"


def convolution_cases() -> list[ConvCase]:
    """Returns all combinations that lowering may emit, thinned out where the dimensions do not interact."""
    cases = []
    for op, source, result, relu in itertools.product((CONV, DEPTHWISE), (QUINT8, QINT8), (QUINT8, QINT8), (0, 1)):
        basic = dict(op=op, source=source, result=result, relu=bool(relu))
        for padding, (kernel, stride) in itertools.product(("SAME", "VALID", "EXPLICIT"), ((3, 1), (3, 2), (1, 1))):
            if padding != "EXPLICIT" or kernel > 1:
                cases.append(ConvCase(**basic, padding=padding, kernel=kernel, stride=stride))
        cases.append(ConvCase(**basic, per_channel=False))
        cases.append(ConvCase(**basic, batch=1))
        if op == CONV:
            for channels in (24, 16, 5):
                cases.append(ConvCase(**basic, kernel=1, stride=2, batch=1, channels=channels))
            cases.append(ConvCase(**basic, kernel=1, stride=2, padding="EXPLICIT"))
            cases.append(ConvCase(**basic, kernel=1, stride=2, wide_stride=1))
        if result == QUINT8 and not relu:
            continue  # a quint8 output clips by itself: what follows has been tried with Relu
        cases.append(ConvCase(**basic, dilation=2))
        cases.append(ConvCase(**basic, dilation=3, padding="EXPLICIT", batch=5))
        for kernel, padding in ((5, "SAME"), (7, "VALID"), (5, "EXPLICIT")):
            cases.append(ConvCase(**basic, kernel=kernel, padding=padding, stride=kernel // 3, batch=1))
        for channels in (1, 3, 5, 17):
            if op == CONV or channels > 1:  # a depthwise filter of one channel has a test of its own
                cases.append(ConvCase(**basic, channels=channels, outputs=18 - channels, stride=1 + channels % 2))
        if op == CONV:  # TensorFlow's depthwise convolutions take equal strides alone
            cases.append(ConvCase(**basic, stride=2, wide_stride=1, channels=5))
    for op, source in itertools.product((CONV, DEPTHWISE), (QUINT8, QINT8)):
        for per_channel, kernel in itertools.product((True, False), (1, 3)):
            cases.append(ConvCase(op, source, QUINT8, True, sums=True, per_channel=per_channel, kernel=kernel))
        cases.append(ConvCase(op, source, QUINT8, True, sums=True, padding="EXPLICIT", stride=2, batch=5))
        if op == CONV:
            cases.append(ConvCase(op, source, QUINT8, True, sums=True, kernel=1, stride=2))
        cases.append(ConvCase(op, source, QUINT8, True, sums=True, dilation=2, channels=17, outputs=3, batch=1))
    return cases


def other_errors(bits: int) -> dict[str, float]:
    """Returns the errors of the other kernels, in steps: matrix products, pools, means, concatenations."""
    errors = {}
    for source, op in itertools.product((QUINT8, QINT8), (CONV, "MatMul")):
        errors[f"{op}|{source}->float32"] = product_error(op, source, 5, True, bits)
    for source, result in itertools.product((QUINT8, QINT8), (QUINT8, QINT8)):
        errors[f"MatMul|{source}->{result}"] = matmul_as_convolution_error(5, source, result, bits)
    for source, op in itertools.product((QUINT8, QINT8), ("MaxPool", "AvgPool")):
        errors[f"{op}|{source}->{source}"] = pool_error(op, source, "SAME", 3, 2)
    for source, result in itertools.product((QUINT8, QINT8), (QUINT8, QINT8)):
        errors[f"Mean|{source}->{result}"] = average_error(source, result, (11, 11), 72)
    for source in (QUINT8, QINT8):
        errors[f"ConcatV2|{source}->{source}"] = concat_error(source, 3)
    return errors


def main() -> None:
    bits = int(sys.argv[1])
    for case in convolution_cases():
        sys.stdout.write(f"{case.name} {convolution_error(case, bits):.6f}\n")
    for name, error in other_errors(bits).items():
        sys.stdout.write(f"{name} {error:.6f}\n")


if __name__ == "__main__":
    main()
