"""The network inside of `torch.compile`, `DataParallel` and `torch.nn.utils.prune`: its own names and weights."""

from __future__ import annotations

from torch import Tensor, nn


def bare_network(model: nn.Module) -> nn.Module:
    """The network inside of `torch.compile` and `DataParallel`."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def bare_name(name: str) -> str:
    """The name of a weight without the marks of compiled modules."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers of a model, ready to store, under the names of the network itself.

    Weights that `torch.nn.utils.prune` masks are stored masked.
    """
    state = {bare_name(name): value for name, value in bare_network(model).state_dict().items()}
    for name in [
        key for key in state if f"{key.removesuffix('_orig')}_mask" in state and key.endswith("_orig")
    ]:
        masked = name.removesuffix("_orig")
        state[masked] = state.pop(name) * state.pop(f"{masked}_mask")
    return {name: plain(value) for name, value in state.items()}


def make_plain(model: nn.Module) -> None:
    """Make what `torch.nn.utils.prune` masks a plain, masked parameter again, in place."""
    from torch.nn.utils import prune

    for module in model.modules():
        for name in [key.removesuffix("_mask") for key in module._buffers if key.endswith("_mask")]:
            if f"{name}_orig" in module._parameters:
                prune.remove(module, name)


def own_names(model: nn.Module) -> dict[str, str]:
    """The name in `model.named_parameters()` of each parameter, by its name in the bare network."""
    wrapped = {id(value): name for name, value in model.named_parameters()}
    return {bare_name(name): wrapped[id(value)] for name, value in bare_network(model).named_parameters()}


def plain(value: Tensor) -> Tensor:
    """A detached CPU copy; a 4-D weight keeps its values, not its channels_last strides."""
    return value.detach().cpu().contiguous()
