"""Adds the INT8 nodes of stock TensorFlow's oneDNN build to a graph: one function a kernel, each with its rules.

All ranges are symmetric around zero: a ``quint8`` tensor of range m holds values 0…m in codes 0…255, a ``qint8``
tensor values -m…m in codes -127…127. The kernels take their ranges as tensors; here they are always constants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from quantizer_core.graph.attrs import set_attr
from quantizer_core.graph.control_flow import innermost_frames, pivots
from quantizer_core.graph.graph import Graph, NodeDef, node_of
from quantizer_core.lowering import sums
from quantizer_core.lowering.guards import not_empty
from quantizer_core.lowering.weights import QuantizedWeights

if TYPE_CHECKING:
    from quantizer_core.planning.plan import TensorPlan

QINT8, QUINT8 = "qint8", "quint8"
#: Largest code of each dtype; a range m has the scale m / LEVELS[dtype].
LEVELS = {QINT8: 127, QUINT8: 255}
#: The code of the weights of an average: its products are exact on CPUs without VNNI too.
AVERAGE_CODE = 64
_PLAIN = {QINT8: tf.int8, QUINT8: tf.uint8}
#: Bytes that oneDNN copies at once, without AVX-512, when it gathers the pixels under a 1×1 filter with strides.
_GATHERED = 16


@dataclasses.dataclass(frozen=True)
class IntTensor:
    """An integer tensor of the lowered graph: its name, dtype (``qint8`` or ``quint8``) and largest magnitude."""

    name: str
    dtype: str
    limit: float

    @property
    def low(self) -> float:
        return 0.0 if self.dtype == QUINT8 else -self.limit


class Emitter:
    """Adds INT8 nodes to a ``Graph``; equal range constants are shared.

    What is added for a tensor inside a while loop lies in that loop: its constants wait for a node of the loop.

    Args:
      graph: is added to.
      frames: what ``innermost_frames`` says of it, if that is known.
    """

    def __init__(self, graph: Graph, frames: Mapping[str, str] | None = None):
        self.graph = graph
        self._ranges: dict[bytes, str] = {}
        found = graph.remembered(innermost_frames) if frames is None else frames
        self._frames = {**dict.fromkeys(graph.names(), ""), **found}
        self._pivots = pivots(graph)

    def range_const(self, values: float | np.floating | np.ndarray, beside: str = "") -> str:
        """Returns a float32 Const, scalar or vector, with these values: an existing one if there is one.

        ``beside`` is a tensor in whose loop, if it is in one, the Const must lie.
        """
        array = np.asarray(values, np.float32)
        key = array.tobytes() + f"{array.shape} {self._frame(beside)}".encode()
        if key not in self._ranges:
            self._ranges[key] = self.const(f"int8_range/{len(self._ranges)}", array, beside=beside)
        return self._ranges[key]

    def const(self, name: str, value: np.ndarray, dtype: object | None = None, *, beside: str) -> str:
        """Adds a Const in the loop, if any, of tensor ``beside``; returns its name, made unique."""
        given = self.graph.add_const(name, value, dtype)
        frame = self._frame(beside)
        if frame:
            self.graph.add_control_inputs(given, [self._pivots[frame]])
        return given

    def bounds(self, tensor: IntTensor) -> tuple[str, str]:
        """Returns the names of the constants that hold the tensor's minimum and maximum."""
        return self.range_const(tensor.low, tensor.name), self.range_const(tensor.limit, tensor.name)

    def _frame(self, tensor: str) -> str:
        """Returns the loop that a tensor lies in, or ""; nodes added since lie where their first input does."""
        if not tensor:
            return ""
        name = node_of(tensor)
        if name not in self._frames:
            inputs = self.graph.node(name).input
            self._frames[name] = self._frame(inputs[0]) if inputs else ""
        return self._frames[name]

    def quantize(self, source: str, name: str, dtype: str, limit: float) -> IntTensor:
        """Rounds a float32 tensor to codes (half to even), clipping what lies outside the range.

        ``narrow_range`` must be True for qint8 (else the range returned is -128/127·m) and False for quint8 (else
        the codes move by one).
        """
        result = IntTensor(name, dtype, limit)
        low, high = self.range_const(result.low, source), self.range_const(limit, source)
        given = self.graph.add_node(
            "QuantizeV2", name, [source, low, high], T=getattr(tf, dtype), mode="SCALED",
            round_mode="HALF_TO_EVEN", narrow_range=dtype == QINT8, axis=-1, ensure_minimum_range=0.0,
        )  # fmt: skip
        return dataclasses.replace(result, name=given)

    def quantize_shifted(self, source: str, name: str, limit: float, offset: float) -> IntTensor:
        """Rounds a float32 tensor of values -offset…limit - offset to quint8; code 0 stands for -offset.

        The result counts as the tensor shifted up by ``offset``, range 0…limit: who reads it takes the offset back.
        """
        low, high = self.range_const(-offset, source), self.range_const(limit - offset, source)
        given = self.graph.add_node(
            "QuantizeV2", name, [source, low, high], T=tf.quint8, mode="MIN_FIRST",
            round_mode="HALF_AWAY_FROM_ZERO", narrow_range=False, axis=-1, ensure_minimum_range=0.0,
        )  # fmt: skip
        return IntTensor(given, QUINT8, limit)

    def quantize_as(self, source: str, name: str, planned: TensorPlan) -> tuple[IntTensor, str]:
        """Rounds a float32 tensor to the codes of its plan; returns them and the name of the node that reads it."""
        if not planned.scale:
            if planned.offset:
                result = self.quantize_shifted(source, name, planned.limit, float(planned.offsets[0]))
            else:
                result = self.quantize(source, name, planned.dtype, planned.limit)
            return result, result.name
        carried = self._affine(source, name, (("AddV2", "moved", planned.offsets), ("Mul", "scaled", planned.scales)))
        return self.quantize(carried[-1], name, planned.dtype, planned.limit), carried[0]

    def dequantize_as(self, source: IntTensor, name: str, planned: TensorPlan) -> str:
        """Returns a float32 tensor with the values that the codes of a planned tensor stand for."""
        if not planned.scale:
            return self.dequantize(source, name, float(planned.offsets[0]))
        carried = self.dequantize(source, f"{name}/carried")
        steps = (("Mul", "scaled", 1 / planned.scales), ("Sub", "moved", planned.offsets))
        return self._affine(carried, name, steps)[-1]

    def round_as(self, source: str, base: str, planned: TensorPlan) -> tuple[str, str]:
        """Returns a float32 tensor with the values of a planned tensor as its codes hold them, and who reads it."""
        codes, reader = self.quantize_as(source, f"{base}/codes", planned)
        return self.dequantize_as(codes, base, planned), reader

    def _affine(self, source: str, name: str, steps: Sequence[tuple[str, str, np.ndarray]]) -> list[str]:
        """Adds ops with a constant for each channel, but for sums with zero; returns their names."""
        names: list[str] = []
        for op, word, values in steps:
            if op == "Mul" or values.any():
                operand = self.range_const(np.asarray(values, np.float32), source)
                last = names[-1] if names else source
                names.append(self.graph.add_node(op, f"{name}/{word}", [last, operand], T=tf.float32))
        return names

    def dequantize(self, source: IntTensor, name: str, offset: float = 0.0) -> str:
        """Returns a float32 tensor with the values of the codes, less the offset that they were coded with.

        The kernel ends the process where there are no codes; a guard before it makes that an error of the step.
        """
        low, high = self.bounds(source)
        kind = getattr(tf, source.dtype)
        one = self.const(f"{name}/at_least", np.array(1, np.int32), beside=source.name)
        guarded = not_empty(self.graph, source.name, kind, one, name)
        result = self.graph.add_node(
            "Dequantize", name, [guarded, low, high], T=kind, dtype=tf.float32,
            mode="SCALED", narrow_range=source.dtype == QINT8, axis=-1,
        )  # fmt: skip
        if not offset:
            return result
        return self.graph.add_node(
            "Sub", f"{name}/offset", [result, self.range_const(offset, source.name)], T=tf.float32
        )

    def shift_up(self, source: IntTensor, name: str) -> tuple[IntTensor, float]:
        """Returns a qint8 tensor as quint8 codes 128 higher, and by what that shifts the values; no code is lost."""
        plain = self.as_plain(source, f"{name}/plain")
        half = self.const(f"{name}/sign_bit", np.array(128, np.uint8), beside=source.name)
        bits = self.graph.add_node("Bitcast", f"{name}/bits", [plain], T=tf.int8, type=tf.uint8)
        moved = self.graph.add_node("BitwiseXor", f"{name}/codes", [bits, half], T=tf.uint8)
        step = source.limit / LEVELS[QINT8]
        return self.from_plain(moved, IntTensor(name, QUINT8, 255 * step), name), 128 * step

    def squeeze(self, source: IntTensor, axes: Sequence[int], name: str) -> IntTensor:
        """Takes axes of length 1 out of the shape of an integer tensor; nothing is copied."""
        given = self.graph.add_node(
            "Squeeze", name, [source.name], T=getattr(tf, source.dtype), squeeze_dims=list(axes)
        )
        return dataclasses.replace(source, name=given)

    def reshape(self, source: IntTensor, shape: Sequence[int], name: str) -> IntTensor:
        """Reshapes an integer tensor; nothing is copied."""
        wanted = self.const(f"{name}/shape", np.asarray(shape, np.int32), beside=source.name)
        given = self.graph.add_node(
            "Reshape", name, [source.name, wanted], T=getattr(tf, source.dtype), Tshape=tf.int32
        )
        return dataclasses.replace(source, name=given)

    def convolution(
        self,
        op: str,
        name: str,
        source: IntTensor,
        weights: QuantizedWeights,
        bias: np.ndarray,
        *,
        dtype: str,
        limit: float,
        relu: bool = False,
        summand: IntTensor | None = None,
        strides: Sequence[int] = (1, 1, 1, 1),
        padding: str = "VALID",
        explicit_paddings: Sequence[int] = (),
        dilations: Sequence[int] = (1, 1, 1, 1),
        device: str = "",
    ) -> IntTensor:
        """Adds a fused NHWC convolution: bias, optional sum, optional Relu, requantisation.

        The generic fused kernels are used, which take u8 and s8 inputs and outputs alike. Codes of a quint8 output
        end at zero, so that a Relu before them would only take time; but a sum is refused without one. A sum needs a
        quint8 summand, a Relu after it and a quint8 output; other sums lose codes above 127 or end the process. Its
        kernel is called through a function that guards the summand (see ``sums``). A 1×1 filter that skips pixels may
        get a second column of zeros (see ``_without_unit_filter``).

        Args:
          op: ``Conv2D`` or ``DepthwiseConv2dNative``.
          name: name of the new node, made unique.
          source: the input, [batch, height, width, channels].
          weights: filter codes in the layout of ``op``'s filter and their scales.
          bias: float32 [output channels].
          dtype: ``qint8`` or ``quint8`` output.
          limit: the largest magnitude of the output, in real units; what lies beyond is clipped.
          relu: clip below zero.
          summand: added before the Relu; of the output's shape, else the step fails.
          strides, padding, explicit_paddings, dilations: as the FP32 op's attributes.
          device: device string of the node.

        Returns:
          The output; its name is the node's first output.
        """
        if summand is not None and (summand.dtype != QUINT8 or dtype != QUINT8 or not relu):
            raise ValueError(f"{name}: a fused sum needs a quint8 summand, Relu and a quint8 output")
        if op == "Conv2D" and max(strides) > 1:
            weights, padding, explicit_paddings = _without_unit_filter(weights, padding, explicit_paddings, dilations)
        result = IntTensor(name, dtype, limit)
        kernel = "_FusedQuantizedDepthwiseConv2D" if op == "DepthwiseConv2dNative" else "_FusedQuantizedConv2D"
        codes = self.const(f"{name}/weights_int8", weights.codes, tf.qint8, beside=source.name)
        bias_const = self.const(f"{name}/bias", np.asarray(bias, np.float32), beside=source.name)
        device_inputs = [source.name, codes, bias_const]
        device_types = [getattr(tf, source.dtype), tf.qint8, tf.float32]
        # Of a filter's range the kernels take the larger magnitude: zeros, shared, serve as its lower bounds.
        limits = [self.range_const(values, source.name) for values in (np.zeros_like(weights.limits), weights.limits)]
        host_inputs = [*self.bounds(source), *limits]
        fused_ops = ["BiasAdd"]
        if summand is not None:
            device_inputs.append(summand.name)
            device_types.append(getattr(tf, summand.dtype))
            host_inputs.extend(self.bounds(summand))
            fused_ops.append("Sum")
        if relu and (dtype == QINT8 or summand is not None):
            fused_ops.append("Relu")
        fused_ops.append("Requantize")
        host_inputs.extend(self.range_const(value, source.name) for value in (result.low, result.limit))
        out_type = getattr(tf, dtype)
        given = self._add_convolution(
            kernel, name, [*device_inputs, *host_inputs], weights, bias, device=device,
            Tdevice_inputs=device_types, Thost_inputs=[tf.float32] * len(host_inputs),
            Tdevice_outputs=[out_type], Thost_outputs=[tf.float32, tf.float32],
            Tinput=getattr(tf, source.dtype), Tfilter=tf.qint8, Tbias=tf.float32,
            Tsummand=getattr(tf, summand.dtype) if summand is not None else out_type, out_type=out_type,
            data_format="NHWC", strides=list(strides), padding=padding, explicit_paddings=list(explicit_paddings),
            dilations=list(dilations), fused_ops=fused_ops,
        )  # fmt: skip
        return dataclasses.replace(result, name=given)

    def _add_convolution(self, kernel: str, name: str, inputs: Sequence[str], weights: QuantizedWeights,
                         bias: np.ndarray, device: str, **attrs: Any) -> str:  # fmt: skip
        """Adds the kernel's node, or where it sums the call of a function with the kernel behind a guard."""
        if "Sum" not in attrs["fused_ops"]:
            return self.graph.add_node(kernel, name, inputs, device=device, **attrs)
        node = NodeDef(op=kernel, name=self.graph.unique_name(name), input=inputs, device=device)
        for key, value in attrs.items():
            set_attr(node, key, value)
        terms = sums.result_shape_terms(
            weights.codes.shape[:2], len(bias), strides=attrs["strides"], padding=attrs["padding"],
            explicit_paddings=attrs["explicit_paddings"], dilations=attrs["dilations"],
        )  # fmt: skip
        identity = b"".join(
            [node.name.encode(), weights.codes.tobytes(), weights.limits.tobytes(), np.asarray(bias).tobytes()]
        )
        opaque = not sums.varies(self.graph, inputs[sums.SUMMAND])
        function = sums.sum_function(node, terms, weights.codes.shape[2], identity, opaque)
        self.graph.add_function(function)
        return self.graph.add(sums.call_of(node, function))

    def matmul(self, name: str, source: IntTensor, weights: QuantizedWeights, bias: np.ndarray,
               device: str = "") -> str:  # fmt: skip
        """Adds a matrix multiplication with a bias and a float32 output.

        The kernel reads quint8: signed codes are shifted up. It knows one weight scale a tensor; scales per channel
        are applied to its float output, and the bias is divided by them beforehand.

        Args:
          name: name of the node whose output is the result, made unique.
          source: [rows, inputs].
          weights: codes [inputs, outputs] and their scales.
          bias: float32 [outputs].

        Returns:
          The name of the float32 tensor [rows, outputs].
        """
        if source.dtype == QINT8:
            source, shift = self.shift_up(source, f"{name}/shifted")
            bias = bias - shift * weights.dequantized().sum(axis=0, dtype=np.float64)
        per_channel = weights.limits.ndim == 1
        limits = weights.limits if per_channel else np.float32(weights.limits)
        scale = limits if per_channel else np.float32(1)
        limit = np.float32(1) if per_channel else limits
        inner = f"{name}/matmul_int8" if per_channel else name
        codes = self.const(f"{name}/weights_int8", weights.codes, tf.qint8, beside=source.name)
        bias_const = self.const(f"{name}/bias", np.asarray(bias / scale, np.float32), beside=source.name)
        low, high = self.bounds(source)
        # The Dequantize fusion reads its output range's constants only for their shape; they must be there.
        zero, one, lowest, highest = (self.range_const(v, source.name) for v in (0.0, 1.0, -limit, limit))
        out = self.graph.add_node(
            "QuantizedMatMulWithBiasAndDequantize", inner,
            [source.name, codes, bias_const, low, high, lowest, highest, zero, one],
            T1=tf.quint8, T2=tf.qint8, Tbias=tf.float32, Toutput=tf.float32,
            device=device, transpose_a=False, transpose_b=False, input_quant_mode="SCALED",
        )  # fmt: skip
        if not per_channel:
            return out
        scale_const = self.const(f"{name}/weight_scale", np.asarray(scale, np.float32), beside=source.name)
        return self.graph.add_node("Mul", name, [out, scale_const], device=device, T=tf.float32)

    def pointwise(self, name: str, source: IntTensor, weights: QuantizedWeights, bias: np.ndarray,
                  places: Sequence[int] = (), device: str = "") -> str:  # fmt: skip
        """Adds a 1×1 convolution of stride 1 as a matrix multiplication of its positions, with a float32 output.

        Args:
          name: name of the node whose output is the result, made unique.
          source: [batch, height, width, inputs].
          weights: codes [1, 1, inputs, outputs] and their scales.
          bias: float32 [outputs].
          places: height and width, where they are known.
          device: device string of the nodes.

        Returns:
          The name of the float32 tensor [batch, height, width, outputs].
        """
        inputs, outputs = weights.codes.shape[2:]
        matrix = dataclasses.replace(weights, codes=weights.codes[0, 0])
        rows = self.matmul(
            f"{name}/product", self.reshape(source, (-1, inputs), f"{name}/rows"), matrix, bias, device
        )  # fmt: skip
        if places:
            shape = self.const(f"{name}/shape", np.array([-1, *places, outputs], np.int32), beside=source.name)
        else:
            shape = self._shape_with(source, outputs, name)
        return self.graph.add_node("Reshape", name, [rows, shape], T=tf.float32, Tshape=tf.int32)

    def _shape_with(self, source: IntTensor, channels: int, name: str) -> str:
        """Returns the shape of an NHWC tensor with another number of channels, int32 [4].

        Of the ops that are used TensorFlow knows the static part of the shape that they make.
        """
        whole = self.graph.add_node(
            "Shape", f"{name}/source_shape", [source.name], T=getattr(tf, source.dtype), out_type=tf.int32
        )
        zero, three, one, axis, last = (
            self.const(f"{name}/{word}", np.array(value, np.int32), beside=source.name)
            for word, value in (("begin", [0]), ("end", [3]), ("step", [1]), ("axis", 0), ("channels", [channels]))
        )
        positions = self.graph.add_node(
            "StridedSlice", f"{name}/positions", [whole, zero, three, one], T=tf.int32, Index=tf.int32
        )
        return self.graph.add_node("ConcatV2", f"{name}/shape", [positions, last, axis], N=2, T=tf.int32, Tidx=tf.int32)

    def pool(self, op: str, name: str, source: IntTensor, *, ksize: Sequence[int], strides: Sequence[int],
             padding: str, device: str = "") -> IntTensor:  # fmt: skip
        """Adds an INT8 ``MaxPool`` or ``AvgPool`` over an NHWC tensor; the range stays."""
        given = self.graph.add_node(
            {"MaxPool": "QuantizedMaxPool", "AvgPool": "QuantizedAvgPool"}[op], name,
            [source.name, *self.bounds(source)], device=device, T=getattr(tf, source.dtype),
            ksize=list(ksize), strides=list(strides), padding=padding,
        )  # fmt: skip
        return dataclasses.replace(source, name=given)

    def average(self, name: str, source: IntTensor, window: Sequence[int], *, scales: np.ndarray, dtype: str,
                limit: float, strides: Sequence[int] = (1, 1, 1, 1), device: str = "") -> IntTensor:  # fmt: skip
        """Adds the mean over windows that lie wholly in an NHWC tensor, with a range of its own.

        It is a depthwise convolution whose weights are all one code, so that they are exact; of that code two products
        with 255 fit 16 bits.

        Args:
          name: name of the new node, made unique.
          source: [batch, height, width, channels].
          window: height, width and channels.
          scales: what the mean is multiplied with, float64 [channels] or [1].
          dtype, limit: of the result.
          strides: as AvgPool's.
          device: device string of the node.
        """
        limits = np.asarray(scales * (127 / AVERAGE_CODE / (window[0] * window[1])), np.float32)
        weights = QuantizedWeights(
            np.full((*window, 1), AVERAGE_CODE, np.int8), limits if limits.size > 1 else limits.reshape(())
        )
        return self.convolution(
            "DepthwiseConv2dNative", name, source, weights, np.zeros(window[2], np.float32), dtype=dtype, limit=limit,
            strides=strides, device=device,
        )  # fmt: skip

    def concat(self, name: str, sources: Sequence[IntTensor], axis: int, device: str = "") -> IntTensor:
        """Adds a concatenation of the codes of tensors of one dtype and one range, which is the result's.

        QuantizedConcatV2 would rescale other ranges, but takes two to four times as long and rounds signed codes up to
        two thirds of a step off.
        """
        dtype, limit = sources[0].dtype, sources[0].limit
        if any((source.dtype, source.limit) != (dtype, limit) for source in sources):
            raise ValueError(f"{name}: the concatenated tensors differ in dtype or range")
        axis_const = self.const(f"{name}/axis", np.array(axis, np.int32), beside=sources[0].name)
        given = self.graph.add_node(
            "ConcatV2", name, [*(source.name for source in sources), axis_const], device=device, N=len(sources),
            T=getattr(tf, dtype), Tidx=tf.int32,
        )  # fmt: skip
        return IntTensor(given, dtype, limit)

    def as_plain(self, source: IntTensor, name: str) -> str:
        """Returns the codes as int8 or uint8, without a copy, for ops that have no kernel for quantised types."""
        return self.graph.add_node(
            "Bitcast", name, [source.name], T=getattr(tf, source.dtype), type=_PLAIN[source.dtype]
        )

    def from_plain(self, source: str, like: IntTensor, name: str) -> IntTensor:
        """The way back from ``as_plain``; dtype and range are those of ``like``."""
        given = self.graph.add_node("Bitcast", name, [source], T=_PLAIN[like.dtype], type=getattr(tf, like.dtype))
        return dataclasses.replace(like, name=given)


