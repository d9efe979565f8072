"""`convnet` and `convnet-small`: plain convolutions, as the Colored-MNIST net of DCWP's released code."""

from __future__ import annotations

from torch import nn

from prunebench.models.base import Classifier, scaled


def convnet(widths: tuple[int, ...], num_classes: int, width: float = 1.0) -> Classifier:
    """Convolutions 4 x 4, stride 2, each with BatchNorm and ReLU; global average pool; linear head.

    With widths (64, 128, 256) this is the Colored-MNIST net of DCWP's released code; `width` multiplies them.
    """
    channels = [scaled(each, width) for each in widths]
    layers: list[nn.Module] = []
    for before, after in zip((3, *channels), channels):
        layers += [
            nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        ]
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(body, channels[-1], num_classes)
