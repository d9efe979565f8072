"""A sparse network in one safetensors file: packed weights as tensors, layouts and geometry as JSON beside them.

The file holds no code: the network's structure comes from a model of the same architecture when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunebench_kernels.channels import Channels
from prunebench_kernels.dispatch import ArgumentError
from prunebench_kernels.fold import Layer, set_parameters
from prunebench_kernels.layouts import Geometry, PackedWeight
from prunebench_kernels.measured import Decision
from prunebench_kernels.sparse_conv import SparseConv2d
from prunebench_kernels.sparsify import LayerFacts, SparseNetwork, fold_dense

FORMAT = 2
KEY = "prunebench_sparse"


def save_sparse(network: SparseNetwork, path: Path | str) -> None:
    """Write the network's weights, layouts and report. Raises ArgumentError on anything but a SparseNetwork."""
    from safetensors.torch import save_file

    if not isinstance(network, SparseNetwork):
        raise ArgumentError(f"network: want what sparsify returns, got {type(network).__name__}")
    state = network.traced.state_dict()
    facts = {
        "format": FORMAT,
        "structure": _structure(network),
        "example": list(network.example_shape),
        "dtype": str(network.dtype).removeprefix("torch."),
        "channels_last": [name for name, tensor in state.items() if _is_channels_last(tensor)],
        "layers": {name: _layer_facts(conv) for name, conv in network.convolutions.items()},
        "channels": {name: asdict(facts) for name, facts in network.facts.items()},
        "whole": network.whole.to_json(),
        "as_called": network.as_called.to_json(),
    }
    tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, path, metadata={KEY: json.dumps(facts)})


def load_sparse(model: nn.Module, path: Path | str, *, device: torch.device | str = "cpu") -> SparseNetwork:
    """The saved network, on `device`; its outputs are those of the saved one bit for bit on the same machine.

    `model` has the architecture that was made sparse; its weights do not matter, and it is left as it is. Raises
    ArgumentError naming the file if it is none of `save_sparse`, or the architecture is another.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            facts = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if facts["format"] != FORMAT:
            raise ArgumentError(f"path: {path} has format {facts['format']}, this version reads {FORMAT}")
        example = torch.zeros(facts["example"], dtype=getattr(torch, facts["dtype"]))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, ArgumentError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ArgumentError(f"path: {path} holds no sparse network ({reason})") from error
    first = next(model.parameters(), example)
    network = fold_dense(model, example.to(first.device, first.dtype), dtype=example.dtype)
    if _structure(network) != facts["structure"]:
        raise ArgumentError(f"model: is not of the architecture that {path} was saved from")
    with torch.inference_mode(False):
        network.to(device)
        _fill(network, facts, tensors)
    network.whole, network.as_called = (Decision.from_json(facts[name]) for name in ("whole", "as_called"))
    return network


def _structure(network: SparseNetwork) -> str:
    """Hash of what is called in which order on what."""
    number = {node: position for position, node in enumerate(network.traced.graph.nodes)}
    lines = []
    for node in number:
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        lines.append(f"{node.op} {target} {[number[other] for other in node.all_input_nodes]}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _is_channels_last(tensor: Tensor) -> bool:
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _layer_facts(conv: SparseConv2d) -> dict[str, Any]:
    return {
        "layout": conv.layout,
        "geometry": list(conv.geometry.numbers),
        "settings": conv.settings,
        "backend": conv.backend,
        "prepared": conv.is_prepared,
        "decision": conv.decision.to_json(),
    }


def _fill(network: SparseNetwork, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put the file's tensors into the network of the same structure."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name in facts["channels_last"]:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        module, _, leaf = name.rpartition(".")
        groups.setdefault(module, {})[leaf] = tensor
    for path, module in network.traced.named_modules():
        own = groups.pop(path, {})
        if isinstance(module, SparseConv2d):
            _fill_convolution(module, facts["layers"][path], own)
            continue
        if isinstance(module, Layer):
            set_parameters(module, own["weight"], own.get("bias"))
            continue
        for name, tensor in own.items():
            if name in module._parameters:
                module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
            else:
                module._buffers[name] = tensor
    if groups:
        raise ArgumentError(f"model: has no layer {next(iter(groups))} that the file has")
    network.facts = {
        name: LayerFacts(Channels(**values["channels"]), values["density"])
        for name, values in facts["channels"].items()
    }


def _fill_convolution(conv: SparseConv2d, facts: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    packed = {
        name.removeprefix("packed_"): tensor for name, tensor in own.items() if name.startswith("packed_")
    }
    geometry = Geometry.from_numbers(facts["geometry"])
    conv.take(PackedWeight(facts["layout"], geometry, packed, facts["settings"]))
    conv.bias = own.get("bias")
    conv.backend, conv.is_prepared = facts["backend"], facts["prepared"]
    conv.decision = Decision.from_json(facts["decision"])
