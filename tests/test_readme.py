"""What the README says is what the records say."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from ddlnl import claims, store

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_differences_and_intervals_of_the_readme_are_those_of_its_records():
    verdicts = claims.symmetric_noise(store.table(ROOT / "notebooks" / "results"))
    last = verdicts[verdicts["rule"] == "last"]
    assert sorted(last["rate"]) == [0, 0.4, 0.8]
    assert set(last["verdict"]) == {"does not hold"}
    for row in last.itertuples():
        assert f"{-row.difference:.1f} points [{-row.high:.1f}, {-row.low:.1f}]" in README


def test_the_accuracies_of_the_readme_are_those_of_its_records():
    rows = (
        store.table(ROOT / "notebooks" / "results").query("noise == 'symmetric:0.4' and ipc == 10").set_index("method")
    )
    sentence = re.search(r"ten images per class give (.*?)\.\s", README, re.DOTALL).group(1)
    for method in ("dance", "random", "random_soft", "predicted"):
        assert f"{100 * rows.at[method, 'accuracy_last']:.1f} %" in sentence


def test_the_losses_to_noise_of_the_readme_are_those_of_its_records():
    accuracy = 100 * store.table(ROOT / "notebooks" / "results").set_index(["method", "ipc", "noise"])["accuracy_last"]

    def loss(method, ipc):
        return f"{accuracy[method, ipc, 'clean'] - accuracy[method, ipc, 'symmetric:0.4']:.1f}"

    words = " ".join(README.split())
    assert f"distilled images lose {loss('dance', 10)} points and the random ones {loss('random', 10)}." in words
    lost = [loss("dance", 50), loss("random", 50), loss("full", 0), loss("predicted", 50)]
    assert (
        "they lose {} against {}, the whole set loses {}, and images that an expert agrees with {}.".format(*lost)
        in words
    )


def test_the_comparison_at_80_percent_noise_in_the_readme_is_that_of_its_records():
    rows = store.table(ROOT / "notebooks" / "results").query("noise == 'symmetric:0.8'")
    accuracy = rows.set_index(["method", "ipc"])["accuracy_last"]
    assert accuracy["predicted", 50] > accuracy["dance", 50] + 0.05
    assert abs(accuracy["predicted", 50] - accuracy["full", 0]) < 0.01


def test_the_records_of_the_figure_were_computed_within_half_an_hour_of_each_other():
    finished = pd.to_datetime(store.table(ROOT / "notebooks" / "results")["finished"])
    assert finished.max() - finished.min() < pd.Timedelta(minutes=30)


def test_every_cell_of_the_figure_has_one_record_and_every_linked_file_is_there():
    table = store.table(ROOT / "notebooks" / "results")
    assert len(table) == 3 * (1 + 3 * 4)
    assert not table.duplicated(["noise", "method", "ipc", "seed"]).any()
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
