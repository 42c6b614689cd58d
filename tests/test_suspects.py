"""Pictures of a denoised set show the stored pixels under the right names, and can be read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from image_sets import refusal
from matplotlib.text import Text
from small import NETWORK, image_set

from ddlnl import figures, preprocess, suspects
from ddlnl.denoised import Report
from ddlnl.distilled import DistilledSet
from ddlnl.label_errors import Suspicions
from ddlnl.own_images import OwnImages
from ddlnl.training import Protocol, Recipe


def made(classes: int = 3, wrong: int = 5, channels: int = 3) -> Report:
    """A report on 10 images per class, of which the first `wrong` are suspected to be of the next class."""
    train = image_set(classes, channels=channels)
    posterior = 0.1 / classes + 0.9 * np.eye(classes)[train.observed]
    for place in range(wrong):
        other = (train.observed[place] + 1) % classes
        posterior[place] = np.eye(classes)[other] * (0.9 - place / 100)
        posterior[place, train.observed[place]] = 0.1 + place / 100
    shift = 0.7 * np.eye(classes) + 0.3 * np.roll(np.eye(classes), 1, axis=1)
    images = torch.rand(4 * classes, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    fitted = preprocess.fit(train.images, "normalise")
    labels = torch.eye(classes).repeat_interleave(4, 0)
    protocol = Protocol(NETWORK, Recipe(epochs=1))
    small = DistilledSet(images, labels, train.class_names, "dance", 4, fitted, protocol)
    own = OwnImages(train, None, tuple(f"folder/picture {i}.png" for i in range(len(train))))
    return Report(own, small, Suspicions(train.observed, posterior, shift, 1.0), [], {})


ODD = ("a$\\frac$", "caf\udce9 $x$", "a_b^c\x01\n")
"""Names as folders may have them: no formulas, bytes that are no UTF-8, control characters."""


def oddly_named() -> Report:
    report = made()
    images = replace(report.images, names=tuple(f"{name}/caf\udce9 $\\frac${i}.png" for i in range(10) for name in ODD))
    images = replace(images, train=replace(images.train, class_names=ODD))
    return replace(report, images=images, small=replace(report.small, class_names=ODD))


@pytest.mark.parametrize("draw", ["suspected", "distilled", "transition"])
def test_names_are_drawn_as_they_are_and_never_as_formulas(draw, tmp_path, monkeypatch):
    report, shown = oddly_named(), []
    figure, alt = getattr(suspects, draw)(report), getattr(suspects, f"{draw}_alt")(report)
    for path in figures.save(figure, tmp_path / draw, alt):
        assert path.stat().st_size
    monkeypatch.setattr(figures, "display", lambda data, **_: shown.append(data))
    figures.show(figure, alt)
    assert shown[0]["text/plain"] == alt
    drawn = " ".join(text.get_text() for text in texts(figure))
    for words in (drawn, alt):
        assert "$\\frac$" in words or "a$\\frac$" in words
        words.encode()
    assert not any(text.get_parse_math() for text in texts(figure))


def test_names_of_files_are_written_byte_for_byte_as_they_are(tmp_path):
    report = oddly_named()
    report.save(tmp_path)
    for name in ("suspects.csv", "labels.csv"):
        content = (tmp_path / name).read_bytes()
        assert b"caf\xe9 $\\frac$0.png" in content
        table = pd.read_csv(tmp_path / name, encoding_errors="surrogateescape")
        assert set(table["name"]) <= set(report.images.names)
    assert DistilledSet.load(tmp_path / "distilled.safetensors").class_names == ODD


def texts(figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_most_doubtful_images_are_shown_as_they_are_with_their_labels(channels):
    report = made(channels=channels)
    figure = suspects.suspected(report, 4)
    shown = [ax for ax in figure.axes if ax.get_images()]
    assert len(shown) == 4
    for ax, row in zip(shown, report.suspects.itertuples(), strict=False):
        image = report.images.train.images[row.index]
        np.testing.assert_allclose(np.squeeze(ax.get_images()[0].get_array()), np.squeeze(image) / 255)
        lines = ax.get_xlabel().splitlines()
        assert lines == [f"…er/picture {row.index}.png", f"given {row.given}", f"{row.suggested}? {row.score:.0%}"]
    alt = suspects.suspected_alt(report, 4)
    assert alt.startswith("The 4 most doubtful of 5 suspected")
    first = report.suspects.iloc[0]
    assert f"picture {first['index']}.png: given {first['given']}, suggested {first['suggested']};" in alt


def test_where_nothing_is_suspected_it_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(suspects, "display", lambda text: said.append(text.data))
    suspects.show(made(wrong=0))
    assert said == ["No label is suspected."]
    assert "no label is suspected" in refusal(suspects.suspected, made(wrong=0))


def test_of_every_class_an_image_from_each_half_is_shown():
    report = made()
    pictures = report.small.pictures().permute(0, 2, 3, 1).numpy()
    shown = [ax.get_images()[0].get_array() for ax in suspects.distilled(report).axes]
    for image, place in zip(shown, (0, 4, 8, 2, 6, 10), strict=True):
        np.testing.assert_allclose(image, pictures[place])
    assert "4 per class" in suspects.distilled_alt(report)


def test_the_matrix_is_drawn_with_its_numbers_and_said_in_words():
    figure = suspects.transition(made())
    np.testing.assert_allclose(figure.axes[0].get_images()[0].get_array() ** 2, made().found.transition)
    assert [text.get_text() for text in figure.axes[0].texts] == ["70", "30"] * 2 + ["30", "70"]
    assert "class 0: 70% right, most often called class 1 (30%)" in suspects.transition_alt(made())


@pytest.mark.parametrize("draw", [suspects.suspected, suspects.distilled, suspects.transition])
@pytest.mark.parametrize("classes", [2, 10, 40])
def test_text_is_at_least_7_points_and_stays_on_the_page(draw, classes):
    figure = draw(made(classes, wrong=min(9, 10 * classes)))
    figure.draw_without_rendering()
    for text in texts(figure):
        box = text.get_window_extent()
        assert text.get_fontsize() >= 7
        assert figure.bbox.x0 - 1 <= box.x0 < box.x1 <= figure.bbox.x1 + 1, text
        assert figure.bbox.y0 - 1 <= box.y0 < box.y1 <= figure.bbox.y1 + 1, text
