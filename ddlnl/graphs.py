"""CUDA graphs: an iteration of hundreds of small kernels becomes one launch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
_WARM_UP = 3  # calls in which libraries choose their kernels and allocate what they keep
_AGREEMENT = 1e-3  # of the size of a result; atomics and other kernels round differently


class Captured:
    """A function of tensors that is captured at its first call for each set of shapes, and replayed from then on.

    `function` takes tensors by position, returns a tuple of tensors, and decides nothing on the host. Its first call
    runs plainly, and a replay on the same inputs must give the same; where capturing fails or does not, a warning says
    so and that set of shapes stays plain. `capture`: (function, inputs) to a call without arguments that recomputes the
    result from what `inputs` hold by then.
    """

    def __init__(self, function: Function, capture: Callable | None = None) -> None:
        self.function, self.capture = function, capture or cuda_graph
        self._replays: dict[tuple, _Replay | None] = {}

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        key = tuple((one.shape, one.dtype, one.device) for one in tensors)
        if key in self._replays:
            replay = self._replays[key]
            return self.function(*tensors) if replay is None else replay(tensors)
        plain = self.function(*tensors)
        self._replays[key] = self._replay(tensors, plain)
        return plain

    def _replay(self, tensors: Sequence[Tensor], plain: Sequence[Tensor]) -> _Replay | None:
        try:
            replay = _Replay(self.function, tensors, self.capture)
            reason = None if _agree(replay(tensors), plain) else "its replay gives another result"
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
        if reason is None:
            return replay
        warnings.warn(f"A CUDA graph is not used, which costs speed alone: {reason}.", stacklevel=3)
        return None


class _Replay:
    """A captured call with tensors of its own for what goes in and comes out."""

    def __init__(self, function: Function, tensors: Sequence[Tensor], capture: Callable) -> None:
        self.inputs = [one.detach().clone() for one in tensors]
        self.run = capture(function, self.inputs)

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for mine, given in zip(self.inputs, tensors, strict=True):
            mine.copy_(given)
        return tuple(one.clone() for one in self.run())  # the next replay writes over it


def cuda_graph(function: Function, inputs: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """Capture `function(*inputs)`; the call that is returned replays it. Raises RuntimeError where it cannot be."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UP):
            function(*inputs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*inputs)

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return outputs

    return replay


def _agree(ours: Sequence[Tensor], plain: Sequence[Tensor]) -> bool:
    """Whether all results are the same to rounding; where the plain one is not finite there is nothing to compare."""
    return all(
        bool((one - other).norm() <= _AGREEMENT * other.norm()) or not bool(torch.isfinite(other).all())
        for one, other in zip(ours, plain, strict=True)
    )
