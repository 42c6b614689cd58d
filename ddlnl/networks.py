"""The field's networks: the ConvNet family (arXiv 1806.00146 as used since DC, arXiv 2006.05929) and ResNet-18.

A stack holds the parameters of several networks of one architecture; one call runs them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ddlnl import ops
from ddlnl.errors import InputError

NORMS = ("instance", "batch", "layer", "none")
PRECISIONS = ("float32", "bf16")
POOLINGS = ("avg", "max", "none")


def _norm(kind: str, width: int) -> list[nn.Module]:
    if kind == "none":
        return []
    if kind == "batch":
        return [nn.BatchNorm2d(width)]
    # One group per channel is an affine instance norm without running statistics: train and eval agree.
    return [nn.GroupNorm(width if kind == "instance" else 1, width)]


class Convolution(nn.Conv2d):
    """A convolution that computes in bfloat16 where it is `half`; parameters and their gradients keep their type.

    On a CPU the channels of a pixel lie next to each other in what it reads and gives: a step of the ConvNet is a tenth
    faster that way in float32, and oneDNN several times in bfloat16, where it also wants a fourth channel beside three.
    """

    half = False

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.bfloat16 if self.half else x.dtype
        weight, bias = (one if one is None else one.to(dtype) for one in (self.weight, self.bias))
        x = x.to(dtype)
        if x.is_cpu:  # `torch.channels_last` by hand, which vmap understands
            x = x.movedim(1, -1).contiguous()
            if self.half and self.in_channels == 3:
                x, weight = F.pad(x, (0, 1)), F.pad(weight, (0, 0, 0, 0, 0, 1))
            x = x.movedim(-1, 1)
        return self._conv_forward(x, weight, bias)


class NormReluPool(nn.Module):
    """The tail of a block in one operator (`ddlnl.ops.norm_relu_pool`): instance norm with a weight and bias per
    channel (width 0: no norm, no parameters), ReLU, 2x2 average pool.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if width else None
        self.bias = nn.Parameter(torch.zeros(width)) if width else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.norm_relu_pool(x, self.weight, self.bias, norm=self.weight is not None)


def _tail(norm: str, width: int, pooling: str) -> list[nn.Module]:
    """What follows the convolution of a block."""
    if pooling == "avg" and norm in ("instance", "none"):
        return [NormReluPool(width if norm == "instance" else 0)]
    pool = {"avg": [nn.AvgPool2d(2)], "max": [nn.MaxPool2d(2)], "none": []}[pooling]
    return [*_norm(norm, width), nn.ReLU(), *pool]


