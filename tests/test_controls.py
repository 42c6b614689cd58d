from __future__ import annotations

import pytest
import torch
from small import image_set
from synthetic import records
from torch import nn

from ddlnl import claims, controls, networks, preprocess


class Brightness(nn.Module):
    """An expert that can be written down: its logits are weight * brightness + bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

    def forward(self, images):
        return images.mean((1, 2, 3))[:, None] * self.weight + self.bias


@pytest.fixture
def setting():
    train = image_set(per_class=12)
    preprocessing = preprocess.fit(train.images, "normalise")
    brightness = preprocessing.apply(preprocess.to_float(train.images)).mean((1, 2, 3))
    # Class 2 where it is brighter than the median, class 0 elsewhere; class 1 is never predicted.
    middle = brightness.median().item()
    expert = torch.tensor([[0.0, 0.0, 10.0, 0.0, -1e3, -10 * middle]])
    return train, preprocessing, expert, (brightness > middle).numpy() * 2


def chosen_rows(train, images):
    lookup = {image.tobytes(): row for row, image in enumerate(preprocess.to_float(train.images).numpy())}
    return [lookup[image.tobytes()] for image in images.numpy()]


def test_random_images_carry_their_observed_labels_and_are_drawn_without_repeats(setting):
    train, preprocessing, _, _ = setting
    images, labels, report = controls.choose(train, "random", 5, None, Brightness(), preprocessing, 0)
    rows = chosen_rows(train, images)
    assert len(set(rows)) == 15
    assert train.observed[rows].tolist() == labels.argmax(1).tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert report == {"wrong_labels": 0}
    other = controls.choose(train, "random", 5, None, Brightness(), preprocessing, 1)[0]
    assert not torch.equal(images, other)


def test_predicted_takes_agreed_images_first_and_counts_those_it_filled_up_with(setting):
    train, preprocessing, expert, predicted = setting
    images, labels, report = controls.choose(train, "predicted", 4, expert, Brightness(), preprocessing, 0)
    rows = chosen_rows(train, images)
    agreed = predicted[rows] == train.observed[rows]
    available = [int(((predicted == label) & (train.observed == label)).sum()) for label in range(3)]
    assert available[1] == 0
    assert [int(agreed[4 * label : 4 * label + 4].sum()) for label in range(3)] == [
        min(4, count) for count in available
    ]
    assert report["filled_up"] == 12 - agreed.sum() >= 4
    assert labels.argmax(1).tolist() == train.observed[rows].tolist()


def test_soft_labels_are_the_mean_logits_of_all_experts_on_the_same_random_images(setting):
    train, preprocessing, expert, _ = setting
    experts = torch.cat([expert, torch.tensor([[1.0, 2.0, 3.0, 0.1, 0.2, 0.3]])])
    images, labels, _ = controls.choose(train, "random_soft", 3, experts, Brightness(), preprocessing, 0)
    assert torch.equal(images, controls.choose(train, "random", 3, None, Brightness(), preprocessing, 0)[0])
    brightness = preprocessing.apply(images).mean((1, 2, 3))[:, None]
    logits = sum(brightness * flat[:3] + flat[3:] for flat in experts) / 2
    torch.testing.assert_close(labels, logits.softmax(1), atol=1e-5, rtol=1e-4)
    assert networks.unflatten(expert[0], Brightness())["bias"].shape == (3,)


def test_stopping_early_is_the_full_noisy_set_at_the_epoch_that_noisy_validation_labels_chose():
    table = controls.with_early_stopping(records(methods=("dance",), ipcs=(10,), rates=(0.0, 0.8)))
    full, early = (table[table["method"] == one].reset_index() for one in ("full", "early_stopped"))
    for rule in ("last", "validation", "best_on_test"):
        for number in ("accuracy", "accuracies", "std"):
            assert early[f"{number}_{rule}"].tolist() == full[f"{number}_validation"].tolist()
    verdicts = claims.versus(table, reference="early_stopped")
    assert set(verdicts["method"]) == {"dance"}
    assert verdicts["full"].notna().all()
