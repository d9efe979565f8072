"""Weights trained elsewhere: from a `.safetensors` file into one of the networks here, every tensor accounted for.

Names may be those here (`body.conv1.weight`, `head.weight`) or those of the network alone (`conv1.weight`, `fc.weight`)
behind what wrappers put in front (`module.`, `model.`, ...). So files of torchvision, of timm and of the usual CIFAR
ResNets fit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from prunebench.errors import DataError, MaskError
from prunebench.models.base import Classifier
from prunebench.models.narrow import narrowed

WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "state_dict.")
"""What stands before every name where a network was wrapped when it was saved."""
HEADS = ("fc", "classifier", "classifier.1", "linear", "head", "head.fc")
"""What others call the last layer."""
COUNTER = ".num_batches_tracked"
"""BatchNorm's count of batches: a file may lack it."""
CONVERT = (
    'convert it once where you trust it: python -c "import torch, safetensors.torch as s; '
    "s.save_file(torch.load('FILE', weights_only=True), 'FILE.safetensors')\""
)


def checkpoint_digest(path: Path) -> str:
    """Twelve hex digits of a file's bytes. Raises DataError where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; name a file of weights") from error


def load_checkpoint(path: Path, net: Classifier, *, channels_removed: bool = False) -> Classifier:
    """Put the weights of a file into a network, as float32.

    Args:
        path: a `.safetensors` file.
        net: the network; unchanged where the file does not fit, unless it was narrowed.
        channels_removed: the file may have fewer channels; the network is then narrowed to them first, in place.

    Returns:
        The network.

    Raises:
        DataError: for a file that is missing, damaged or of another format; naming the first tensor, in the order of
            the network, that it lacks, or has in another shape, as integers or with values that are not finite;
            naming one that the network has no place for.
    """
    found = _renamed(_read(path))
    if channels_removed:
        outputs = net.head.out_features
        try:
            narrowed(net, found)
        except MaskError as error:
            raise DataError(f"{path}: {error}") from error
        if net.head.out_features != outputs:
            raise DataError(
                f"{path}: its head has {net.head.out_features} outputs, want {outputs}: another task?"
            )
    state = dict(net.state_dict())
    for name, value in state.items():
        if name not in found:
            if name.endswith(COUNTER):
                continue
            near = min((other for other in found if other not in state), default=None)
            hint = f"; it has {near}, which the network has not" if near else ""
            raise DataError(f"{path}: {name} is missing{hint}: is it another network, or another width?")
        given = found[name]
        if given.shape != value.shape:
            seen, want = (list(each.shape) for each in (given, value))
            raise DataError(
                f"{path}: {name} is {seen}, the network's is {want}: other classes, width or stem?"
            )
        if value.is_floating_point() and not given.is_floating_point():
            raise DataError(
                f"{path}: {name} is {given.dtype}: want floating-point weights, not quantised ones"
            )
        if not torch.isfinite(given).all():
            raise DataError(f"{path}: {name} holds values that are not finite; take an earlier checkpoint")
    for name in sorted(found):
        if name not in state:
            raise DataError(f"{path}: {name} has no place in the network: is it another network?")
    net.load_state_dict({name: found.get(name, value).to(value.dtype) for name, value in state.items()})
    return net


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    if path.suffix != ".safetensors":
        raise DataError(f"{path}: want a .safetensors file, which can run no code; {CONVERT}")
    try:
        found = load(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; name a file of weights") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a whole .safetensors file ({error}); fetch or save it again") from error
    if not found:
        raise DataError(f"{path}: holds no tensors; save the network's state_dict")
    return found


def _renamed(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that they have here."""
    names = list(found)
    while wrapper := next((each for each in WRAPPERS if all(name.startswith(each) for name in names)), None):
        names = [name.removeprefix(wrapper) for name in names]
    if not any(name.startswith("body.") for name in names):
        names = [_ours(name) for name in names]
    return dict(zip(names, found.values()))


def _ours(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    return f"head.{kind}" if layer in HEADS else f"body.{name}"
