"""The compiled matching losses are their twins, in value and in every derivative, on every shape."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap

from ddlnl import _core, ops
from ddlnl.errors import InputError
from ddlnl.ops import reference

compiled = pytest.mark.skipif(not _core.active(torch.zeros(())), reason="there is no compiled core")
devices = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))],
)
raw = torch.ops.ddlnl
DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, device: str = "cpu") -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).to(device, dtype)


def labels_of(rows: int, classes: int, seed: int = 0, device: str = "cpu") -> torch.Tensor:
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed)).to(device)


def strided(tensor: torch.Tensor, layout: int) -> torch.Tensor:
    """The same values in memory order 0 (contiguous), 1 (every second element) or 2 (transposed)."""
    if layout == 1:
        return torch.stack([tensor, tensor + 1], -1)[..., 0]
    return tensor.mT.contiguous().mT if layout == 2 and tensor.dim() == 2 else tensor


def assert_equal(found: torch.Tensor, twin: torch.Tensor, scale: float = 1.0) -> None:
    assert found.dtype == twin.dtype
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found, twin, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


@compiled
@settings(max_examples=250, deadline=None)
@given(
    stack=st.sampled_from([None, 0, 1, 3]),
    length=st.sampled_from([0, 1, 2, 7, 16, 33, 100, 4095, 4097, 9001]),
    dtype=st.sampled_from(DTYPES),
    layouts=st.tuples(*[st.integers(0, 2)] * 3),
    seed=st.integers(0, 10**6),
)
def test_trajectory_distance_and_its_gradients_are_those_of_the_twin(stack, length, dtype, layouts, seed):
    for case in range(9):  # of one shape: 9 x 250 cases in all
        shape = (length,) if stack is None else (stack, length)
        tensors = [normal(*shape, dtype=dtype, seed=seed + 10 * case + i) for i in range(3)]
        tensors = [strided(t, layout).detach().requires_grad_() for t, layout in zip(tensors, layouts, strict=True)]
        found, twin = ops.trajectory_distance(*tensors), reference.trajectory_distance(*tensors)
        assert_equal(found, twin)
        if case == 0:
            pairs = zip(
                torch.autograd.grad(found.sum(), tensors), torch.autograd.grad(twin.sum(), tensors), strict=True
            )
            for mine, expected in pairs:
                assert_equal(mine, expected)


@compiled
@settings(max_examples=250, deadline=None)
@given(
    rows=st.tuples(*[st.sampled_from([0, 1, 2, 5, 17])] * 2),
    columns=st.sampled_from([0, 1, 3, 16, 255, 257, 600]),
    classes=st.integers(1, 6),
    dtype=st.sampled_from(DTYPES),
    layouts=st.tuples(*[st.integers(0, 2)] * 2),
    seed=st.integers(0, 10**6),
)
def test_class_mean_distance_and_its_gradients_are_those_of_the_twin(rows, columns, classes, dtype, layouts, seed):
    for case in range(9):
        draws = [normal(n, columns, dtype=dtype, seed=seed + 10 * case + i) for i, n in enumerate(rows)]
        real, synthetic = (
            strided(t, layout).detach().requires_grad_() for t, layout in zip(draws, layouts, strict=True)
        )
        real_labels, labels = (labels_of(n, classes, seed + 10 * case + i) for i, n in enumerate(rows))
        arguments = real, real_labels, synthetic, labels, classes
        found, twin = ops.class_mean_distance(*arguments), reference.class_mean_distance(*arguments)
        assert_equal(found, twin)
        if case == 0:
            gradients = (torch.autograd.grad(value, (real, synthetic)) for value in (found, twin))
            for mine, expected in zip(*gradients, strict=True):
                assert_equal(mine, expected)


@devices
def test_the_matching_losses_have_these_values(device):
    student, target, start = torch.tensor([[2.0, 0, 1], [1, 1, 1], [4, 0, 3]], device=device)
    assert ops.trajectory_distance(student, target, start).item() == pytest.approx(2 / 14, rel=1e-7)
    stacked = ops.trajectory_distance(*[torch.stack(pair) for pair in [(student, start), (target,) * 2, (start,) * 2]])
    assert stacked.tolist() == pytest.approx([2 / 14, 1])
    real = torch.tensor([[1.0, 2], [5, 5], [3, 4]], device=device)
    synthetic = torch.tensor([[0.0, 0], [9, 9]], device=device)
    labels = torch.tensor([0, 2, 0], device=device), torch.tensor([0, 1], device=device)
    assert ops.class_mean_distance(real, labels[0], synthetic, labels[1], 3).item() == 2**2 + 3**2


@devices
def test_bfloat16_is_added_up_in_a_wider_type(device):
    tensors = [normal(3, 5000, dtype=torch.bfloat16, seed=i, device=device) for i in range(3)]
    exact = reference.trajectory_distance(*[t.double() for t in tensors]).to(torch.bfloat16)
    torch.testing.assert_close(ops.trajectory_distance(*tensors), exact, rtol=2**-8, atol=0)
    real, synthetic = (normal(40, 300, dtype=torch.bfloat16, seed=i, device=device) + 20 for i in (1, 2))
    labels = labels_of(40, 3, device=device)
    exact = reference.class_mean_distance(real.double(), labels, synthetic.double(), labels, 3)
    found = ops.class_mean_distance(real.requires_grad_(), labels, synthetic, labels, 3)
    torch.testing.assert_close(found.double(), exact, rtol=5e-3, atol=0)
    assert torch.autograd.grad(found, real)[0].dtype == torch.bfloat16


@compiled
def test_the_sums_of_many_float32_parameters_are_those_of_float64():
    tensors = [normal(300_007, dtype=torch.float32, seed=i) for i in range(3)]
    student, target, start = (t.double() for t in tensors)
    exact = torch.stack([(student - target).square().sum(), (start - target).square().sum()])
    torch.testing.assert_close(raw.trajectory_distance_sums(*tensors), exact, rtol=1e-13, atol=0)


def trajectory_case(shape: tuple[int, ...], device: str) -> list[torch.Tensor]:
    return [normal(*shape, seed=i, device=device).requires_grad_() for i in range(3)]


def class_case(device: str):
    """The distance as a function of two features, with an empty class on either side and mixed order."""
    real, synthetic = (normal(n, 3, seed=n, device=device).requires_grad_() for n in (5, 4))
    labels = torch.tensor([2, 0, 1, 0, 2], device=device), torch.tensor([1, 3, 0, 1], device=device)
    return lambda a, b: ops.class_mean_distance(a, labels[0], b, labels[1], 5), (real, synthetic)


@devices
@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_trajectory_distance_has_first_and_second_derivatives_in_both_modes(device, shape):
    tensors = trajectory_case(shape, device)
    assert gradcheck(ops.trajectory_distance, tensors, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(ops.trajectory_distance, tensors, check_fwd_over_rev=True, check_rev_over_rev=True)


@devices
def test_class_mean_distance_has_first_and_second_derivatives_in_both_modes(device):
    function, features = class_case(device)
    assert gradcheck(function, features, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, features, check_fwd_over_rev=True, check_rev_over_rev=True)


@devices
def test_a_gradient_that_is_not_wanted_is_not_computed_and_changes_no_other(device):
    tensors = trajectory_case((6,), device)
    whole = torch.autograd.grad(ops.trajectory_distance(*tensors), tensors)
    for place in range(3):
        alone = [t if i == place else t.detach() for i, t in enumerate(tensors)]
        (found,) = torch.autograd.grad(ops.trajectory_distance(*alone), alone[place])
        torch.testing.assert_close(found, whole[place], rtol=1e-14, atol=0)
        with forward_ad.dual_level():
            tangent = torch.ones_like(found)
            dual = [forward_ad.make_dual(t.detach(), tangent) if i == place else t for i, t in enumerate(alone)]
            slope = forward_ad.unpack_dual(ops.trajectory_distance(*dual)).tangent
        torch.testing.assert_close(slope, found.sum(), rtol=1e-12, atol=1e-14)


@devices
def test_torch_func_transforms_nest(device):
    tensors = [t.detach() for t in trajectory_case((4,), device)]
    directions = [normal(4, seed=9 + i, device=device) for i in range(3)]

    def slope(function):
        return lambda *inputs: jvp(grad(function, (0, 1, 2)), inputs, tuple(directions))[1]

    for found, twin in zip(
        slope(ops.trajectory_distance)(*tensors), slope(reference.trajectory_distance)(*tensors), strict=True
    ):
        assert_equal(found, twin)
    function, features = class_case(device)
    real, synthetic = (t.detach() for t in features)
    found = jvp(grad(function, (0, 1)), (real, synthetic), (real.cos(), synthetic.sin()))[1]
    for mine, direct in zip(found, grad(function, (0, 1))(real.cos(), synthetic.sin()), strict=True):
        torch.testing.assert_close(mine, direct, rtol=1e-12, atol=1e-14)  # the distance is quadratic


@devices
@pytest.mark.parametrize("in_dims", [(0, None, 1), (1, 1, None), (None, 0, 0), (0, 0, 0)])
@pytest.mark.parametrize("shape", [(5,), (2, 5)])
def test_trajectory_distance_maps_over_a_batch(device, shape, in_dims):
    batched = [normal(3, *shape, seed=i, device=device) for i in range(3)]
    inputs = [b[0] if d is None else b.movedim(0, d) for b, d in zip(batched, in_dims, strict=True)]
    one_by_one = [[b[0] if d is None else b[i] for b, d in zip(batched, in_dims, strict=True)] for i in range(3)]
    for function in (ops.trajectory_distance, grad(lambda *t: ops.trajectory_distance(*t).sum(), 1)):
        mapped = vmap(function, in_dims)(*inputs)
        torch.testing.assert_close(mapped, torch.stack([function(*one) for one in one_by_one]))


@devices
@pytest.mark.parametrize("in_dims", [(0, None), (1, 0), (2, 1), (None, 0), (None, 1)])
def test_class_mean_distance_maps_over_a_batch_of_features_and_of_labels(device, in_dims):
    real, real_labels = normal(6, 4, device=device), labels_of(6, 3, device=device)
    features, labels = normal(2, 5, 4, seed=1, device=device), labels_of(10, 3, seed=2, device=device).view(2, 5)

    def distance(f, which):
        return ops.class_mean_distance(real, real_labels, f, which, 3)

    one_by_one = [(features[0 if in_dims[0] is None else i], labels[0 if in_dims[1] is None else i]) for i in range(2)]
    inputs = [b[0] if d is None else b.movedim(0, d) for b, d in zip((features, labels), in_dims, strict=True)]
    for function in (distance, grad(distance), grad(lambda f, w: grad(distance)(f, w).square().sum())):
        mapped = vmap(function, in_dims)(*inputs)
        torch.testing.assert_close(mapped, torch.stack([function(*one) for one in one_by_one]))


@compiled
@devices
def test_the_adjoint_is_the_transpose_of_the_means(device):
    features, gradient = normal(7, 300, device=device), normal(4, 300, seed=1, device=device)
    labels = torch.tensor([3, 0, 3, 0, 1, 0, 3], device=device)  # class 2 is empty
    means, counts = raw.class_means(features, labels, 4)
    assert counts.tolist() == [3, 1, 0, 3]
    assert not means[2].any()
    spread = raw.class_means_adjoint(gradient, labels, counts)
    torch.testing.assert_close((means * gradient).sum(), (features * spread).sum())


@compiled
def test_a_mapped_label_outside_its_classes_is_an_error_even_where_another_batch_has_that_class():
    with pytest.raises(RuntimeError, match="is not one of the 4 classes"):
        vmap(lambda f, labels: ops.class_mean_distance(f, labels, f, labels, 2))(
            normal(2, 3, 4), torch.tensor([[0, 1, 2], [0, 1, 1]])
        )


@compiled
@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_raw_operators_keep_torch_s_rules(device, dtype):
    def case(*shape):
        return normal(*shape, dtype=dtype, device=device)

    labels = labels_of(6, 3, device=device)
    counts = torch.bincount(labels, minlength=3).to(torch.promote_types(dtype, torch.float32))
    for shape in [(5,), (2, 5), (0, 5)]:
        torch.library.opcheck(raw.trajectory_distance_sums.default, (case(*shape), case(*shape), case(*shape)))
    torch.library.opcheck(raw.class_means.default, (case(6, 4), labels, 3))
    torch.library.opcheck(raw.class_means.default, (case(0, 4), labels[:0], 3))
    torch.library.opcheck(raw.class_means_adjoint.default, (case(3, 4), labels, counts))


@devices
def test_empty_batches_and_missing_classes_count_0(device):
    features, labels = normal(3, 4, device=device).requires_grad_(), torch.tensor([1, 1, 0], device=device)
    empty = ops.class_mean_distance(features, labels, features[:0], labels[:0], 2)
    assert empty.item() == 0
    assert not torch.autograd.grad(empty, features)[0].any()
    apart = ops.class_mean_distance(features, labels, features, labels + 2, 4)
    assert apart.item() == 0
    assert ops.trajectory_distance(*[features.detach()[:0]] * 3).shape == (0,)
    assert ops.trajectory_distance(*[features.detach()[:, :0]] * 3).isnan().all()


@devices
def test_nan_reaches_the_result_and_only_where_it_belongs(device):
    tensors = [normal(2, 5000, dtype=torch.float32, seed=i, device=device) for i in range(3)]
    tensors[0][1, 4999] = float("nan")
    assert ops.trajectory_distance(*tensors).isnan().tolist() == [False, True]
    features, labels = normal(4, 3, device=device), torch.tensor([0, 1, 0, 1], device=device)
    features[3, 2] = float("nan")
    assert ops.class_mean_distance(features, labels, features + 1, labels, 2).isnan()
    assert not ops.class_mean_distance(features, labels, features[:1] + 1, labels[:1], 2).isnan()


@compiled
def test_one_and_two_threads_give_the_same_bits():
    vectors = [normal(3, 100_001, dtype=torch.float32, seed=i) for i in range(3)]
    features, labels = normal(700, 1111, dtype=torch.float32), labels_of(700, 10)

    def everything():
        means, counts = raw.class_means(features, labels, 10)
        return raw.trajectory_distance_sums(*vectors), means, raw.class_means_adjoint(means, labels, counts)

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything()
        torch.set_num_threads(2)
        assert all(map(torch.equal, alone, everything()))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((normal(3), normal(4), normal(3)), r"target is float64 \(4,\) on cpu where student is float64 \(3,\)"),
        ((normal(3), normal(3), normal(3).float()), r"start is float32 \(3,\) on cpu where student"),
        ((normal(1, 1, 3),) * 3, r"can be floating of shape \(P,\) or \(M, P\)"),
        ((torch.ones(3, dtype=torch.int64),) * 3, "student is int64"),
    ],
)
def test_trajectory_distance_says_what_is_wrong_with_its_arguments(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        ops.trajectory_distance(*arguments)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_classes": 0}, "num_classes is 0; there must be one or more"),
        ({"real": normal(4)}, r"real is float64 \(4,\) on cpu; it can be floating features \(N, D\)"),
        ({"real_labels": labels_of(3, 2)}, r"real_labels is int64 \(3,\) .* one int64 label per row"),
        ({"synthetic_labels": labels_of(4, 2).int()}, "synthetic_labels is int32 .* one int64 label per row"),
        ({"synthetic_labels": torch.tensor([0, 1, 2, 0])}, "has label 2; the 2 classes are 0 to 1"),
        ({"real_labels": torch.tensor([0, -1, 1, 0])}, "has label -1; the 2 classes are 0 to 1"),
        ({"synthetic": normal(4, 6)}, r"real is float64 \(4, 5\) .* only the number of rows can differ"),
        ({"synthetic": normal(4, 5).float()}, "only the number of rows can differ"),
    ],
)
def test_class_mean_distance_says_what_is_wrong_with_its_arguments(changes, sentence):
    arguments = {"real": normal(4, 5), "real_labels": labels_of(4, 2), "synthetic": normal(4, 5)}
    arguments |= {"synthetic_labels": labels_of(4, 2), "num_classes": 2} | changes
    with pytest.raises(InputError, match=sentence):
        ops.class_mean_distance(**arguments)


@compiled
@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: raw.trajectory_distance_sums(normal(3), normal(3), normal(2)), "one shape, dtype and device"),
        (lambda: raw.trajectory_distance_sums(*[normal(1, 1, 1)] * 3), r"\(P,\) or \(M, P\)"),
        (lambda: raw.trajectory_distance_sums(*[normal(3).half()] * 3), "float32, float64 or bfloat16"),
        (lambda: raw.class_means(normal(3, 2), labels_of(2, 2), 2), "it got 2 labels for 3 rows"),
        (lambda: raw.class_means(normal(3, 2), labels_of(3, 2).int(), 2), r"int64 labels \(N,\)"),
        (lambda: raw.class_means(normal(3), labels_of(3, 2), 2), r"features \(N, D\)"),
        (lambda: raw.class_means(normal(3, 2), labels_of(3, 2), 0), "one class or more, not 0"),
        (lambda: raw.class_means(normal(3, 2), labels_of(3, 2) - 2, 2), "Label -[12] of row 0 is not one of the 2"),
        (lambda: raw.class_means_adjoint(normal(2, 3), labels_of(3, 2), normal(3)), r"counts \(K,\)"),
        (lambda: raw.class_means_adjoint(normal(2, 3), labels_of(3, 2), normal(2).float()), "type it computes in"),
        (lambda: raw.class_means_adjoint(normal(2, 3), labels_of(3, 2) + 2, normal(2)), "is not one of the 2 classes"),
    ],
)
def test_the_kernels_refuse_what_they_cannot_read(call, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        call()
