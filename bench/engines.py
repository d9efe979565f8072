"""What pruning gains in the engines of a CPU: ResNet-18 at 32 and 224 pixels, dense, narrower, and full of zeros.

    uv run python bench/engines.py [--size 32 224] [--batch 1 64] [--repeats 15] [--page docs/export.md]

Latency does not ask what weights are worth: they are drawn, not trained. `half the MACs` has lost the same share of
channels in every group of coupled layers. Needs the extras `onnx` and `openvino`; run it when nothing else runs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from pages import write_part
from torch import Tensor, nn

from prunebench.data.images import Images
from prunebench.inference.cost import count_macs
from prunebench.inference.export import write_network
from prunebench.methods.structured import nearest, removal_order
from prunebench.models import build_model, narrowed
from prunebench.profile.engines import EngineTimes, TimedNetwork, engine_table, time_engines
from prunebench.profile.network import share_of_zeros
from prunebench.pruning.coupling import coupled_channels, slice_state
from prunebench.pruning.masks import apply_masks, make_masks, prunable
from prunebench.report.markdown import markdown_table
from prunebench.runner.environment import describe_environment

PART = "resnet18"
ENGINES = ("folded", "compile", "sparse", "onnxruntime", "openvino")
ZEROS = (0.9, 0.95, 0.99)
HALF = 0.5
"""The share of multiply-accumulates that goes with removed channels."""
CLASSES, MEAN, STD = 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def dense_network(size: int) -> nn.Module:
    """ResNet-18 for images of this size, its weights drawn: with the small stem for small ones, else torchvision's."""
    if size < 64:
        return build_model("resnet18", CLASSES, seed=0).eval()
    from torchvision.models import resnet18

    torch.manual_seed(0)
    return resnet18(num_classes=CLASSES).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def narrow_network(size: int, x: Tensor) -> nn.Module:
    """The same without the channels of least norm, as large a share of every group; x: one image."""
    net = dense_network(size)
    coupling = coupled_channels(net)
    norms = {name: net.get_parameter(f"{name}.weight").abs().flatten(1).mean(1) for name in coupling.read}
    worth = coupling.reduced({name: norm for name, norm in norms.items() if name in coupling.written})
    order = removal_order(coupling, worth, uniform=True)
    state = slice_state(net.state_dict(), coupling, nearest(net, coupling, order, HALF, x))
    narrow = narrowed(net, state)
    narrow.load_state_dict(state)
    return narrow.eval()


def sparse_network(size: int, sparsity: float) -> nn.Module:
    """The same with the least weights at zero, as large a share of every layer."""
    net = dense_network(size)
    weights = prunable(net)
    apply_masks(net, make_masks({name: weight.abs() for name, weight in weights.items()}, sparsity))
    return net


def networks(size: int, x: Tensor, folder: Path) -> Iterator[TimedNetwork]:
    """All of them, written as ONNX."""
    made: Mapping[str, Callable[[], nn.Module]] = {
        "dense": lambda: dense_network(size),
        "half the MACs, as channels": lambda: narrow_network(size, x[:1]),
        **{f"{share:.0%} zeros": lambda share=share: sparse_network(size, share) for share in ZEROS},
    }
    whole = count_macs(dense_network(size), x[:1])[0]
    for name, make in made.items():
        net, path = make(), folder / f"{size}-{name}.onnx".replace(" ", "-")
        removed = 1 - count_macs(net, x[:1])[0] / whole if "channels" in name else None
        write_network(net, x[:2], path, "onnx", {})
        yield TimedNetwork(name, name, net, path, share_of_zeros(net), removed, name == "dense")


def measure(size: int, batches: list[int], repeats: int) -> tuple[list[TimedNetwork], EngineTimes]:
    """All networks in all engines, one thread, in turns."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (max(batches), 3, size, size), generator=generator, dtype=torch.uint8)
    images = Images(pixels, mean=MEAN, std=STD, device=torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        timed = list(networks(size, images.batch(slice(0, 2)), Path(folder)))
        return timed, time_engines(timed, images, ENGINES, batches=batches, repeats=repeats)


def markdown(size: int, timed: list[TimedNetwork], times: EngineTimes) -> str:
    """A table, and how it was measured."""
    facts = describe_environment("cpu", "fp32")
    floors = ", ".join(f"{floor:.2f} at batch {batch}" for batch, floor in times.noise_floor.items())
    lines = [
        f"{size} x {size}: {facts['cpu']}, one thread, float32, torch {facts['torch']}; {times.repeats} calls of each "
        f"in turns; load average before {times.load_average}; the dense network over itself {floors}.",
        *times.remarks,
    ]
    reasons = {f"{each.engine}: {each.not_measured}" for each in times.entries if each.not_measured}
    return "\n\n".join([" ".join([*lines, *sorted(reasons)]), markdown_table(engine_table(timed, times))])


def main() -> None:
    """Measure; print, or write into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[32, 224])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    text = "\n\n".join(
        markdown(size, *measure(size, options.batch, options.repeats)) for size in options.size
    )
    print(text)
    if options.page is not None:
        write_part(options.page, PART, text)


if __name__ == "__main__":
    main()