class ConvNet(nn.Module):
    """`depth` blocks of Conv3x3, norm, ReLU, 2x2 pooling, then one linear layer; torch's default initialisation.

    `forward` takes (B, channels, size, size) floats and returns (B, classes) logits; `features` returns the flattened
    output of the last block, what the linear layer sees. A grey image wider than 16 pixels is padded by 3 in the first
    convolution, as published (28 pixels become 32). 320,010 parameters for CIFAR-10 at the defaults.
    """

    def __init__(
        self,
        classes: int,
        depth: int = 3,
        width: int = 128,
        size: int = 32,
        channels: int = 3,
        norm: str = "instance",
        pooling: str = "avg",
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise InputError(f"The norm {norm!r} is unknown; it is one of {', '.join(NORMS)}.")
        if pooling not in POOLINGS:
            raise InputError(f"The pooling {pooling!r} is unknown; it is one of {', '.join(POOLINGS)}.")
        wide_grey = channels == 1 and size > 16
        side = size + 4 if wide_grey else size
        if pooling != "none" and side >> depth < 1:
            raise InputError(
                f"A ConvNet of depth {depth} leaves nothing of {size} pixels; "
                f"allowed is a depth of at most {side.bit_length() - 1}."
            )
        blocks: list[nn.Module] = []
        for block in range(depth):
            padding = 3 if block == 0 and wide_grey else 1
            convolution = Convolution(channels if block == 0 else width, width, 3, padding=padding)
            blocks += [convolution, *_tail(norm, width, pooling)]
            if pooling != "none":
                side //= 2
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * side * side, classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, width * s * s) features after the last block, in the type of the parameters."""
        return self.blocks(images).flatten(1).to(self.classifier.weight.dtype)

    def forward(self, images: Tensor, features: bool = False) -> Tensor:
        hidden = self.features(images)
        return hidden if features else self.classifier(hidden)


class _Narrow(torchvision.models.ResNet):
    """torchvision's ResNet-18 with `width` channels in its first stage in place of 64, twice as many in each next."""

    def __init__(self, classes: int, width: int) -> None:
        self.width = width
        super().__init__(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], classes)
        self.bn1, self.fc = nn.BatchNorm2d(width), nn.Linear(8 * width, classes)

    def _make_layer(self, block: type[nn.Module], planes: int, *more: object, **named: object) -> nn.Sequential:
        # The constructor asks for stages of 64 to 512 channels, and has no other way to ask for fewer.
        self.inplanes = self.inplanes if planes > 64 else self.width
        return super()._make_layer(block, planes * self.width // 64, *more, **named)


def resnet18(classes: int, channels: int = 3, width: int = 64) -> nn.Module:
    """torchvision's ResNet-18 with the usual stem for small images: a 3x3 convolution of stride 1, no pooling.

    width: channels of the first of its four stages, 64 in the usual network; each next stage has twice as many.
    """
    network = _Narrow(classes, width)
    network.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def in_precision(network: nn.Module, precision: str) -> nn.Module:
    """`network` itself, with "bf16" changed so that activations are bfloat16 from each convolution to the next norm.

    The fused tails keep their sums in float32 and hand on bfloat16; other norms and the linear layer take and give the
    type of their parameters. Names, shapes and types of the parameters stay as they are. Raises `InputError` on a
    precision outside `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise InputError(f"The precision {precision!r} is unknown; it is one of {', '.join(PRECISIONS)}.")
    if precision == "bf16":
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.__class__, module.half = Convolution, True
            elif isinstance(module, (nn.GroupNorm, nn.BatchNorm2d)):
                module.register_forward_pre_hook(lambda norm, inputs: inputs[0].to(norm.weight.dtype))
    return network


class Stack:
    """M networks of one architecture, run together.

    `parameters` maps each name to an (M, ...) leaf tensor. On a GPU the stack is one vmapped call; on a CPU the
    networks run one after another, which was measured two to five times faster there than vmap's grouped convolutions.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.skeleton = networks[0]
        self.parameters = _stacked([dict(network.named_parameters()) for network in networks])
        self.buffers = _stacked([dict(network.named_buffers()) for network in networks])
        for tensor in self.parameters.values():
            tensor.requires_grad_()

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def __call__(self, images: Tensor, training: bool = True) -> Tensor:
        """(M, B, C, H, W) images, one batch per network, or (B, C, H, W) shared by all, to (M, B, classes) logits."""
        self.skeleton.train(training)
        shared = images.dim() == 4
        if images.is_cuda:
            return vmap(self._run, in_dims=(0, 0, None if shared else 0), randomness="error")(
                self.parameters, self.buffers, images
            )
        parameters, buffers = _split(self.parameters, len(self)), _split(self.buffers, len(self))
        batches = [images] * len(self) if shared else images.unbind()
        return torch.stack([self._run(*one) for one in zip(parameters, buffers, batches, strict=True)])

    def _run(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(self.skeleton, (parameters, buffers), (images,))

    def state(self) -> dict[str, Tensor]:
        """A detached copy of parameters and buffers, (M, ...) each, in the order of the architecture."""
        return {name: tensor.detach().clone() for name, tensor in (self.parameters | self.buffers).items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        with torch.no_grad():
            for name, tensor in (self.parameters | self.buffers).items():
                tensor.copy_(state[name])


def _stacked(each: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name].detach() for one in each]) for name in each[0]}


def _split(stacked: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """(M, ...) tensors as M dictionaries of views; unbind keeps the backward pass to one stack per tensor."""
    each = {name: tensor.unbind() for name, tensor in stacked.items()}
    return [{name: views[model] for name, views in each.items()} for model in range(count)]


def flatten(state: dict[str, Tensor]) -> Tensor:
    """(M, ...) tensors as one (M, P) matrix in the order of the architecture, each tensor row-major."""
    return torch.cat([tensor.flatten(1) for tensor in state.values()], 1)


def unflatten(flat: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """One (P,) vector as the named parameters of `network`: views of `flat`, so gradients flow back to it."""
    named = dict(network.named_parameters())
    pieces = flat.split([tensor.numel() for tensor in named.values()])
    return {name: piece.view(tensor.shape) for (name, tensor), piece in zip(named.items(), pieces, strict=True)}
