"""Write an ONNX graph as arithmetic: values with operators, one node an operation.

    graph = Graph()
    x = graph.input("x", np.float32, 2)
    y = graph.op("Softmax", x * 2.0 + 1.0, axis=-1)
    graph.model([("y", y, np.float32)])  # bytes for onnxruntime

A Python float stands for a float32 constant, an int for an int64 one. Shapes are free: an input
says how many axes it has, not how long they are.

Cost:     microseconds a node; nothing is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 20, 9
"""Opset 20 has Gelu; both are read by onnxruntime 1.17 and later."""


@dataclass(frozen=True, eq=False)
class Value:
    """The result of a node; operators make further nodes of the same graph."""

    graph: Graph
    name: str

    def __add__(self, other: Operand) -> Value:
        return self.graph.op("Add", self, other)

    def __sub__(self, other: Operand) -> Value:
        return self.graph.op("Sub", self, other)

    def __mul__(self, other: Operand) -> Value:
        return self.graph.op("Mul", self, other)

    def __truediv__(self, other: Operand) -> Value:
        return self.graph.op("Div", self, other)

    def __matmul__(self, other: Operand) -> Value:
        return self.graph.op("MatMul", self, other)

    def __lt__(self, other: Operand) -> Value:
        return self.graph.op("Less", self, other)

    def __gt__(self, other: Operand) -> Value:
        return self.graph.op("Greater", self, other)

    def __ge__(self, other: Operand) -> Value:
        return self.graph.op("GreaterOrEqual", self, other)

    def __and__(self, other: Operand) -> Value:
        return self.graph.op("And", self, other)

    def __invert__(self) -> Value:
        return self.graph.op("Not", self)

    def equals(self, other: Operand) -> Value:
        """Where two are equal."""
        return self.graph.op("Equal", self, other)


Operand = Value | float | int | np.ndarray[Any, Any] | Sequence[int]


class Graph:
    """Nodes in the order in which they were written."""

    def __init__(self, outer: Graph | None = None) -> None:
        self.nodes: list[NodeProto] = []
        self.root: Graph = self if outer is None else outer.root
        if outer is None:
            self.inputs: list[Any] = []
            self.constants: dict[Any, TensorProto] = {}
            self.numbers = count()

    def op(self, kind: str, *operands: Operand, **attributes: Any) -> Value:
        """The one result of an ONNX operation."""
        return self.ops(kind, *operands, num_results=1, **attributes)[0]

    def ops(
        self, kind: str, *operands: Operand, num_results: int, **attributes: Any
    ) -> list[Value]:
        """All results of an ONNX operation."""
        names = [f"v{next(self.root.numbers)}" for _ in range(num_results)]
        read = [self.value(operand).name for operand in operands]
        self.nodes.append(helper.make_node(kind, read, names, **attributes))
        return [Value(self, name) for name in names]

    def value(self, operand: Operand) -> Value:
        """A value as it is; a number, a list of integers or an array as a constant."""
        if isinstance(operand, Value):
            return operand
        if isinstance(operand, float):
            operand = np.float32(operand)  # type: ignore[assignment]
        array = np.asarray(operand)
        key = (array.dtype.str, array.shape, array.tobytes())
        constants = self.root.constants
        if key not in constants:
            constants[key] = numpy_helper.from_array(array, f"c{len(constants)}")
        return Value(self, constants[key].name)

    def input(self, name: str, dtype: Any, num_axes: int) -> Value:
        """What the caller gives: an array of this type and number of axes."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        axes = [f"{name}_{axis}" for axis in range(num_axes)]
        self.root.inputs.append(helper.make_tensor_value_info(name, kind, axes))
        return Value(self, name)

    def either(
        self, condition: Value, then: Callable[[Graph], Value], other: Callable[[Graph], Value]
    ) -> Value:
        """What the one branch or the other makes; only that one runs."""
        branches = []
        for name, make in (("then", then), ("else", other)):
            graph = Graph(self)
            made = make(graph)
            result = helper.make_tensor_value_info(made.name, TensorProto.FLOAT, None)
            branches.append(helper.make_graph(graph.nodes, name, [], [result]))
        return self.op("If", condition, then_branch=branches[0], else_branch=branches[1])

    def model(self, results: Sequence[tuple[str, Value, Any]]) -> bytes:
        """The graph as onnxruntime reads it; `results` are names, values and types."""
        outputs = []
        for name, value, dtype in results:
            self.nodes.append(helper.make_node("Identity", [value.name], [name]))
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            outputs.append(helper.make_tensor_value_info(name, kind, None))
        graph = helper.make_graph(
            self.nodes, "sidrec", self.inputs, outputs, list(self.constants.values())
        )
        opsets = [helper.make_opsetid("", OPSET)]
        made: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return made.SerializeToString()
