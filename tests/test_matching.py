"""Both gradients of trajectory matching are what they claim to be, in the memory of one step."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import grad
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddlnl import _core, augment, tangents
from ddlnl.errors import InputError
from ddlnl.generators import generator
from ddlnl.matching import matching_gradient
from ddlnl.networks import ConvNet, unflatten

DSA = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class Case:
    """Arguments of `matching_gradient`; small, random, the target some way from where the student goes."""

    network: ConvNet
    start: torch.Tensor
    target: torch.Tensor
    images: torch.Tensor
    logits: torch.Tensor
    step_size: torch.Tensor | float
    minibatches: torch.Tensor
    augmentations: list[augment.Augmentation] | None
    mode: str = "exact"
    precision: str = "float32"

    def run(self, **changes):
        arguments = vars(self) | changes
        return matching_gradient(**arguments)

    def to(self, dtype: torch.dtype) -> Case:
        cast = {
            name: one.to(dtype) for name, one in vars(self).items() if torch.is_tensor(one) and one.is_floating_point()
        }
        return replace(self, **cast)

    def loss_of_step(self, flat, images, logits, step):
        index = self.minibatches[step]
        x = images[index] if self.augmentations is None else self.augmentations[step](images[index])
        predicted = functional_call(self.network, unflatten(flat, self.network), (x,))
        return F.cross_entropy(predicted, logits[index].softmax(1))


def make(
    steps: int = 5,
    batch: int = 6,
    width: int = 6,
    size: int = 10,
    step_size: float = 0.3,
    dsa: bool = True,
    seed: int = 0,
) -> Case:
    source = generator(seed, "matching", steps, batch, width, size)

    def normal(*shape):
        return torch.randn(shape, generator=source, dtype=torch.float64)

    network = ConvNet(4, depth=2, width=width, size=size)
    flat = 0.1 * normal(sum(one.numel() for one in network.parameters()))
    start = flat + torch.cat(
        [(torch.ones_like if one.dim() == 1 else torch.zeros_like)(one).flatten() for one in network.parameters()]
    )
    chosen = torch.stack([torch.randperm(2 * batch, generator=source)[:batch] for _ in range(steps)])
    draws = [augment.draw(DSA, batch, (size, size), source, "single") for _ in range(steps)] if dsa else None
    step = torch.tensor(step_size, dtype=torch.float64)
    target = start + 0.05 * normal(len(start))
    return Case(network, start, target, normal(2 * batch, 3, size, size), normal(2 * batch, 4), step, chosen, draws)


def leaves(case: Case):
    return [one.clone().requires_grad_() for one in (case.images, case.logits, case.step_size)]


def unrolled(case: Case):
    """Autograd through all steps."""
    images, logits, step_size = given = leaves(case)
    student = case.start.clone().requires_grad_()
    for step in range(len(case.minibatches)):
        loss = case.loss_of_step(student, images, logits, step)
        student = student - step_size * grad(loss, student, create_graph=True)[0]
    loss = (student - case.target).square().sum() / (case.start - case.target).square().sum()
    return loss.detach(), *grad(loss, given)


def tesla(case: Case):
    """The definition: every step's gradient is taken again at parameters that are constants."""
    images, logits, step_size = given = leaves(case)
    student, path, total = case.start, [], 0
    for step in range(len(case.minibatches)):
        path.append(student.clone().requires_grad_())
        total = total + grad(case.loss_of_step(path[-1], images, logits, step), path[-1])[0]
        student = case.start - step_size.detach() * total
    scale = (case.start - case.target).square().sum()
    again = [
        grad(case.loss_of_step(flat, images, logits, i), flat, create_graph=True)[0] for i, flat in enumerate(path)
    ]
    end = case.start - step_size * torch.stack(again).sum(0)
    loss = (end - case.target).square().sum() / scale
    return loss.detach(), *grad(loss, given)


def distances(found, expected) -> list[float]:
    return [((one.double() - other).norm() / other.norm()).item() for one, other in zip(found, expected, strict=True)]


@pytest.fixture(params=["compiled", "twins"])
def operators(request, monkeypatch):
    if request.param == "twins":
        monkeypatch.setattr(_core, "active", lambda tensor: False)


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("dsa", [True, False], ids=["augmented", "plain"])
def test_the_exact_gradient_is_that_of_the_unrolled_student(dsa):
    case = make(dsa=dsa)
    assert max(distances(case.run(), unrolled(case))) < 1e-10


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("dsa", [True, False], ids=["augmented", "plain"])
def test_the_tesla_gradient_is_its_definition_and_not_the_gradient(dsa):
    case = make(dsa=dsa)
    found = case.run(mode="tesla")
    assert max(distances(found, tesla(case))) < 1e-10
    assert min(distances(found[1:], unrolled(case)[1:])) > 1e-3


