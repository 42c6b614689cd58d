"""What the README says is what the records say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ddlnl import claims, cleaning, controls, membership, store
from ddlnl.methods import CONTROLS, DISTILLERS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
WORDS = " ".join(README.split())
SPACED = WORDS.replace(" %", "%")
RECORDS = store.table(ROOT / "notebooks" / "results")
BALANCED = RECORDS.query("imbalance == 'none' and seed == 0")
LAPTOP = BALANCED.query("dataset == 'cifar10'")
TABLE = LAPTOP[LAPTOP["noise"].str.match("clean|symmetric") & LAPTOP["method"].isin(DISTILLERS + CONTROLS)]  # Figure 2
TEN = BALANCED[BALANCED["ipc"].isin([0, 10]) & BALANCED["method"].isin(DISTILLERS + CONTROLS)]  # Figures 4 and 5


def test_the_differences_and_intervals_of_the_readme_are_those_of_its_records():
    verdicts = claims.symmetric_noise(TABLE)
    last = verdicts[verdicts["rule"] == "last"]
    for _, rows in last.groupby("method"):
        assert sorted(rows["rate"]) == [0, 0.4, 0.8]
    assert set(last["method"]) == {"dance", "datm", "rcig"}
    assert set(last.query("method == 'dance'")["verdict"]) == {"does not hold"}
    close = last.query("(method == 'datm' and rate > 0) or (method == 'rcig' and rate == 0.8)")
    assert set(close["verdict"]) == {"not enough data"}
    assert (last["difference"] < 0).all()
    for row in last.itertuples():
        assert f"{-row.difference:.1f} points [{-row.high:.1f}, {-row.low:.1f}]" in WORDS


def test_what_the_readme_says_of_noise_with_a_pattern_is_in_its_records():
    verdicts = pd.concat([claims.asymmetric_noise(TEN), claims.natural_noise(TEN, "human")])
    rows = verdicts.query("rule == 'last' and noise != 'clean'")
    assert set(rows["noise"]) == {"asymmetric:0.4", "human:aggre", "human:worst", "human:noisy_fine"}
    assert set(rows["dataset"]) == {"cifar10", "cifar100"}
    assert set(rows["verdict"]) == {"does not hold"}
    for row in rows.itertuples():
        assert f"{-row.difference:.1f} points [{-row.high:.1f}, {-row.low:.1f}]" in WORDS
    accuracy = 100 * TEN.query("dataset == 'cifar10'").set_index(["method", "noise"])["accuracy_last"]
    lost = [accuracy[one, "clean"] - accuracy[one, "asymmetric:0.4"] for one in ("full", "dance", "datm", "rcig")]
    assert "the whole set loses {:.1f} points, DANCE's {:.1f}, DATM's {:.1f}, RCIG's {:.1f}.".format(*lost) in WORDS
    shrunk = claims.shrinks(TEN.query("dataset == 'cifar10'")).set_index("method")
    assert set(shrunk["verdict"]) == {"not enough data"}
    changes = [shrunk.at[one, "change"] for one in ("dance", "datm", "rcig")]
    assert "is {:.1f} points smaller for DANCE, {:.1f} for DATM and {:.1f} for RCIG".format(*changes) in WORDS


def test_how_much_of_the_pattern_the_readme_says_is_absorbed_is_in_its_records():
    found = claims.absorbed(TEN)
    assert set(found["verdict"]) == {"not enough data"}
    share = found.set_index(["dataset", "method"])["absorbed"]
    shares = [share["cifar10", method] for method in ("full", "datm", "rcig", "dance", "predicted")]
    sentence = (
        "noisy set repeat {:.0%}, DATM's {:.0%}, RCIG's {:.0%}, DANCE's {:.0%}, and those of images that an expert"
    )
    assert f"{sentence.format(*shares)} agrees with {shares[-1]:.0%}" in SPACED
    others = share["cifar100", "full"], share["cifar100", "dance"]
    assert "on CIFAR-100 those of the whole set {:.0%} and DANCE's {:.0%}".format(*others) in SPACED
    weak = share["cifar10", "random"], share["cifar100", "random"]
    assert "images with their noisy labels give {:.0%} and {:.0%}:".format(*weak) in SPACED


def test_what_the_readme_says_of_rare_classes_is_in_its_records():
    table = RECORDS.query("dataset == 'cifar10'")
    verdicts = claims.versus(table, imbalance="longtail:50").query("rule == 'last'")
    assert verdicts[["method", "verdict"]].to_numpy().tolist() == [["dance", "holds"]] * 2 + [["datm", "does not hold"]]
    for row in verdicts.query("method == 'dance'").itertuples():
        assert f"{row.distilled:.1f} against {row.full:.1f} %" in WORDS
        assert f"by {row.difference:.1f} points [{row.low:.1f}, {row.high:.1f}]" in WORDS
    (row,) = verdicts.query("method == 'datm'").itertuples()
    assert f"below the whole set by {-row.difference:.1f} points [{-row.high:.1f}, {-row.low:.1f}]" in WORDS
    clean = table.query("imbalance == 'longtail:50' and noise == 'clean'").set_index("method")
    halves = {}
    for method in ("dance", "full"):
        classes = 100 * np.diag(claims.rates_of(clean.loc[method]))
        halves[method] = classes[:5].mean(), classes[5:].mean()
    assert f"it reaches {halves['dance'][1]:.1f} % where the whole set has {halves['full'][1]:.1f} %" in WORDS
    assert f"in the five most frequent {halves['dance'][0]:.1f} against {halves['full'][0]:.1f} %" in WORDS
    rows = claims.tails(table, reference="random").query("noise == 'clean'").set_index("method")
    assert set(rows["verdict"]) == {"not enough data"}
    for method, sentence in (
        ("dance", "gains {:.1f} points in frequent classes and {:.1f} in rare ones"),
        ("datm", "gains {:.1f} points in frequent classes and loses {:.1f} in rare ones"),
    ):
        assert sentence.format(rows.at[method, "head"], abs(rows.at[method, "tail"])) in WORDS


def test_what_the_readme_says_of_other_ways_to_clean_is_in_its_records():
    noisy = controls.with_early_stopping(LAPTOP.query("noise == 'symmetric:0.4' and ipc in (0, 10)"))
    accuracy = 100 * noisy.set_index("method")["accuracy_last"]
    for sentence, methods in (
        ("training on all images gives {:.1f} % as they are, and the same when", ["full"]),
        ("{:.1f} % with GCE, {:.1f} % with ELR, {:.1f} % with Co-teaching", ["gce", "elr", "coteaching"]),
        ("and {:.1f} % after confident learning", ["cleaned"]),
        ("DANCE's ten images per class give {:.1f} % when", ["cleaned_dance"]),
    ):
        assert sentence.format(*accuracy[methods]) in WORDS
    assert f"{accuracy['early_stopped']:.1f}" == f"{accuracy['full']:.1f}"
    assert accuracy["cleaned_dance"] > accuracy[list(DISTILLERS)].max()
    row = claims.versus(noisy, reference="cleaned_dance").query("rule == 'last' and method == 'dance'").iloc[0]
    assert f"{-row['difference']:.1f} points [{-row['high']:.1f}, {-row['low']:.1f}] more than without" in WORDS


def test_what_the_readme_says_of_a_resnet_is_in_its_records():
    verdicts = claims.versus(store.table(ROOT / "notebooks" / "results", "transfer")).query("method == 'dance'")
    rows = verdicts.query("rule == 'last'")
    assert rows["noise"].tolist() == ["clean", "symmetric:0.4"]
    assert set(rows["verdict"]) == {"does not hold"}
    for row in rows.itertuples():
        assert f"{-row.difference:.1f} points [{-row.high:.1f}, {-row.low:.1f}]" in WORDS
        assert f"{row.distilled:.1f} against {row.full:.1f} %" in WORDS


def test_what_the_readme_says_of_membership_is_in_its_records():
    records = store.table(ROOT / "notebooks" / "results", "membership").query("noise == 'clean'").set_index("method")
    reached = {
        (method, attack["attack"]): attack
        for method in ("full", "dance", "datm")
        for attack in records.at[method, "attacks"]
    }
    near = {method: reached[method, membership.NEARNESS] for method in ("dance", "datm")}
    loss = reached["full", membership.LOSS]
    assert f"finds {near['dance']['tpr_0.001']:.1%} of the members with 0.1% false alarms" in SPACED
    assert f"finds {loss['tpr_0.001']:.1%} (DATM: {near['datm']['tpr_0.001']:.1%})" in SPACED
    assert f"the other way round, {near['dance']['auc']:.3f} against {loss['auc']:.3f}." in WORDS


def test_the_accuracies_of_the_readme_are_those_of_its_records():
    rows = TABLE.query("noise == 'symmetric:0.4' and ipc == 10").set_index("method")
    sentence = re.search(r"ten images per class give (.*?)\.\s", WORDS).group(1)
    for method in ("dance", "datm", "rcig", "random", "random_soft", "predicted"):
        assert f"{100 * rows.at[method, 'accuracy_last']:.1f} %" in sentence


def test_the_losses_to_noise_of_the_readme_are_those_of_its_records():
    accuracy = 100 * TABLE.set_index(["method", "ipc", "noise"])["accuracy_last"]

    def loss(method, ipc):
        return f"{accuracy[method, ipc, 'clean'] - accuracy[method, ipc, 'symmetric:0.4']:.1f}"

    lost = [loss(method, 10) for method in ("dance", "random", "random_soft", "datm", "rcig")]
    assert (
        "DANCE's images lose {} points, random ones {}, those with soft labels {}, DATM's {} and RCIG's {}.".format(
            *lost
        )
        in WORDS
    )
    lost = [loss(*one) for one in (("dance", 50), ("random", 50), ("datm", 50), ("full", 0), ("predicted", 50))]
    assert (
        "DANCE's lose {} against {}, DATM's {}, the whole set loses {}, and images that an expert agrees with {}."
        "".format(*lost)
        in WORDS
    )


def test_what_the_readme_says_that_distilling_adds_is_in_its_records():
    found = claims.matching(TABLE).query("ipc == 10").set_index(["method", "rate"])

    def start(method):
        return f"{found.loc[(method, 0), 'initial'] - found.loc[(method, 0.4), 'initial']:.1f}"

    assert f"the set that DATM starts from loses {start('datm')} before any matching" in WORDS
    assert f"random images with their noisy labels, which lose {start('rcig')}," in WORDS
    for row in found.itertuples():
        assert f"{row.gain:.1f} points [{row.low:.1f}, {row.high:.1f}]" in WORDS


def test_the_comparison_at_80_percent_noise_in_the_readme_is_that_of_its_records():
    accuracy = 100 * TABLE.query("noise == 'symmetric:0.8'").set_index(["method", "ipc"])["accuracy_last"]
    best = accuracy[["dance", "datm"]].max()
    assert (
        f"50 of those agreed images per class give {accuracy['predicted', 50]:.1f} %, the best distilled set "
        f"{best:.1f} % and the whole set {accuracy['full', 0]:.1f} %." in WORDS
    )


def test_the_comparison_with_confident_learning_in_the_readme_is_that_of_its_table():
    table = pd.read_csv(ROOT / "notebooks" / "results" / "cifar10n_worst_comparison.csv")
    fewest = int(table["flagged"].min())
    rows = table[table["flagged"] == fewest].set_index("found_by")
    ours, theirs = rows.loc[cleaning.OURS], rows.loc[cleaning.THEIRS]
    assert f"the {fewest:,} most doubtful labels of students are wrong in {ours['precision']:.1%}" in SPACED
    assert f"in cross-validation, in {theirs['precision']:.1%}" in SPACED
    averages = f"{100 * ours['average_precision']:.1f} against {100 * theirs['average_precision']:.1f} %"
    assert f"average precision is {averages}" in WORDS


def test_what_the_readme_says_of_an_hour_of_rcig_is_in_its_table():
    table = pd.read_csv(ROOT / "notebooks" / "results" / "rcig_hour.csv")
    plain, augmented = (table[table["run"] == run].set_index("iterations") for run in ("not augmented", "augmented"))
    shown = [f"{value:.1f}" for value in plain["accuracy"]]
    last = plain.index[-1]
    assert plain.at[last, "minutes"] == pytest.approx(60, abs=0.2)
    assert f"is {last} iterations" in WORDS
    assert f"then at {shown[3]} % without augmentation" in WORDS
    assert f"and at {augmented.at[last, 'accuracy']:.1f} % with it" in WORDS
    assert f"half of the hour it was {shown[1]} and {shown[2]} %, from {shown[0]} % at the start" in WORDS


def test_the_faults_of_the_readme_are_those_that_were_counted():
    counts = json.loads((ROOT / "notebooks" / "results" / "faults.json").read_text())
    rows = re.findall(r"\| ([\d,]+) of ([\d,]+) \|$", README, re.MULTILINE)
    assert sorted(rows) == sorted((f"{one['kept']:,}", f"{one['tried']:,}") for one in counts.values())


def test_every_cell_of_the_figure_has_one_record_and_every_linked_file_is_there():
    assert len(TABLE) == 3 * (1 + 3 * 5 + 2)  # RCIG with 1 and 10 images per class
    assert not RECORDS.duplicated(["dataset", "noise", "imbalance", "method", "ipc", "seed"]).any()
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
