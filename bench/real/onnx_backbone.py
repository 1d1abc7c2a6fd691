"""Convert DINOv2-small from an ONNX file to a transformers checkpoint."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

PREFIX = "backbone."
N_PATCHES = 37 * 37


def read_backbone(path: Path) -> dict[str, Tensor]:
    """The state dict of a Dinov2Model. Linear weights have no names in the file, so they get those of their biases.

    Raises:
        ValueError: a weight has no named bias, or there is not exactly one pair of position embeddings.
    """
    graph = onnx.load(path).graph
    values = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    state = {name.removeprefix(PREFIX): value for name, value in values.items() if name.startswith(PREFIX)}
    added = {name: node.input for node in graph.node if node.op_type == "Add" for name in node.input}
    for node in graph.node:
        weight = node.input[-1] if node.op_type == "MatMul" else ""
        if weight in values:
            bias = next((name for name in added[node.output[0]] if name.startswith(PREFIX)), None)
            if bias is None:
                raise ValueError(f"{path}: no named bias after {weight}")
            # ONNX multiplies from the right: in x out.
            state[bias.removeprefix(PREFIX).removesuffix("bias") + "weight"] = values[weight].T.contiguous()
    nameless = [value for name, value in values.items() if name.startswith("onnx::") and value.ndim == 3]
    first = [value for value in nameless if value.shape == (1, 1, 384)]
    rest = [value for value in nameless if value.shape == (1, N_PATCHES, 384)]
    if len(first) != 1 or len(rest) != 1:
        raise ValueError(f"{path}: expected one position embedding of a class token and one of {N_PATCHES} patches")
    state["embeddings.position_embeddings"] = torch.cat([first[0], rest[0]], dim=1)
    # Only pre-training with masked patches uses it, so the export leaves it out.
    state["embeddings.mask_token"] = torch.zeros(1, 384)
    return state


def write_backbone(path: Path, folder: Path) -> None:
    """Convert the ONNX file `path` into a checkpoint folder.

    Raises:
        ValueError: a tensor is missing or left over.
    """
    settings = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518)
    settings.architectures = ["Dinov2Model"]
    settings.save_pretrained(folder)
    save_file(read_backbone(path), folder / "model.safetensors", {"format": "pt"})
    # Loading from the file renames tensors as transformers does in memory.
    _, info = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    problems = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if problems:
        raise ValueError(f"{path}: the tensors do not make a Dinov2Model: {problems}")


def largest_difference(path: Path, folder: Path) -> float | None:
    """The largest absolute difference of the last hidden states between the ONNX file and the checkpoint.

    Measured with onnxruntime on two images of noise, 224 x 224; None if onnxruntime is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    content = onnx.load(path)
    # The file continues with a decoder, so its input is taken as the output.
    output = next(node.output[0] for node in content.graph.node if f"{PREFIX}layernorm.bias" in node.input)
    content.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (theirs,) = session.run([output], {content.graph.input[0].name: images.numpy()})
    with torch.no_grad():
        ours = Dinov2Model.from_pretrained(folder).eval()(pixel_values=images).last_hidden_state
    return float((torch.from_numpy(theirs) - ours).abs().max())