def test_wide_networks_have_the_same_gradients():
    case = make(steps=2, width=64, size=12)
    assert max(distances(case.run(), unrolled(case))) < 1e-10
    assert max(distances(case.run(mode="tesla"), tesla(case))) < 1e-10


def test_the_modes_agree_on_a_single_step():
    case = make(steps=1)
    assert max(distances(case.run(mode="tesla"), case.run())) < 1e-14


def off_from_float64(case: Case, mode: str) -> float:
    """The largest relative distance of a float32 result from the float64 one."""
    found = case.to(torch.float32).run(mode=mode)
    assert {one.dtype for one in found} == {torch.float32}
    return max(distances(found, case.run(mode=mode)))


@pytest.mark.parametrize("mode", ["exact", "tesla"])
def test_twenty_steps_in_float32_keep_five_digits(mode):
    """The median of five students: a unit that rounding moves across ReLU's kink costs one of them more."""
    off = [
        off_from_float64(make(steps=20, batch=10, width=16, size=16, step_size=0.02, seed=s), mode) for s in range(5)
    ]
    assert sorted(off)[2] < 1e-5, off


@pytest.mark.parametrize("mode", ["exact", "tesla"])
def test_no_student_loses_digits_in_float32_away_from_the_kink_of_relu(mode):
    case = make(steps=20, batch=10, width=64, size=16, step_size=0.01)
    named = unflatten(case.start, case.network)  # views
    for block in (1, 3):
        named[f"blocks.{block}.weight"].fill_(0.1)
        named[f"blocks.{block}.bias"].copy_(torch.tensor([1.0, -1]).repeat(32))
    assert off_from_float64(case, mode) < 1e-4


