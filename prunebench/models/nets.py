"""`convnet`, `convnet-small`, ResNet-18 and MobileNetV2, the latter two with the CIFAR or the ImageNet stem."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from prunebench.errors import DataError, unknown


class Classifier(nn.Module):
    """A body that ends in pooled features `[N, F]`, and a linear head `[N, C]`."""

    def __init__(self, body: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features `[N, F]` of images `[N, 3, H, W]`."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def _convnet(widths: tuple[int, ...], num_classes: int) -> Classifier:
    """Convolutions 4 x 4, stride 2, each with BatchNorm and ReLU; global average pool; linear head.

    With widths (64, 128, 256) this is the Colored-MNIST net of DCWP's released code.
    """
    layers: list[nn.Module] = []
    for before, width in zip((3, *widths), widths):
        layers += [
            nn.Conv2d(before, width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(body, widths[-1], num_classes)


def _resnet18(num_classes: int, *, cifar_stem: bool, weights: Path | None = None) -> Classifier:
    """torchvision's ResNet-18; the CIFAR stem is a 3 x 3 convolution without max-pooling."""
    from torchvision.models import resnet18

    net = resnet18(weights=None)
    if weights is not None:
        net.load_state_dict(_read_weights(weights))
    if cifar_stem:
        net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
    num_features = net.fc.in_features
    net.fc = nn.Identity()
    return Classifier(net, num_features, num_classes)


def _mobilenet(num_classes: int, *, cifar_stem: bool) -> Classifier:
    """torchvision's MobileNetV2 (inverted residuals, depthwise convolutions); dropout 0.2 stands before the head.

    The CIFAR stem has stride 1 in the first convolution.
    """
    from torchvision.models import mobilenet_v2

    net = mobilenet_v2(weights=None)
    if cifar_stem:
        net.features[0][0].stride = (1, 1)
    dropout, head = net.classifier
    net.classifier = nn.Sequential(dropout)
    return Classifier(net, head.in_features, num_classes)


def _read_weights(path: Path) -> dict[str, Tensor]:
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


PRETRAINED = "resnet18-pretrained"
Builder = Callable[[int, "Path | None"], Classifier]
MODELS: dict[str, Builder] = {
    "convnet": lambda classes, _: _convnet((64, 128, 256), classes),
    "convnet-small": lambda classes, _: _convnet((32, 64, 128), classes),
    "resnet18": lambda classes, _: _resnet18(classes, cifar_stem=True),
    "resnet18-imagenet": lambda classes, _: _resnet18(classes, cifar_stem=False),
    "mobilenet": lambda classes, _: _mobilenet(classes, cifar_stem=True),
    "mobilenet-imagenet": lambda classes, _: _mobilenet(classes, cifar_stem=False),
    PRETRAINED: lambda classes, data_root: _resnet18(
        classes, cifar_stem=False, weights=find_imagenet_weights(data_root)
    ),
}


def identify_model(name: str, data_root: Path | None) -> str:
    """The name under which a run records its model: with pretrained weights, `name:HASH` of the file."""
    if name != PRETRAINED:
        return name
    return f"{name}:{hashlib.sha256(find_imagenet_weights(data_root).read_bytes()).hexdigest()[:12]}"


def build_model(name: str, num_classes: int, *, seed: int, data_root: Path | None = None) -> Classifier:
    """The network `name`, initialised from `seed` alone (and pretrained weights), channels_last, on the CPU."""
    name, _, digest = name.partition(":")
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    if digest and identify_model(name, data_root) != f"{name}:{digest}":
        raise DataError(f"the weights of {name} changed since the run was planned (their hash was {digest})")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MODELS[name](num_classes, data_root)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def contiguous(net: Classifier) -> Classifier:
    """The network with weights that lie as their shape says, in place."""
    for value in [*net.parameters(), *net.buffers()]:
        value.data = value.data.contiguous()
    return net


@contextlib.contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """The model's 4-D weights that train in channels_last, and afterwards as they were; frozen ones may be cached."""
    values = [value for value in model.parameters() if value.ndim == 4 and value.requires_grad]
    moved = [value for value in values if not value.is_contiguous(memory_format=torch.channels_last)]
    for value in moved:
        value.data = value.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for value in moved:
            value.data = value.data.contiguous()
