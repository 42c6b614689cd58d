from __future__ import annotations

import pytest
import torch
from rcig_twin import logits_and_features
from torch.func import jvp, vjp

from ddlnl.errors import InputError
from ddlnl.generators import generator
from ddlnl.rcig_network import ACTIVATIONS, Linearised, Network, dual


def setting(activation, size=16, channels=3, depth=2, count=7):
    """A small network in float64 with its weights, a tangent and images."""
    network = Network(4, depth, 5, size, channels, activation)
    source = generator(0, "test")
    base = network.initialise(source).double()
    base += 0.05 * torch.randn(base.shape, generator=source, dtype=torch.float64)  # biases that are not zero
    tangent = torch.randn(base.shape, generator=source, dtype=torch.float64)
    images = torch.randn(count, channels, size, size, generator=source, dtype=torch.float64)
    return network, base, tangent, images


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("size", "channels", "depth"), [(16, 3, 2), (20, 1, 3), (8, 1, 1)])
def test_derivative_and_its_transpose_agree_with_torch_func_in_float64(activation, size, channels, depth):
    network, base, tangent, images = setting(activation, size, channels, depth)
    linear = Linearised(network, base, images, rows=3)

    def run(flat):
        return logits_and_features(network, flat, images)

    (logits, features), (pushed, _) = jvp(run, (base,), (tangent,))
    torch.testing.assert_close(linear.logits, logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(linear.features, features, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(linear.jvp(tangent), pushed, rtol=1e-11, atol=1e-11)
    cotangent = torch.randn(logits.shape, generator=generator(1, "test"), dtype=torch.float64)
    (expected,) = vjp(lambda flat: run(flat)[0], base)[1](cotangent)
    torch.testing.assert_close(linear.vjp(cotangent), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dual_forward_equals_torch_func_with_its_gradient_in_the_images(activation):
    network, base, tangent, images = setting(activation)
    weights = torch.randn(7, 4, generator=generator(2, "test"), dtype=torch.float64)

    def ours(x):
        features, (one, two) = dual(network, base, [tangent, 2 * base], x)
        return features, one, (one * weights).sum() + (two * weights).square().sum() + features.sum()

    def theirs(x):
        def run(flat):
            return logits_and_features(network, flat, x)

        (_, features), (one, _) = jvp(run, (base,), (tangent,))
        two = jvp(run, (base,), (2 * base,))[1][0]
        return features, one, (one * weights).sum() + (two * weights).square().sum() + features.sum()

    leaves = [images.clone().requires_grad_() for _ in range(2)]
    results = [ours(leaves[0]), theirs(leaves[1])]
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(result[2], leaf)[0] for result, leaf in zip(results, leaves, strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("classes", "depth", "size", "convolutions", "head"),
    [
        (10, 3, 32, 1_478_912, 81_930),
        (100, 3, 32, 1_478_912, 819_300),
        (200, 4, 64, 6_198_528, 3_277_000),
        (10, 5, 128, 25_074_944, 327_690),
    ],
)
def test_parameter_counts_are_the_published_ones(classes, depth, size, convolutions, head):
    network = Network(classes, depth, size=size)
    assert network.parameters == convolutions + head
    assert network.head.stop - network.head.start + classes == head
    assert network.features == {3: 8192, 4: 16384, 5: 32768}[depth]


def test_a_grey_image_of_28_pixels_is_padded_to_32():
    assert Network(10, size=28, channels=1).features == 8192


def test_initial_kernels_are_cut_normals_of_variance_one_over_fan_in_and_biases_are_zero():
    network = Network(10, width=32)
    flat = network.initialise(generator(0, "test"))
    for kernel, bias in network.layers(flat):
        spread = kernel[0].numel() ** -0.5
        assert kernel.std().item() == pytest.approx(spread, rel=0.05 if kernel.numel() < 5000 else 0.02)
        assert kernel.abs().max() < 2.28 * spread
        assert not bias.any()
    assert torch.equal(flat, network.initialise(generator(0, "test")))


@pytest.mark.parametrize("wrong", [{"activation": "softpuls"}, {"size": 12}, {"depth": 0}])
def test_a_network_that_cannot_be_built_is_refused_in_one_sentence(wrong):
    with pytest.raises(InputError, match=r"activation|pools"):
        Network(**{"classes": 3, "depth": 3, "size": 16} | wrong)
