from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lnlbench.builtin.backbones.cifar_resnet import resnet18_cifar
from lnlbench.builtin.backbones.cnn7 import cnn7
from lnlbench.builtin.backbones.preact_resnet import PreActBlock, preact_resnet18
from lnlbench.builtin.backbones.small_cnn import small_cnn
from lnlbench.builtin.backbones.timm_models import timm_model
from lnlbench.engine.networks import PrecisionNetwork
from lnlbench.errors import UnknownNameError, UsageError

CPU = torch.device("cpu")


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def images(size: int = 8, channels: int = 3, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(3))


def disturb(network: nn.Module) -> None:
    """Give norms statistics and weights that are not the identity, so that a forgotten norm shows."""
    generator = torch.Generator().manual_seed(4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.5, 0.5, generator=generator)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)


def norm_by_hand(values: np.ndarray, norm: nn.BatchNorm2d) -> np.ndarray:
    mean, var, weight, bias = (
        np.asarray(each.detach())[None, :, None, None]
        for each in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        if each is not None
    )
    return (values - mean) / np.sqrt(var + norm.eps) * weight + bias


def conv_by_hand(values: np.ndarray, conv: nn.Conv2d) -> np.ndarray:
    """Cross-correlation as four sums over padded NumPy arrays; no bias."""
    weight = np.asarray(conv.weight.detach(), dtype=np.float64)
    stride, pad, side = conv.stride[0], int(conv.padding[0]), weight.shape[2]
    padded = np.pad(values, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    size = (padded.shape[2] - side) // stride + 1
    out = np.zeros((len(values), len(weight), size, size))
    for y in range(size):
        for x in range(size):
            window = padded[:, :, y * stride : y * stride + side, x * stride : x * stride + side]
            out[:, :, y, x] = np.einsum("bihw,oihw->bo", window, weight)
    return out


def block_by_hand(values: np.ndarray, block: PreActBlock) -> np.ndarray:
    activated = np.maximum(norm_by_hand(values, block.norm1), 0)
    hidden = np.maximum(norm_by_hand(conv_by_hand(activated, block.conv1), block.norm2), 0)
    shortcut = conv_by_hand(activated, block.shortcut) if isinstance(block.shortcut, nn.Conv2d) else activated
    return conv_by_hand(hidden, block.conv2) + shortcut


@pytest.mark.parametrize(("num_classes", "expected"), [(10, 11_171_274), (100, 11_217_444)])
def test_preact_resnet18_has_the_published_size(num_classes: int, expected: int) -> None:
    network = preact_resnet18("preact-resnet18", num_classes=num_classes, channels=3, image_size=32)
    assert count(network) == expected
    assert network.num_features == 512


@pytest.mark.parametrize(("in_width", "width", "stride"), [(3, 3, 1), (3, 5, 1), (3, 3, 2), (2, 4, 2)])
def test_preact_block_by_hand(in_width: int, width: int, stride: int) -> None:
    torch.manual_seed(1)
    block = PreActBlock(in_width, width, stride).eval()
    disturb(block)
    inputs = images(6, in_width)
    expected = block_by_hand(np.asarray(inputs, dtype=np.float64), block)
    with torch.no_grad():
        outputs = block(inputs.clone())
    np.testing.assert_allclose(outputs.numpy(), expected, atol=1e-5)
    assert isinstance(block.shortcut, nn.Identity) == (in_width == width and stride == 1)


def test_an_identity_shortcut_carries_the_activated_input() -> None:
    block = PreActBlock(3, 3, 1).eval()
    disturb(block)
    nn.init.zeros_(block.conv2.weight)
    inputs = images(6)
    with torch.no_grad():
        outputs = block(inputs.clone())
        activated = F.relu(block.norm1(inputs))
    assert torch.equal(outputs, activated)
    assert not torch.allclose(outputs, inputs)


def test_preact_resnet18_has_no_norm_after_the_last_block() -> None:
    torch.manual_seed(1)
    network = preact_resnet18("preact-resnet18", num_classes=10, channels=3, image_size=8).eval()
    disturb(network)
    stem, blocks = network.stem, network.blocks
    assert isinstance(stem, nn.Sequential)
    assert isinstance(blocks, nn.Sequential)
    maps = np.maximum(norm_by_hand(conv_by_hand(np.asarray(images(), dtype=np.float64), stem[0]), stem[1]), 0)
    for block in blocks:
        assert isinstance(block, PreActBlock)
        maps = block_by_hand(maps, block)
    expected = maps.mean((2, 3))
    with torch.no_grad():
        features = network.embed(images())
    np.testing.assert_allclose(features.numpy(), expected, atol=1e-3 * np.abs(expected).max())
    # The last block ends in a sum, not in an activation.
    assert (features < 0).any()


def test_resnet18_cifar_keeps_the_resolution_in_its_stem() -> None:
    network = resnet18_cifar("resnet18-cifar", num_classes=10, channels=3, image_size=32)
    # ImageNet's 11,689,512, with 10 classes for 1,000 and a 3x3 stem for the 7x7 one.
    assert sum(p.numel() for p in network.parameters()) == 11_689_512 - 990 * 513 - 64 * 3 * (49 - 9)
    sizes = []
    for layer in network.layers.children():  # type: ignore[operator, union-attr]
        layer.register_forward_hook(lambda _, __, maps: sizes.append(tuple(maps.shape[1:])))
    features = network.embed(torch.rand(2, 3, 32, 32))  # type: ignore[operator]
    assert sizes[2:7] == [(64, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert features.shape == (2, 512)
    assert features.min() >= 0  # after a ReLU: post-activation
    grey = resnet18_cifar("resnet18-cifar", num_classes=10, channels=1, image_size=8)
    assert grey(torch.rand(2, 1, 8, 8)).isfinite().all()


def test_cnn7_by_hand() -> None:
    network = cnn7("cnn7", num_classes=10, channels=3, image_size=32)
    widths = [3, 64, 64, 128, 128, 196, 16]
    convolutions = sum(9 * a * b + b for a, b in itertools.pairwise(widths))
    norms = 2 * sum(widths[1:])
    assert count(network) == convolutions + norms + (256 * 10 + 10)
    assert network.num_features == 256
    network.eval()
    with torch.no_grad():
        assert network.embed(images(32)).shape == (2, 256)
    with pytest.raises(UsageError, match="at least 8 pixels, these have 4"):
        cnn7("cnn7", num_classes=10, channels=3, image_size=4)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_small_cnn_by_hand(channels: int, size: int) -> None:
    network = small_cnn("small-cnn", num_classes=10, channels=channels, image_size=size)
    widths = [channels, 16, 16, 32, 32, 64]
    convolutions = sum(9 * a * b for a, b in itertools.pairwise(widths))
    assert count(network) == convolutions + 2 * sum(widths[1:]) + (64 * 10 + 10)
    with torch.no_grad():
        assert network.eval().embed(images(size, channels)).shape == (2, 64)


@pytest.mark.parametrize(
    ("build", "name", "size"),
    [
        (preact_resnet18, "preact-resnet18", 32),
        (cnn7, "cnn7", 32),
        (small_cnn, "small-cnn", 8),
        (timm_model, "timm:resnet18", 32),
        (timm_model, "timm:resnet18", 64),
        (timm_model, "timm:vgg11_bn", 32),
        (timm_model, "timm:vit_tiny_patch16_224", 224),
        (timm_model, "timm:vit_tiny_patch16_224", 32),
    ],
)
def test_logits_are_classified_features(build: Callable[..., nn.Module], name: str, size: int) -> None:
    network = build(name, num_classes=7, channels=3, image_size=size).eval()
    batch = images(size)
    with torch.no_grad():
        features = network.embed(batch)
        logits = network(batch)
        assert features.shape == (2, network.num_features)
        assert logits.shape == (2, 7)
        torch.testing.assert_close(network.classify(features), logits)
        if name.startswith("timm:"):
            assert isinstance(network.model, nn.Module)
            torch.testing.assert_close(network.model(batch), logits)


def test_timm_models_take_grey_images() -> None:
    network = timm_model("timm:resnet18", num_classes=10, channels=1, image_size=32).eval()
    with torch.no_grad():
        assert network(images(32, 1)).shape == (2, 10)


def test_an_unknown_timm_model_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown timm model 'resnet81'; did you mean 'resnet18'"):
        timm_model("timm:resnet81", num_classes=10, channels=3, image_size=32)


def test_a_timm_model_without_weights_is_refused_in_one_line() -> None:
    # No weights were ever published for it, so that nothing is looked for on the network.
    with pytest.raises(UsageError) as caught:
        timm_model("timm:vit_small_patch16_36x1_224+pretrained", num_classes=10, channels=3, image_size=224)
    assert "\n" not in str(caught.value)


def wrapped(precision: str, compiled: bool = False) -> PrecisionNetwork:
    torch.manual_seed(1)
    inner = small_cnn("small-cnn", num_classes=10, channels=3, image_size=8)
    return PrecisionNetwork(inner, precision, CPU, compiled)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_outputs_are_float32_whatever_the_precision(precision: str) -> None:
    network = wrapped(precision).eval()
    features = network.embed(images())
    assert network.num_features == features.shape[1] == 64
    for output in (network(images()), features, network.classify(features)):
        assert output.dtype == torch.float32
    torch.testing.assert_close(network.classify(features), network(images()), atol=2e-2, rtol=2e-2)


def test_bf16_is_really_used() -> None:
    in_full, in_half = wrapped("float32").eval(), wrapped("bf16").eval()
    with torch.no_grad():
        full, half = in_full(images()), in_half(images())
    assert not torch.equal(full, half)
    torch.testing.assert_close(full, half, atol=5e-2, rtol=5e-2)
    assert torch.equal(half, half.bfloat16().float())
    assert all(parameter.dtype == torch.float32 for parameter in in_half.parameters())


def test_convolutions_are_channels_last() -> None:
    network = wrapped("float32")
    kernels = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(kernels) == 5
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_gradients_reach_every_weight_and_steps_change_the_output(precision: str) -> None:
    network = wrapped(precision).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    outputs = []
    for _ in range(3):
        # The same forward pass twice within a step must not freeze a low-precision copy of the weights.
        network.embed(images())
        logits = network(images())
        outputs.append(logits.detach())
        loss = F.cross_entropy(logits, torch.tensor([1, 2]))
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.abs().sum() > 0, name
        optimizer.step()
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


def test_a_copy_has_its_own_weights() -> None:
    network = wrapped("float32").eval()
    twin = copy.deepcopy(network)
    before = network(images())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(network(images()), before)
    assert torch.equal(twin(images()), torch.zeros(2, 10))


def test_the_state_is_that_of_the_backbone() -> None:
    network, other = wrapped("float32"), wrapped("bf16")
    assert set(network.state_dict()) == {f"inner.{name}" for name in network.inner.state_dict()}
    disturb(network)
    other.load_state_dict(network.state_dict())
    for left, right in zip(network.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own dependencies warn
def test_a_compiled_network_computes_the_same() -> None:
    class Tiny(nn.Module):
        """Small, since compiling takes seconds per operation."""

        num_features = 4

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def embed(self, images: Tensor) -> Tensor:
            return F.relu(self.layer(images.flatten(1)))

        def classify(self, features: Tensor) -> Tensor:
            return features + 1

    inner = Tiny()
    plain, compiled = (PrecisionNetwork(inner, "float32", CPU, each) for each in (False, True))
    with torch.no_grad():
        torch.testing.assert_close(compiled(images(2, 1)), plain(images(2, 1)))
    assert set(compiled.state_dict()) == set(plain.state_dict())