def test_only_tf32_lets_convolutions_round_and_what_was_set_before_comes_back(monkeypatch):
    case, cudnn = make(steps=1).to(torch.float32), torch.backends.cudnn.conv
    before, seen = cudnn.fp32_precision, []
    convolve = tangents.convolve
    monkeypatch.setattr(tangents, "convolve", lambda *a: seen.append(cudnn.fp32_precision) or convolve(*a))
    plain, rounded = (case.run(precision=precision) for precision in ("float32", "tf32"))
    assert seen
    assert seen == ["ieee"] * (len(seen) // 2) + ["tf32"] * (len(seen) // 2)
    assert cudnn.fp32_precision == before
    assert all(map(torch.equal, plain, rounded))  # on a CPU both are float32


@pytest.mark.parametrize("mode", ["exact", "tesla"])
def test_bf16_points_the_same_way(mode):
    case = make(steps=10, batch=10, width=32, size=16, step_size=0.01).to(torch.float32)
    found, expected = case.run(mode=mode, precision="bf16"), case.run(mode=mode)
    assert {one.dtype for one in found} == {torch.float32}
    for one, other in zip(found[1:3], expected[1:3], strict=True):
        assert F.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.98
    assert found[3].item() == pytest.approx(expected[3].item(), rel=0.05)


@pytest.mark.parametrize("mode", ["exact", "tesla"])
def test_the_labels_are_probabilities(mode):
    """A softmax does not see a constant added to a row: it changes nothing, and no gradient points that way."""
    case = make()
    found = case.run(mode=mode)
    torch.testing.assert_close(found[2].sum(1), torch.zeros(12, dtype=torch.float64), rtol=0, atol=1e-12)
    shifted = case.run(mode=mode, logits=case.logits + torch.arange(12.0, dtype=torch.float64)[:, None])
    for one, other in zip(found, shifted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mode", ["exact", "tesla"])
def test_a_student_that_stands_still_has_loss_one_and_a_slope_in_its_step_size(mode):
    case = make(step_size=0.0)
    loss, d_images, d_logits, d_step_size = case.run(mode=mode)
    assert loss == 1
    assert not d_images.any()
    assert not d_logits.any()
    assert distances([d_step_size], unrolled(case)[3:]) < [1e-10]


def test_images_that_no_minibatch_names_have_no_gradient():
    case = make()
    unused = replace(case, minibatches=case.minibatches.clamp(max=10))
    found = unused.run()
    assert not found[1][11].any()
    assert not found[2][11].any()
    assert found[1][:11].any()


def test_a_row_named_twice_in_a_minibatch_counts_twice():
    case = make(dsa=False)
    twice = replace(case, minibatches=case.minibatches.clone().fill_(3))
    assert max(distances(twice.run(), unrolled(twice))) < 1e-10


def test_nothing_that_was_given_is_changed_or_asked_for_gradients():
    case = make().to(torch.float32)
    given = [one.requires_grad_() for one in (case.images, case.logits, case.step_size)]
    before = [one.detach().clone() for one in (*given, case.start, case.target)]
    results = case.run()
    assert not any(one.requires_grad for one in (*results, case.start, case.target))
    assert all(one.grad is None for one in given)
    assert all(torch.equal(one, other) for one, other in zip((*given, case.start, case.target), before, strict=True))


def test_the_step_size_can_be_a_plain_number():
    case = make()
    torch.testing.assert_close(case.run(step_size=0.3), case.run())


def test_a_diverging_student_says_so_in_its_loss():
    assert not make(step_size=1e30).to(torch.float32).run()[0].isfinite()


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, without those of `case`, and keeps the most."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        draws = [one for drawn in case.augmentations for one in (drawn.table, drawn.codes)]
        given = [one for one in (*vars(case).values(), *draws) if torch.is_tensor(one)]
        self.given = {one.untyped_storage()._cdata for one in given}
        self.storages, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.storages = {key: one for key, one in self.storages.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(size for key, (_, size) in self.storages.items() if key not in self.given))
        return result


@pytest.mark.parametrize("mode", ["exact", "tesla"])
def test_memory_grows_with_the_steps_by_a_parameter_vector_each_and_nothing_else(mode):
    peaks = []
    for steps in (10, 80):
        case = make(steps=steps, batch=4, width=4, size=8).to(torch.float32)
        with Live(case) as live:
            case.run(mode=mode)
        peaks.append(live.peak)
    vectors = 70 * case.start.nbytes
    assert peaks[0] > 10 * case.start.nbytes + 4 * 4 * 8 * 8 * 4  # an activation was seen
    assert peaks[1] - peaks[0] == vectors


GOOD = make()
BAD = {
    "mode": ({"mode": "teslas"}, "The mode 'teslas' is unknown; it is one of exact, tesla. Did you mean 'tesla'?"),
    "precision": ({"precision": "bfloat16"}, "The precision 'bfloat16' is unknown; it is one of float32, tf32, bf16."),
    "start": ({"start": GOOD.start[1:]}, "start has shape .*; this network has parameters of shape"),
    "target": ({"target": GOOD.target[None]}, "target has shape .*; this network has parameters of shape"),
    "dtype": ({"start": GOOD.start.half()}, "start is torch.float16; it must be float32, or float64"),
    "bf16 of float64": ({"precision": "bf16"}, "start is torch.float64; it must be float32, or float64"),
    "images of another dtype": ({"images": GOOD.images.float()}, "images is torch.float32 on cpu where start is"),
    "flat images": ({"images": GOOD.images.flatten(1)}, "images have shape"),
    "logits of other classes": ({"logits": GOOD.logits[:, :3]}, r"they must be \(N, C, H, W\) and \(N, 4\)"),
    "step sizes": ({"step_size": torch.ones(2)}, "step_size has shape"),
    "no steps": ({"minibatches": GOOD.minibatches[:0]}, "minibatches are torch.int64 of shape"),
    "minibatches that are numbers": ({"minibatches": GOOD.minibatches.double()}, "they must be int64"),
    "an image that is not there": ({"minibatches": GOOD.minibatches + 1}, "minibatches name images outside the 12"),
    "too few draws": ({"augmentations": GOOD.augmentations[1:]}, "augmentations are 4 draws; for 5 steps"),
    "network": ({"network": ConvNet(4, 2, 6, 10, norm="batch")}, "Tangents need a ConvNet"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_in_one_sentence(case):
    changes, message = BAD[case]
    with pytest.raises(InputError, match=message) as refusal:
        GOOD.run(**changes)
    assert "\n" not in str(refusal.value)


def test_the_arguments_are_those_that_the_loop_relies_on():
    assert list(inspect.signature(matching_gradient).parameters) == list(vars(GOOD))
