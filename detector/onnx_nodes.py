"""Writing an ONNX graph node by node, in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pgoutlier.detector.network import LEAKY_SLOPE

# Operators as of ONNX 1.13, the format that goes with them: every ONNX Runtime since 1.14 knows both.
OPSET, FORMAT = 18, 8

Value: TypeAlias = str


class Nodes:
    """The nodes and constants of a graph that grows; a value is the name of what a node gives."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, array: NDArray[Any] | float) -> Value:
        """An array; a plain number is a float64 without axes."""
        from onnx import numpy_helper

        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def add(self, operator: str, *inputs: Value | NDArray[Any] | float, **attributes: Any) -> Value:
        """What the ONNX operator gives for the inputs; an empty name is an input that is left out."""
        return self.add_parts(operator, *inputs, n_parts=1, **attributes)[0]

    def add_parts(
        self, operator: str, *inputs: Value | NDArray[Any] | float, n_parts: int, **attributes: Any
    ) -> list[Value]:
        """The same for an operator that gives several values."""
        from onnx import helper

        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        number = len(self._nodes)
        parts = [f"value{number}.{i}" for i in range(n_parts)]
        self._nodes.append(helper.make_node(operator, names, parts, name=f"node{number}", **attributes))
        return parts

    def cast(self, value: Value, precision: str) -> Value:
        """precision: "float32" or "float64"."""
        from onnx import TensorProto

        return self.add("Cast", value, to=TensorProto.FLOAT if precision == "float32" else TensorProto.DOUBLE)

    def clip(self, value: Value, low: float, high: float) -> Value:
        """Of a float64 value."""
        return self.add("Clip", value, low, high)

    def sums(self, value: Value) -> Value:
        """The sums (n_rows,) of the rows of a matrix."""
        return self.add("ReduceSum", value, np.array([1]), keepdims=0)

    def column(self, value: Value) -> Value:
        """A vector (n_rows,) as (n_rows, 1)."""
        return self.add("Unsqueeze", value, np.array([1]))

    def model(self, inputs: dict[str, tuple[int | None, ...]], outputs: dict[Value, str]) -> bytes:
        """The graph as ONNX Runtime takes it. inputs: shapes of float64 tensors, None for the rows; outputs:
        precisions."""
        from onnx import TensorProto, helper

        types = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}
        graph = helper.make_graph(
            self._nodes,
            "score",
            [
                helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape)
                for name, shape in inputs.items()
            ],
            [
                helper.make_tensor_value_info(name, types[precision], None)
                for name, precision in outputs.items()
            ],
            self._constants,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=FORMAT).SerializeToString()
        return model


def activation(nodes: Nodes, name: str, precision: str) -> Callable[[Value], Value]:
    """The activation function of this name, in this precision.

    ONNX Runtime has no kernel for leaky_relu and elu in float64; the one for elu in float32 takes three times as
    long as the operations here, that for the sigmoid in float64 nearly twice as long. exp(x) - 1 is off by the
    rounding of 1, no more than the matrix products around it.
    """

    def number(value: float) -> Value:
        return nodes.constant(np.asarray(value, precision))

    def leaky_relu() -> Callable[[Value], Value]:
        slope = number(LEAKY_SLOPE)
        return lambda x: nodes.add("Max", x, nodes.add("Mul", x, slope))

    def elu() -> Callable[[Value], Value]:
        # Where x is positive, it is above exp(0) - 1; elsewhere the curve lies above its tangent at 0.
        zero, one = number(0.0), number(1.0)
        return lambda x: nodes.add(
            "Max", x, nodes.add("Sub", nodes.add("Exp", nodes.add("Clip", x, "", zero)), one)
        )

    def sigmoid() -> Callable[[Value], Value]:
        if precision == "float32":
            return lambda x: nodes.add("Sigmoid", x)
        one = number(1.0)
        return lambda x: nodes.add("Reciprocal", nodes.add("Add", nodes.add("Exp", nodes.add("Neg", x)), one))

    functions: dict[str, Callable[[], Callable[[Value], Value]]] = {
        "tanh": lambda: lambda x: nodes.add("Tanh", x),
        "relu": lambda: lambda x: nodes.add("Relu", x),
        "leaky_relu": leaky_relu,
        "sigmoid": sigmoid,
        "linear": lambda: lambda x: x,
        "elu": elu,
    }
    return functions[name]()


def lstm(
    nodes: Nodes,
    steps: Sequence[Value],
    weights: Sequence[NDArray[Any]],
    function: Callable[[Value], Value],
    sigmoid: Callable[[Value], Value],
) -> list[Value]:
    """What an LSTM layer gives at each of the steps, (n_rows, units); see `detector.reference`.

    weights: kernel, recurrent and bias. Each gate has products of its own, which is a third faster than one product
    that is cut in four, and half again as fast as the operator LSTM, which has no float64.
    """
    kernels, recurrents, biases = (
        [nodes.constant(gate) for gate in np.split(array, 4, axis=-1)] for array in weights
    )
    gates: dict[Value, list[Value]] = {}
    output = cell = None
    outputs = []
    for step in steps:
        # A decoder gets the same vector at every step.
        if step not in gates:
            gates[step] = [nodes.add("Gemm", step, k, b) for k, b in zip(kernels, biases, strict=True)]
        values = gates[step]
        if output is not None:
            values = [
                nodes.add("Gemm", output, r, value) for r, value in zip(recurrents, values, strict=True)
            ]
        let_in, keep, let_out = (sigmoid(values[gate]) for gate in (0, 1, 3))
        added = nodes.add("Mul", let_in, function(values[2]))
        cell = added if cell is None else nodes.add("Add", nodes.add("Mul", keep, cell), added)
        output = nodes.add("Mul", let_out, function(cell))
        outputs.append(output)
    return outputs
