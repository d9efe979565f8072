"""masked_conv2d: kernels in Triton's interpreter and the torch path against the float64 oracle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import ODD_CONVS, RESNET18_32, ConvCase
from kernel_tolerances import TOLERANCE
from prunebench_kernels import ArgumentError, explain, reference, tuned
from prunebench_kernels import backend as backends
from prunebench_kernels import masked_conv_parts as parts
from prunebench_kernels.masked_conv import MaskedConv2d, masked_conv2d, masked_conv2d_op
from prunebench_kernels.masked_conv_configurations import configuration, tuning_candidates
from prunebench_kernels.masked_conv_parts import Configuration, Geometry, Plan
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda uniform: (uniform < 0.5).to(uniform.dtype),
    "empty": torch.zeros_like,
    "full": torch.ones_like,
    "float": lambda uniform: 3 * uniform - 1,
}
BY_NAME = {case.name: case for case in ODD_CONVS}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
NAMES = ("y", "dx", "dweight", "dmask", "dbias")


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Uninitialised memory is NaN, so that what a kernel leaves out shows; float32 is not TF32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = allowed


def inputs(
    case: ConvCase, kind: str = "random", dtype: torch.dtype = torch.float32, layout: str = "nchw"
) -> list[Tensor]:
    """x, weight, mask and bias that require gradients, values exact in `dtype`."""
    generator = torch.Generator().manual_seed(len(case.name))
    x = torch.randn(case.x_shape, generator=generator)
    weight = torch.randn(case.weight_shape, generator=generator)
    mask = MASKS[kind](torch.rand(case.weight_shape, generator=generator))
    bias = torch.randn(case.out_channels, generator=generator)
    made = [tensor.to(dtype) for tensor in (x, weight, mask, bias)]
    made[:3] = [tensor.to(memory_format=LAYOUTS[layout]) for tensor in made[:3]]
    return [tensor.requires_grad_() for tensor in made]


def geometry_of(case: ConvCase, layout: str = "nchw") -> Geometry:
    x, weight, _, _ = inputs(case, layout=layout)
    return Geometry.of(x, weight, list(case.stride), list(case.padding), list(case.dilation), case.groups)


def outgoing(case: ConvCase, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(99)
    return torch.randn(case.y_shape, generator=generator).to(dtype)


def oracle(case: ConvCase, tensors: list[Tensor]) -> dict[str, Tensor]:
    """Output and gradients in float64, by autograd on the formula."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in tensors]
    y = reference.masked_conv2d(*leaves, **case.arguments)
    y.backward(outgoing(case, tensors[0].dtype).double())
    return dict(zip(NAMES, [y.detach(), *(leaf.grad for leaf in leaves)], strict=True))  # type: ignore[arg-type]


