"""Residual networks: He et al.'s ResNet-8 and -20 for CIFAR, and ResNet-18 with the CIFAR or the ImageNet stem."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.errors import DataError
from prunebench.models.base import Classifier, scaled

STAGES = (16, 32, 64)


class Shortcut(nn.Module):
    """He et al.'s option A: every other pixel, and zeros for the channels that are missing; it has no weights.

    Pixels are left out by a pooling of one pixel: the gradient of `x[:, :, ::2, ::2]` is not channels_last, and made a
    training step of ResNet-8 a quarter slower (measured in turns on a Zen 4 core).
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        missing = after - before
        self.zeros = (0, 0, 0, 0, missing // 2, missing - missing // 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(functional.avg_pool2d(x, 1, stride=2), self.zeros)


class Block(nn.Module):
    """Two convolutions 3 x 3 with BatchNorm, and the shortcut around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity() if stride == 1 else Shortcut(before, after)

    def follow_channels(self) -> None:
        """Let the shortcut add the channels that the convolutions have by now."""
        if isinstance(self.shortcut, Shortcut):
            self.shortcut = Shortcut(self.conv1.in_channels, self.conv2.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def cifar_resnet(depth: int, num_classes: int, width: float = 1.0) -> Classifier:
    """The ResNet of 6n + 2 layers for 32 x 32 images (He et al., CVPR 2016, section 4.2), shortcuts of option A.

    16, 32 and 64 channels, each times `width`, in three stages of n blocks; He et al.'s initialisation (fan out).
    """
    channels = [scaled(each, width) for each in STAGES]
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, channels[0], 3, padding=1, bias=False),
        "bn1": nn.BatchNorm2d(channels[0]),
        "relu": nn.ReLU(inplace=True),
    }
    before = channels[0]
    for stage, after in enumerate(channels, 1):
        blocks = []
        for place in range((depth - 2) // 6):
            blocks.append(Block(before, after, stride=2 if stage > 1 and not place else 1))
            before = after
        layers[f"layer{stage}"] = nn.Sequential(*blocks)
    layers |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    net = Classifier(nn.Sequential(OrderedDict(layers)), before, num_classes)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def resnet18(
    num_classes: int, *, cifar_stem: bool, weights: Path | None = None, width: float = 1.0
) -> Classifier:
    """torchvision's ResNet-18; the CIFAR stem is a 3 x 3 convolution without max-pooling."""
    from torchvision.models import resnet18 as build

    net = build(weights=None)
    if weights is not None:
        net.load_state_dict(read_weights(weights))
    if cifar_stem:
        net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
    net.fc = nn.Identity()
    if width != 1:
        _scale(net, width)
    return Classifier(net, net.layer4[-1].bn2.num_features, num_classes)


def _scale(net: nn.Module, width: float) -> None:
    """Every convolution and BatchNorm with its channels times `width`, but the three of an image; drawn anew."""
    for module in list(net.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.Conv2d):
                before = 3 if layer.in_channels == 3 else scaled(layer.in_channels, width)
                size, stride, padding = layer.kernel_size, layer.stride, layer.padding
                after = scaled(layer.out_channels, width)
                fresh = nn.Conv2d(before, after, size, stride, padding, bias=False)  # type: ignore[arg-type]
                nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
                setattr(module, name, fresh)
            elif isinstance(layer, nn.BatchNorm2d):
                setattr(module, name, nn.BatchNorm2d(scaled(layer.num_features, width)))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or a `.pth` file of weights alone."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, weights_only=True, map_location="cpu")


def find_imagenet_weights(data_root: Path | None) -> Path:
    """ResNet-18's ImageNet weights, as the user or torchvision stored them. Raises DataError if absent."""
    folders = [Path(torch.hub.get_dir()) / "checkpoints"]
    if data_root is not None:
        folders.insert(0, data_root / "weights")
    for folder in folders:
        for pattern in ("resnet18*.safetensors", "resnet18-*.pth"):
            for path in sorted(folder.glob(pattern)):
                return path
    raise DataError(
        f"no ResNet-18 ImageNet weights in {' or '.join(map(str, folders))}; fetch them with uv run python -c "
        "\"from torchvision.models import resnet18; resnet18(weights='IMAGENET1K_V1')\", "
        "or use the model resnet18-imagenet (the same net, random initialisation)"
    )
