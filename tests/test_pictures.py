"""Figures of distilled sets: they show the stored pixels and labels, and can be read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from outcomes import conditions, outcome

from ddlnl import figures, labels, pictures, rcig_evaluation
from ddlnl.errors import InputError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LONG = tuple(f"a class with a long name {label}" for label in range(100))


def images(figure) -> list[AxesImage]:
    return figure.axes[0].get_images()


def title(figure) -> str:
    return figure.get_suptitle()


def test_there_is_a_row_for_every_noise_and_a_column_for_every_class_and_pixels_are_not_smoothed():
    found = conditions(side=4, names=CIFAR10)
    figure = pictures.grid(found)
    drawn = images(figure)
    assert len(drawn) == len(found) * 10
    for one, image in zip([one for one in found for _ in range(10)], drawn, strict=True):
        column, row = int(image.get_extent()[0]), int(image.get_extent()[3])
        assert found[row] is one
        expected = one.small.pictures()[column].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(image.get_array(), expected)
        assert image.get_interpolation() == "nearest"
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == list(CIFAR10)
    rows = [text.get_text() for text in ax.get_yticklabels()]
    assert rows[0] == "clean"
    assert rows[2] == "symmetric 0.4\n40.0 % wrong"
    assert rows[-1] == "asymmetric 0.8\n40.0 % wrong"


def test_names_of_classes_are_drawn_as_they_are_and_never_as_formulas(tmp_path):
    names = ("a$\\frac$", "$x$ and $y", "b")
    found = [outcome("clean", np.eye(3), np.eye(3), names=names, dataset="my $\\frac$ set.npz")]
    for draw in (pictures.grid, pictures.mass):
        figure = draw(found)
        figures.save(figure, tmp_path / draw.__name__)
        assert not any(text.get_parse_math() for text in figure.findobj(Text) if text.get_text())
        assert "my $\\frac$ set" in title(figure)
    assert [text.get_text() for text in pictures.grid(found).axes[0].get_xticklabels()] == list(names)


def test_grey_images_are_drawn_from_black_to_white():
    (one, *_) = conditions(channels=1)
    image = images(pictures.grid([one]))[3]
    assert (image.get_cmap().name, image.get_clim()) == ("gray", (0, 1))
    np.testing.assert_array_equal(np.squeeze(image.get_array()), one.small.pictures()[3, 0].numpy())


def test_of_many_classes_and_images_the_first_are_shown_and_the_figure_says_so():
    labels_of = np.repeat(np.eye(100), 2, axis=0)
    one = outcome("clean", labels_of, np.eye(100), ipc=2, dataset="cifar100", names=LONG)
    figure = pictures.grid([one])
    assert title(figure).endswith("the first of 2 images per class, the first 10 of 100 classes")
    np.testing.assert_array_equal(images(figure)[3].get_array(), one.small.pictures()[6].permute(1, 2, 0).numpy())
    chosen = pictures.grid([one], classes=[99, LONG[5]])
    assert [text.get_text() for text in chosen.axes[0].get_xticklabels()] == ["a class with a long nam…"] * 2
    assert title(chosen).endswith("2 of 100 classes")
    np.testing.assert_array_equal(images(chosen)[0].get_array(), one.small.pictures()[198].permute(1, 2, 0).numpy())


def test_the_sets_before_the_first_update_are_shown_where_they_are_stored():
    found = conditions()
    without = outcome("human:worst", np.eye(10), np.eye(10))
    figure = pictures.grid([*found, without], initial=True)
    assert "before the first update" in title(figure)
    assert len(images(figure)) == 10 * len(found)
    with pytest.raises(InputError, match="no initial set is stored"):
        pictures.grid([without], initial=True)


def test_outcomes_that_do_not_belong_together_and_unknown_classes_are_refused():
    found = conditions()
    other = outcome("clean", np.eye(10), np.eye(10), dataset="cifar10")
    for mixed in ([*found, other], [found[0], found[0]]):
        for draw in (pictures.grid, pictures.mass, pictures.grid_alt, pictures.mass_alt):
            with pytest.raises(InputError, match="one dataset, method and IPC, and one set of every noise"):
                draw(mixed)
    with pytest.raises(InputError, match="no distilled set was given"):
        pictures.mass([])
    with pytest.raises(InputError, match=r"'class 11' is unknown; .* Did you mean 'class 1'"):
        pictures.grid(found, classes=["class 11"])


def test_matrices_are_the_label_mass_beside_what_the_noise_alone_gives():
    found = [outcome("asymmetric:0.4", np.eye(3), [[6, 4, 0], [0, 10, 0], [0, 0, 10]], initial=np.full((3, 3), 1 / 3))]
    figure = pictures.mass(found)
    start, learned, transition, random = (np.square(image.get_array()) for image in images(figure))
    np.testing.assert_allclose(start, 1 / 3, atol=1e-6)
    np.testing.assert_allclose(learned, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(transition, found[0].transition)
    np.testing.assert_allclose(random, found[0].random)
    rings = [patch for patch in figure.axes[0].patches if patch.get_width() < 0.5]
    assert len(rings) == 1
    column, row = (round(3 * offset) for offset in np.subtract(rings[0].get_xy(), corner(figure.axes[0], 1)))
    assert (row, column) == (0, 1)
    assert "a ring is where" in key(figure)


def key(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts)


def corner(ax, number: int) -> tuple[float, float]:
    left, _, _, top = ax.get_images()[number].get_extent()
    return left, top


def test_without_initial_sets_and_without_structure_there_is_one_matrix_less_and_no_ring():
    figure = pictures.mass([outcome("symmetric:0.4", np.eye(3), 10 * np.eye(3) + 1)])
    assert len(images(figure)) == 3
    assert all(patch.get_width() == 1 for patch in figure.axes[0].findobj(Rectangle) if patch in figure.axes[0].patches)
    assert "label mass" in key(figure)
    assert "ring" not in key(figure)


FREE = {"method": "rcig", "protocol": rcig_evaluation.Protocol()}


def test_free_labels_are_shown_as_they_are_beside_centred_transitions():
    learned = np.array([[3.0, -1, -4], [0, 1, 0], [0, 0, 2]])
    found = outcome("asymmetric:0.4", learned, [[6, 4, 0], [0, 10, 0], [0, 0, 10]], initial=np.eye(3) - 1 / 3, **FREE)
    figure = pictures.mass([found])
    start, shown, transition, random = images(figure)
    np.testing.assert_allclose(4 * shown.get_array(), learned, atol=1e-6)
    np.testing.assert_allclose(4 * start.get_array(), np.eye(3) - 1 / 3, atol=1e-6)
    np.testing.assert_allclose(transition.get_array(), found.transition - 1 / 3)
    np.testing.assert_allclose(random.get_array(), found.random - 1 / 3)
    assert {image.get_clim() for image in (start, shown, transition, random)} == {(-1, 1)}
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["-4", "0", "4"]
    assert "mean labels" in title(figure)
    assert "a ring is where" in key(figure)
    assert "ring" not in key(pictures.mass([outcome("clean", learned, np.eye(3), **FREE)]))
    assert "whose largest learned label is that of their class" in pictures.mass_alt([found])


LAYOUTS = [
    pytest.param(conditions(names=CIFAR10, **FREE)[:3], id="free labels"),
    pytest.param(conditions(human=5, names=CIFAR10), id="14 noises"),
    pytest.param(conditions(names=LONG[:10])[:3], id="long names"),
    pytest.param(
        [outcome("human:worst", np.eye(100), np.eye(100) + 1, dataset="cifar100", names=LONG)], id="100 classes"
    ),
    pytest.param([outcome("clean", np.eye(2), np.eye(2))], id="2 classes"),
]


@pytest.mark.parametrize("found", LAYOUTS)
@pytest.mark.parametrize("draw", [pictures.grid, pictures.mass])
def test_text_is_at_least_7_points_and_nothing_is_covered_or_leaves_the_page(draw, found):
    figure = draw(found)
    figure.draw_without_rendering()
    assert figure.get_figwidth() == figures.WIDTHS["page"]
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= 7
    slanted = [text for text in texts if text.get_rotation()]
    boxes = [text.get_window_extent() for text in texts if text not in slanted]
    boxes += [image.get_window_extent() for ax in figure.axes for image in ax.get_images()]
    for box in (*boxes, *(text.get_window_extent() for text in slanted)):
        assert figure.bbox.x0 - 1 <= box.x0 < box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 - 1 <= box.y0 < box.y1 <= figure.bbox.y1 + 1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.padded(-1).overlaps(other.padded(-1))


def test_shades_grow_darker_with_the_mass():
    red, green, blue = pictures.SHADES(np.linspace(0, 1, 50))[:, :3].T
    assert (np.diff(0.2126 * red + 0.7152 * green + 0.0722 * blue) < 0).all()


def test_the_alternative_texts_name_every_noise_and_class_and_the_mass_on_the_own_class():
    found = conditions(names=CIFAR10)
    grid, mass = pictures.grid_alt(found), pictures.mass_alt(found)
    for one in found:
        assert pictures.condition(one) in grid
        own = np.diag(labels.mass(one.small)).mean()
        assert f"{pictures.condition(one)}: {own:.2f} learned" in mass
    assert ", ".join(CIFAR10) in grid


def test_saved_pictures_repeat_byte_for_byte(tmp_path):
    for stem in ("one", "two"):
        paths = figures.save(pictures.mass(conditions()[:2]), tmp_path / stem)
    for path in paths:
        assert path.read_bytes() == (tmp_path / f"one{path.suffix}").read_bytes()