def computed(case: ConvCase, tensors: list[Tensor], backend: str) -> dict[str, Tensor]:
    y = masked_conv2d(*tensors, **case.arguments, backend=backend)
    y.backward(outgoing(case, y.dtype))
    return dict(zip(NAMES, [y.detach(), *(tensor.grad for tensor in tensors)], strict=True))  # type: ignore[arg-type]


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Largest error relative to the largest value; what should be zero is exactly zero."""
    bound = TOLERANCE["masked_conv2d", dtype]["rtol"]
    for name, value in actual.items():
        error = (value.double() - expected[name]).abs().max()
        largest = expected[name].abs().max()
        assert value.shape == expected[name].shape, name
        assert error <= bound * largest, f"{name}: {error:.2e} of {largest:.2e}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ODD_CONVS, ids=lambda case: case.name)
def test_kernels(case: ConvCase, layout: str) -> None:
    kind = list(MASKS)[(ODD_CONVS.index(case) + list(LAYOUTS).index(layout)) % 2 * 3]  # random or float
    tensors = inputs(case, kind, layout=layout)
    actual = computed(case, tensors, "triton")
    assert_close(actual, oracle(case, tensors), torch.float32)
    assert actual["y"].is_contiguous(memory_format=LAYOUTS[layout])
    assert actual["dx"].stride() == tensors[0].stride()
    assert actual["dweight"].stride() == tensors[1].stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["same 3x3", "stride 2x1, kernel 3x2", "two groups"])
def test_kernels_in_half_precision(name: str, layout: str) -> None:
    case = BY_NAME[name]
    tensors = inputs(case, "float", torch.float16, layout)
    actual = computed(case, tensors, "triton")
    assert {value.dtype for value in actual.values()} == {torch.float16}
    assert_close(actual, oracle(case, tensors), torch.float16)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", ["stride 2", "pointwise"])
def test_kernels_by_mask(name: str, kind: str) -> None:
    tensors = inputs(BY_NAME[name], kind)
    assert_close(computed(BY_NAME[name], tensors, "triton"), oracle(BY_NAME[name], tensors), torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("case", ODD_CONVS, ids=lambda case: case.name)
def test_torch_path(case: ConvCase, kind: str, layout: str) -> None:
    tensors = inputs(case, kind, layout=layout)
    actual = computed(case, tensors, "torch")
    assert_close(actual, oracle(case, tensors), torch.float32)
    assert actual["y"].is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_integer_masks(dtype: torch.dtype, backend: str) -> None:
    case = BY_NAME["no padding"]
    x, weight, mask, bias = inputs(case)
    expected = oracle(case, [x, weight, mask, bias])
    del expected["dmask"]
    y = masked_conv2d(x, weight, mask.to(dtype), bias, **case.arguments, backend=backend)
    y.backward(outgoing(case, y.dtype))
    actual = {"y": y.detach(), "dx": x.grad, "dweight": weight.grad, "dbias": bias.grad}
    assert_close(actual, expected, torch.float32)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize(
    "stretch", [lambda bias: bias.repeat_interleave(2)[::2], lambda bias: bias[:1].expand(5)]
)
def test_bias_of_any_stride(stretch: Callable[[Tensor], Tensor], backend: str) -> None:
    case = BY_NAME["dilation 2"]
    x, weight, mask, bias = inputs(case)
    tensors = [x, weight, mask, stretch(bias.detach())]
    assert tensors[3].stride() != (1,)
    y = masked_conv2d(*tensors, **case.arguments, backend=backend)
    assert_close({"y": y.detach()}, oracle(case, tensors), torch.float32)


@pytest.mark.parametrize("backend", [None, "triton"])
def test_shapes_of_meta_tensors(backend: str | None) -> None:
    case = BY_NAME["stride 2"]
    x, weight, mask, bias = (tensor.to("meta") for tensor in inputs(case, layout="nhwc"))
    y = masked_conv2d(x, weight, mask, bias, **case.arguments, backend=backend)
    assert (y.device.type, y.shape) == ("meta", case.y_shape)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert [grad.shape for grad in torch.autograd.grad(y.sum(), (x, weight, mask, bias))] == [
        x.shape,
        weight.shape,
        mask.shape,
        bias.shape,
    ]


FUSED = [
    Plan(fused_weight=True),  # what a GPU runs where nothing was measured
    Plan(forward=Configuration(32, 16, 16, fuse_mask=True), fused_weight=True),
    Plan(dgrad=Configuration(16, 32, 16, fuse_mask=True), fused_weight=True),
    Plan(wgrad=Configuration(16, 16, 32, splits=3), fused_weight=True),
    Plan(dgrad=Configuration(16, 16, 16), wgrad=Configuration(32, 16, 16, splits=1), fused_weight=True),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("plan", FUSED, ids=["cudnn", "forward", "dgrad", "wgrad", "both gradients"])
@pytest.mark.parametrize("name", ["stride 2", "two groups"])
def test_parts_mix(name: str, plan: Plan, layout: str) -> None:
    case = BY_NAME[name]
    tensors = inputs(case, "float", layout=layout)
    tensors[2] = tensors[2].detach().contiguous()  # strides that differ from the weight's
    geometry = geometry_of(case, layout)
    detached = [tensor.detach() for tensor in tensors]
    grad = outgoing(case, torch.float32)
    made = [
        parts.run_forward(*detached, geometry, plan),
        *parts.run_backward(grad, *detached[:3], geometry, plan, [True] * 4),
    ]
    assert_close(dict(zip(NAMES, made, strict=True)), oracle(case, tensors), torch.float32)


@pytest.mark.parametrize(
    "needed", [(True, False, False, False), (False, True, False, True), (False, False, True, False)]
)
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_only_needed_gradients(needed: tuple[bool, ...], backend: str) -> None:
    case = BY_NAME["pointwise"]
    tensors = inputs(case, "float")
    expected = oracle(case, tensors)
    for tensor, need in zip(tensors, needed, strict=True):
        tensor.requires_grad_(need)
    actual = computed(case, tensors, backend)
    for name, need in zip(NAMES[1:], needed, strict=True):
        assert (actual[name] is not None) == need
    assert_close({k: v for k, v in actual.items() if v is not None}, expected, torch.float32)


def test_splits_repeat_bit_by_bit_and_agree() -> None:
    from prunebench_kernels.masked_conv_backward_triton import launch_wgrad

    case = BY_NAME["stride 2x1, kernel 3x2"]
    x, grad, geometry = inputs(case)[0].detach(), outgoing(case, torch.float32), geometry_of(case)
    whole = launch_wgrad(grad, x, geometry, Configuration(16, 16, 16, splits=1))
    for splits in (1, 3, 8):  # 4 steps of 16 pixels: of 8 splits 4 have none
        tile = Configuration(16, 16, 16, splits=splits)
        first, again = (launch_wgrad(grad, x, geometry, tile) for _ in range(2))
        assert first.shape == (splits, 5, 3, 2, 4)
        assert torch.equal(first, again)
        torch.testing.assert_close(first.sum(0), whole[0], rtol=1e-5, atol=1e-5)


def test_tiles_agree_and_outputs_may_be_given() -> None:
    from prunebench_kernels.masked_conv_triton import launch_dgrad, launch_forward

    case = BY_NAME["stride 3"]
    tensors = inputs(case, "float")
    x, weight, mask, bias = (tensor.detach() for tensor in tensors)
    geometry, expected = geometry_of(case), oracle(case, tensors)
    for tile in (Configuration(16, 16, 16), Configuration(32, 64, 32, fuse_mask=True)):
        y, dx = torch.empty(case.y_shape), torch.empty(case.x_shape)
        assert launch_forward(x, weight, mask, bias, geometry, tile, out=y) is y
        assert launch_dgrad(outgoing(case, torch.float32), weight, mask, geometry, tile, out=dx) is dx
        assert_close({"y": y, "dx": dx}, expected, torch.float32)


@pytest.mark.parametrize("name", ["stride 2x1, kernel 3x2", "two groups", "dilation 3x1, stride 2"])
def test_gradcheck(name: str) -> None:
    case = replace(BY_NAME[name], batch=1, height=5, width=5, padding=(3, 1))
    tensors = inputs(case, "float", torch.float64)
    assert torch.autograd.gradcheck(
        lambda *args: masked_conv2d(*args, **case.arguments, backend="torch"), tensors
    )


# Of torch's own check, which looks at the gradients of copies.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("layout", "backend"), [("nchw", "torch"), ("nhwc", "triton")])
def test_opcheck(layout: str, backend: str) -> None:
    case = replace(BY_NAME["stride 2"], batch=1)
    settings = (list(case.stride), list(case.padding), list(case.dilation), case.groups, backend)
    torch.use_deterministic_algorithms(False)  # opcheck compares uninitialised outputs of its own
    tensors = inputs(case, layout=layout)
    torch.library.opcheck(masked_conv2d_op, (*tensors, *settings))
    needed = [True, True, True, True]
    arguments = (
        outgoing(case, torch.float32),
        *(tensor.detach() for tensor in tensors[:3]),
        *settings,
        needed,
    )
    torch.library.opcheck(torch.ops.prunebench.masked_conv2d_backward.default, arguments)


def test_compiles_whole() -> None:
    case = BY_NAME["same 3x3"]
    tensors = inputs(case, layout="nhwc")
    expected = computed(case, tensors, "torch")
    for tensor in tensors:
        tensor.grad = None
    whole = torch.compile(masked_conv2d, backend="aot_eager", fullgraph=True)
    y = whole(*tensors, **case.arguments, backend="torch")
    y.backward(outgoing(case, y.dtype))
    for name, value in zip(NAMES, [y.detach(), *(tensor.grad for tensor in tensors)], strict=True):
        torch.testing.assert_close(value, expected[name], msg=name)


def test_second_derivatives_and_transforms_raise() -> None:
    x, weight, mask, _ = inputs(BY_NAME["same 3x3"])
    y = masked_conv2d(x, weight, mask).square().sum()
    (gradient,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(lambda mask: masked_conv2d(x, weight, mask).sum())(mask)


def test_keeps_no_product() -> None:
    tensors = inputs(BY_NAME["same 3x3"])
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor), lambda _: None):
        masked_conv2d(*tensors, padding=1)
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in tensors[:3]}


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_materialised_mask(layout: str, bf16: bool) -> None:
    """Same values to the bit as conv2d(x, weight * mask) by autograd, under autocast too."""
    case = RESNET18_32[128][1]
    case = replace(case, batch=2, height=8, width=8)
    tensors, others = (inputs(case, "float", layout=layout) for _ in range(2))
    grad = outgoing(case, torch.float32).to(memory_format=LAYOUTS[layout])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = masked_conv2d(*tensors, padding=1)
        expected = functional.conv2d(others[0], others[1] * others[2], others[3], padding=1)
    assert y.dtype == expected.dtype
    assert y.stride() == expected.stride()
    y.backward(grad.to(y.dtype))
    expected.backward(grad.to(y.dtype))
    assert torch.equal(y, expected)
    for name, ours, theirs in zip(NAMES[1:], tensors, others, strict=True):
        assert torch.equal(ours.grad, theirs.grad), name  # type: ignore[arg-type]
        assert ours.grad.dtype == torch.float32  # type: ignore[union-attr]


def test_autocast_in_half_precision_on_the_kernels() -> None:
    case = BY_NAME["same 3x3"]
    tensors = inputs(case, "random")
    with torch.autocast("cpu", torch.float16):
        actual = computed(case, tensors, "triton")
    assert actual["y"].dtype == torch.float16
    assert actual["dmask"].dtype == torch.float32
    assert_close(actual, oracle(case, tensors), torch.float16)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # of torch's own
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(3, 3), (4, 2)])
def test_named_padding(padding: str, kernel: tuple[int, int]) -> None:
    case = replace(BY_NAME["same 3x3"], kernel=kernel)
    tensors = inputs(case)
    expected = functional.conv2d(tensors[0], tensors[1] * tensors[2], padding=padding, dilation=(1, 2))
    actual = masked_conv2d(*tensors[:3], padding=padding, dilation=(1, 2))
    torch.testing.assert_close(actual, expected)


def test_module() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3, padding="same", groups=2)
    )
    state = torch.get_rng_state()
    masked = nn.Sequential(
        MaskedConv2d.from_conv(net[0]), nn.ReLU(), MaskedConv2d.from_conv(net[2], backend="torch")
    )
    assert torch.equal(state, torch.get_rng_state())
    assert masked[0].weight is net[0].weight
    assert masked[0].bias is None
    assert masked[2].backend == "torch"
    x = torch.randn(2, 4, 7, 7)
    torch.testing.assert_close(masked(x), net(x))
    mask = torch.rand(net[0].weight.shape).requires_grad_()
    y = functional_call(masked, {"0.mask": mask}, (x,))
    torch.testing.assert_close(y, functional_call(net, {"0.weight": net[0].weight * mask}, (x,)))
    y.sum().backward()
    assert mask.grad is not None
    assert mask.grad.abs().max() > 0
    assert set(masked.state_dict()) == {"0.weight", "0.mask", "2.weight", "2.bias", "2.mask"}
    with pytest.raises(ArgumentError, match="padding_mode: want zeros"):
        MaskedConv2d.from_conv(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"))


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "mask shape": ({"mask": torch.ones(6, 2, 3, 2)}, "mask: shape"),
    "mask dtype": ({"mask": torch.ones(6, 2, 3, 3, dtype=torch.int64)}, "mask: want a floating"),
    "no tensor": ({"mask": 1}, "mask: want a torch tensor"),
    "integer x": ({"x": torch.ones(2, 4, 5, 5, dtype=torch.int32)}, "x: want a floating"),
    "no batch": ({"x": torch.ones(4, 5, 5)}, "x: want 4 dimensions"),
    "empty batch": ({"x": torch.ones(0, 4, 5, 5)}, "x: is empty"),
    "groups": ({"groups": 4}, "groups: 4 must divide"),
    "zero groups": ({"groups": 0}, "groups: 0"),
    "channels": ({"x": torch.ones(2, 6, 5, 5)}, "weight: takes 2 x 2 channels, x has 6"),
    "bias": ({"bias": torch.ones(5)}, r"bias: want shape \(6,\)"),
    "bias dtype": ({"bias": torch.ones(6, dtype=torch.int32)}, "bias: want a floating"),
    "dtypes": (
        {"x": torch.ones(2, 4, 5, 5, dtype=torch.float64)},
        "weight: is torch.float32, x is torch.float64",
    ),
    "device": ({"mask": torch.ones(6, 2, 3, 3, device="meta")}, "mask: is on meta"),
    "kernel": ({"padding": 0, "dilation": 3}, "weight: the dilated kernel spans 7 pixels"),
    "stride": ({"stride": 0}, "stride: want at least 1"),
    "stride that has no hash": ({"stride": {}}, "stride: want an integer or a pair"),
    "padding that has no hash": ({"padding": [[1], 1]}, "padding: want an integer or a pair"),
    "padding": ({"padding": -1}, "padding: want at least 0"),
    "padding name": ({"padding": "full"}, "padding: want same, valid"),
    "same with stride": ({"padding": "same", "stride": 2}, "padding: same needs stride 1"),
    "dilation": ({"dilation": (1, 2, 3)}, "dilation: want an integer or a pair"),
    "backend": ({"backend": "cuda"}, "backend: want one of"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument(name: str) -> None:
    changes, message = ERRORS[name]
    arguments: dict[str, Any] = {
        "x": torch.ones(2, 4, 5, 5),
        "weight": torch.ones(6, 2, 3, 3),
        "mask": torch.ones(6, 2, 3, 3),
        "groups": 2,
        "padding": 1,
    }
    with pytest.raises(ArgumentError, match=f"^{message}"):
        masked_conv2d(**{**arguments, **changes})


def test_explains_on_a_cpu() -> None:
    x, weight, mask, bias = inputs(BY_NAME["same 3x3"])
    assert "need a GPU" in explain(masked_conv2d, x, weight, mask, bias).reason
    assert explain("masked_conv2d", x, weight, mask, backend="triton").is_triton
    doubles = [tensor.double() for tensor in (x, weight, mask)]
    choice = explain("masked_conv2d", *doubles, backend="triton")
    assert (choice.backend, choice.reason) == (
        "torch",
        "the kernels accumulate in float32; float64 runs in torch",
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert "bfloat16 wrongly" in explain("masked_conv2d", x, weight, mask, backend="triton").reason
    with pytest.raises(ArgumentError, match="mask: shape"):
        explain("masked_conv2d", x, weight, mask[:1])


def test_the_interpreter_is_taken_only_where_asked_for() -> None:
    choices = {
        (backend, device): backends.select(backend, torch.device(device), torch.float32)
        for backend in ("auto", "triton")
        for device in ("cpu", "cuda", "meta")
    }
    assert [key for key, choice in choices.items() if choice.is_triton] == [
        ("triton", "cpu"),
        ("triton", "cuda"),
    ]
    assert choices["auto", "cpu"].reason == "the tensors are on cpu; Triton kernels need a GPU"
    assert choices["auto", "cuda"].reason == "TRITON_INTERPRET=1 is set; auto does not take the interpreter"
    assert choices["triton", "meta"].reason == "the tensors are on meta; Triton kernels need a GPU"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"batch": 2**16, "height": 256, "width": 256}, "number pixels"),
        ({"batch": 1, "in_channels": 2**20, "height": 64, "width": 64}, "one sample"),
        (
            {
                "in_channels": 2**12,
                "out_channels": 2**19,
                "kernel": (1, 1),
                "padding": (0, 0),
                "height": 1,
                "width": 1,
            },
            "weight's elements",
        ),
        ({"in_channels": 70_000, "out_channels": 70_000, "groups": 70_000}, "grid dimensions"),
    ],
)
def test_refusals(change: dict[str, int], reason: str) -> None:
    geometry = replace(geometry_of(BY_NAME["same 3x3"]), **change)
    assert reason in (parts.refusal(geometry, torch.float16) or "")
    assert parts.refusal(geometry_of(BY_NAME["same 3x3"]), torch.float16) is None


def write_table(operations: dict[str, dict[str, dict[str, Any]]]) -> None:
    """What a process that starts later finds measured on the GPU `some-gpu`."""
    content = {"format": tuned.FORMAT, "gpu": "some-gpu", "operations": operations}
    tuned.table_path("some-gpu").write_text(json.dumps(content))
    tuned._table.cache_clear()


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[..., Plan]:
    """The plan that a GPU would follow, with its tuned table in a fresh folder."""
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    monkeypatch.setattr(tuned, "device_slug", lambda: "some-gpu")
    monkeypatch.setattr(backends, "is_interpreted", lambda: False)
    tuned._table.cache_clear()

    def plan(geometry: Geometry, backend: str | None = None) -> Plan:
        return parts.plan(geometry, torch.float16, torch.device("cuda"), backend)

    return plan


def test_auto_follows_the_tuned_table(on_gpu: Callable[..., Plan]) -> None:
    geometry = geometry_of(BY_NAME["same 3x3"])
    rule = configuration("wgrad", geometry, torch.float16)
    before = on_gpu(geometry)
    assert (before.forward, before.dgrad, before.wgrad, before.fused_weight) == (None, None, None, True)
    assert before.choice.backend == "torch"
    assert "not measured on this GPU" in before.reason

    tile = Configuration(32, 64, 32, splits=5)
    name = parts.key(geometry, torch.float16)
    write_table(
        {
            "masked_conv2d.wgrad": {name: tile.as_entry()},
            "masked_conv2d.forward": {name: {"implementation": "torch"}},
        }
    )
    after = on_gpu(geometry)
    assert (after.forward, after.dgrad, after.wgrad) == (None, None, tile)
    assert after.reason == "measured on this GPU: forward cuDNN, dgrad cuDNN, wgrad Triton"
    assert after.choice.is_triton
    forced = on_gpu(geometry, "triton")
    assert forced.wgrad == tile != rule
    assert forced.forward == configuration("forward", geometry, torch.float16)
    assert on_gpu(replace(geometry, batch=3)).wgrad is None
    assert not on_gpu(geometry, "torch").fused_weight

    write_table({"masked_conv2d.wgrad": {name: {"implementation": "triton", "rows": 16}}})
    with pytest.raises(tuned.TunedTableError, match="not a tuned entry"):
        on_gpu(geometry)


def test_entries_are_looked_up_by_gpu_operation_and_key(on_gpu: Callable[..., Plan]) -> None:
    assert tuned.lookup("op", "a") is None
    write_table({"op": {"a": {"rows": 3}, "b": {"rows": 2}}, "other": {"a": {}}})
    assert [tuned.lookup("op", key) for key in "abc"] == [{"rows": 3}, {"rows": 2}, None]
    assert tuned.lookup("other", "a") == {}
    assert tuned.lookup("none", "a") is None
    assert tuned.lookup("op", "a", slug="another-gpu") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "want an object of format 1, got 'list'"),
        ('{"format": 2}', "want an object of format 1, got 2"),
        ('{"format": 1, "gpu": "x", "operations": {}}', "gpu: want"),
        ('{"format": 1, "gpu": "some-gpu"}', "operations: want an object"),
        ('{"format": 1, "gpu": "some-gpu", "operations": {"op": {"k": 1}}}', "operations.op: want"),
    ],
)
def test_malformed_tuned_tables(on_gpu: Callable[..., Plan], text: str, message: str) -> None:
    path = tuned.table_path("some-gpu")
    path.write_text(text)
    with pytest.raises(tuned.TunedTableError, match=message):
        tuned.lookup("op", "key")


def test_no_table_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert tuned.device_slug() is None
    assert tuned.lookup("op", "key") is None


@pytest.mark.parametrize("case", RESNET18_32[128], ids=lambda case: case.name)
def test_configurations_fill_the_gpu(case: ConvCase) -> None:
    geometry = replace(geometry_of(replace(case, batch=1)), batch=case.batch, channels_last=True)
    made = configuration("wgrad", geometry, torch.bfloat16)
    outputs, channels = geometry.group_shape
    tiles = -(-outputs // made.rows) * -(-channels // made.columns) * case.kernel[0] * case.kernel[1]
    assert tiles * made.splits >= 66  # half of 132 multiprocessors at least
    for part in parts.PARTS:
        candidates = tuning_candidates(part, geometry, torch.bfloat16)
        assert candidates[0] == configuration(part, geometry, torch.bfloat16)
        assert len(candidates) == len(set(candidates))
        assert len(candidates) > 1
