"""`mobilenet` and `mobilenet-imagenet`: MobileNetV2 with the CIFAR or the ImageNet stem."""

from __future__ import annotations

from torch import nn

from prunebench.models.base import Classifier


def mobilenet(num_classes: int, *, cifar_stem: bool, width: float = 1.0) -> Classifier:
    """torchvision's MobileNetV2 (inverted residuals, depthwise convolutions); dropout 0.2 stands before the head.

    The CIFAR stem has stride 1 in the first convolution. `width` is MobileNetV2's own multiplier: channels are
    rounded to multiples of 8, and features never fall below 1280.
    """
    from torchvision.models import mobilenet_v2

    net = mobilenet_v2(weights=None, width_mult=width)
    if cifar_stem:
        net.features[0][0].stride = (1, 1)
    dropout, head = net.classifier
    net.classifier = nn.Sequential(dropout)
    return Classifier(net, head.in_features, num_classes)