def _without_unit_filter(
    weights: QuantizedWeights, padding: str, explicit_paddings: Sequence[int], dilations: Sequence[int]
) -> tuple[QuantizedWeights, str, Sequence[int]]:
    """Gives a 1×1 filter over a number of channels that is no multiple of 16 a second column, of zeros.

    For a 1×1 filter with strides oneDNN first gathers the pixels that are read. Without AVX-512 its copy of the last
    ones runs up to 15 bytes over the end of a thread's memory, into what the next thread gathers: now and then that
    one's first pixel comes out wrong. Other filters have other kernels. One more column of padding on the right keeps
    the shape of the result.

    Args:
      weights: a Conv2D filter [height, width, inputs, outputs].
      padding, explicit_paddings, dilations: as the op's attributes.

    Returns:
      Weights, padding and explicit paddings, as they were if nothing needs to be done.
    """
    if weights.codes.shape[:2] != (1, 1) or weights.codes.shape[2] % _GATHERED == 0:
        return weights, padding, explicit_paddings
    pads = list(explicit_paddings) if padding == "EXPLICIT" else [0] * 8
    pads[5] += dilations[2]
    codes = np.concatenate([weights.codes, np.zeros_like(weights.codes)], axis=1)
    return dataclasses.replace(weights, codes=codes), "EXPLICIT", pads
