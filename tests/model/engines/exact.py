"""OpenVINO graphs in exact arithmetic, as a CPU computes them whose products of 8 bits do not saturate."""

import numpy as np
import openvino
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def exact_outputs(model: openvino.Model, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Run a graph operation by operation in float64, whose sums of 8-bit products are exact.

    Args:
        model: as `model.training.quantize.quantized` returns it.
        pixels: uint8[N, H, W, 3].

    Returns:
        The outputs by name.
    """
    values: dict[str, Tensor] = {}
    for node in model.get_ordered_ops():
        inputs = [values[value.get_node().get_friendly_name()] for value in node.input_values()]
        values[node.get_friendly_name()] = _run(node, inputs, pixels)
    return {next(iter(output.names)): values[output.get_node().get_friendly_name()].numpy() for output in model.outputs}


def _run(node: openvino.Node, x: list[Tensor], pixels: NDArray[np.uint8]) -> Tensor:  # noqa: PLR0911, PLR0912
    about = node.get_attributes()
    match node.get_type_name():
        case "Parameter":
            return torch.from_numpy(pixels).double()
        case "Constant":
            return torch.from_numpy(np.array(node.get_data())).double()
        case "Convert" | "Result":
            return x[0]
        case "Transpose":
            return x[0].permute(*x[1].int().tolist())
        case "Add":
            return x[0] + x[1]
        case "Multiply":
            return x[0] * x[1]
        case "Divide":
            return x[0] / x[1]
        case "Relu":
            return x[0].relu()
        case "Convolution":
            assert about["pads_begin"] == about["pads_end"]
            return F.conv2d(x[0], x[1], stride=tuple(about["strides"]), padding=tuple(about["pads_begin"]))
        case "MaxPool":
            return F.max_pool2d(x[0], tuple(about["kernel"]), tuple(about["strides"]), tuple(about["pads_begin"]))
        case "FakeQuantize":
            value, low, high, out_low, out_high = x
            steps = about["levels"] - 1
            level = ((value.clamp(low, high) - low) / (high - low) * steps).round()
            found: Tensor = level / steps * (out_high - out_low) + out_low
            return found
        case "ReduceMean":
            return x[0].mean(tuple(x[1].int().flatten().tolist()), keepdim=about["keep_dims"])
        case "Reshape":
            return x[0].reshape([length or x[0].shape[axis] for axis, length in enumerate(x[1].int().tolist())])
        case "MatMul":
            return (x[0].mT if about["transpose_a"] else x[0]) @ (x[1].mT if about["transpose_b"] else x[1])
        case "ShapeOf":
            return torch.tensor(x[0].shape).double()
        case "Gather":
            return x[0][x[1].long()]
        case other:
            raise NotImplementedError(other)
