"""Hostile calls of every public operator: each must end in an exception or in the answer of its plain PyTorch twin.

`python hostile.py` makes them all in one process, so that a crash or a hang is that of the process; it names each call
before it is made and prints the counts at the end. Memory is limited, so that what asks for too much fails at once.
"""

from __future__ import annotations

import contextlib
import faulthandler
import inspect
import json
import math
import os
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from test_ops_bad_input import good
from torch import Tensor

from ddlnl import ops

ROOM = 3 * 2**30  # bytes that the calls may take together
SECONDS = 60  # for one call
HUGE = (2**31, 2**40, 2**62)
TYPES = (
    *(torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.complex64),
    *(torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64),
)
NUMBERS = (0, -1, 1, 1.5, math.nan, math.inf, -math.inf, 1e-320, 1e308, *HUGE, 2**63, 2**2000, True, 1j)
OBJECTS = (None, "x", [], {}, (1, 2), object(), int, b"1")


def laid_out(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same values in other strides, or values that share their memory: all of these are valid."""
    size = tensor.shape
    yield "strided", torch.stack([tensor, tensor], -1)[..., 0]
    yield "transposed", tensor.transpose(0, -1).contiguous().transpose(0, -1)
    yield "at an odd offset", torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(size)
    yield "one number everywhere", tensor.flatten()[0].expand(size)
    yield "one row everywhere", tensor[:1].expand(size)
    yield "overlapping", torch.cat([tensor.flatten()] * 2).as_strided(size, [1] * tensor.dim())
    yield "read-only inference", inference(tensor)
    if tensor.is_floating_point():
        yield "negated lazily", torch._neg_view(-tensor)
        yield "with a gradient", tensor.clone().requires_grad_()
    if tensor.dim() == 4:
        yield "channels last", tensor.contiguous(memory_format=torch.channels_last)


def inference(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


def sized(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Other shapes: nothing, more memory than there is, and sizes whose product overflows."""
    yield "of rank 0", tensor.flatten()[0]
    yield "flat", tensor.flatten()
    yield "with one dimension more", tensor[None]
    yield "with a last dimension more", tensor[..., None]
    yield "with sixty dimensions", tensor[(None,) * (60 - tensor.dim())]
    for dim, length in enumerate(tensor.shape):
        yield f"empty in {dim}", tensor.narrow(dim, 0, 0)
        yield f"one in {dim}", tensor.narrow(dim, 0, 1)
        yield f"longer in {dim}", torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim)
        for huge in HUGE:
            yield from stretched(f"{huge} in {dim}", tensor, dim, huge)
            for other in range(tensor.dim()):
                if other != dim:
                    void = tensor.narrow(other, 0, 0)
                    yield from stretched(f"{huge} in {dim} and none in {other}", void, dim, huge)
        yield f"half as long in {dim}", tensor.narrow(dim, 0, length // 2)


def stretched(how: str, tensor: Tensor, dim: int, length: int) -> Iterator[tuple[str, Tensor]]:
    """One slice as often as `length`, in the memory of one; nothing where torch itself refuses so many elements."""
    with contextlib.suppress(RuntimeError):
        yield how, tensor.narrow(dim, 0, 1).expand([*tensor.shape[:dim], length, *tensor.shape[dim + 1 :]])


def of_another_kind(tensor: Tensor) -> Iterator[tuple[str, object]]:
    """Other types, other places, other things."""
    for dtype in TYPES:
        yield f"of {dtype}", tensor.to(dtype)
    yield "on no device", tensor.to("meta")
    yield "sparse", tensor.to_sparse()
    yield "nested", torch.nested.nested_tensor([tensor, tensor])
    yield "a list", tensor.tolist()
    yield "an array", tensor.numpy()
    if tensor.dtype == torch.float32:
        yield "quantised", torch.quantize_per_tensor(tensor, 0.1, 0, torch.quint8)
        yield "of oneDNN", tensor.to_mkldnn()
    for thing in OBJECTS:
        yield f"{thing!r:.20}", thing


def valued(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Numbers that are none, and indices, labels and codes of nothing."""
    values = (math.nan, math.inf, -math.inf, 0.0) if tensor.is_floating_point() else (-1, 7, 2**31 - 1, -(2**31))
    if tensor.dtype == torch.int64:
        values = (*values, 2**62, 2**63 - 1, -(2**63))
    for value in values:
        yield f"all {value}", torch.full_like(tensor, value)
        one = tensor.clone()
        one.view(-1)[-1] = value
        yield f"one {value}", one


FORMS: tuple[Callable[[Tensor], Iterator[tuple[str, object]]], ...] = (laid_out, sized, of_another_kind, valued)
Call = tuple[str, Callable, tuple, dict, bool]


def calls() -> Iterator[Call]:
    """(name, operator, positional arguments, named arguments, valid), every one at least a little wrong or odd; a valid
    one may only be refused where the twin refuses it too."""
    for operator, arguments in good().items():
        yield from counted(operator, arguments)
        tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        for name, tensor in tensors.items():
            for form in FORMS:
                for how, other in form(tensor):
                    call = f"{operator.__name__}({name} {how})"
                    yield call, operator, (), arguments | {name: other}, form is laid_out
        for form in FORMS:  # all at once, so that they agree and the checks that compare them are passed
            forms = {name: dict(form(tensor)) for name, tensor in tensors.items()}
            for how in dict.fromkeys(how for each in forms.values() for how in each):
                others = {name: each[how] for name, each in forms.items() if how in each}
                yield f"{operator.__name__}(all {how})", operator, (), arguments | others, form is laid_out
        for name in inspect.signature(operator).parameters:
            if name not in tensors:
                for other in (*NUMBERS, *OBJECTS):
                    yield f"{operator.__name__}({name} {other!r:.20})", operator, (), arguments | {name: other}, False


def counted(operator: Callable, arguments: dict) -> Iterator[Call]:
    """Too few and too many."""
    values = list(arguments.values())
    for count in range(len(values)):
        yield f"{operator.__name__} of {count}", operator, tuple(values[:count]), {}, False
    yield f"{operator.__name__} of too many", operator, (*values, *values, *values), {}, False
    yield f"{operator.__name__} of an unknown name", operator, (), arguments | {"unknown": 1}, False


def outcome(call: Callable, positional: tuple, named: dict) -> tuple[Tensor, ...] | Exception:
    """What is returned, with the gradients where there are any; or what is raised."""
    try:
        found = call(*positional, **named)
        found = found if isinstance(found, tuple) else (found,)
        wanted = [one for one in named.values() if isinstance(one, Tensor) and one.requires_grad and one.is_leaf]
        if wanted:
            total = sum(one.sum() for one in found)  # the gradient that comes back is one number everywhere
            found += tuple(one for one in torch.autograd.grad(total, wanted, allow_unused=True) if one is not None)
        return found
    except Exception as error:
        return error


def right(found: tuple[Tensor, ...], expected: tuple[Tensor, ...] | Exception) -> bool:
    if isinstance(expected, Exception):  # torch may have no strides for what has a size and no elements
        return not any(one.numel() for one in found)
    if len(found) != len(expected):
        return False
    return all(map(close, found, expected))


def close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    if a.device.type == "meta" or not a.numel():
        return True
    tolerance = 2e-2 if a.dtype in (torch.bfloat16, torch.float16) else 1e-4
    return torch.allclose(a.detach().double(), b.detach().double(), tolerance, tolerance, equal_nan=True)


def limit_memory() -> None:
    """Not under AddressSanitizer, which maps terabytes and has a limit of its own."""
    if "asan" not in os.environ.get("LD_PRELOAD", ""):
        taken = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.nested.nested_tensor([torch.zeros(1)])  # what is imported late must not be refused for lack of memory
    limit_memory()
    counts, wrong = Counter(), []
    for name, operator, positional, named, valid in calls():
        print(name, flush=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        found = outcome(operator, positional, named)
        if isinstance(found, Exception) and not valid:
            counts["refused"] += 1
            continue
        expected = outcome(getattr(ops.reference, operator.__name__), positional, named)
        if isinstance(found, Exception) and isinstance(expected, Exception):
            counts["refused"] += 1
        elif not isinstance(found, Exception) and right(found, expected):
            counts["right"] += 1
        else:
            wrong.append(f"{name}: {found!r} where the twin gives {expected!r}"[:1000])
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({**counts, "wrong": wrong}))


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
