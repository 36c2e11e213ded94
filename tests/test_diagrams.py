"Diagrams: where boxes, lines and words stand, what is refused, and what is left to read on a phone."

from itertools import pairwise

import numpy as np
import pytest
import torch

from genbook.core import GenbookError
from genbook.lab import diagrams
from genbook.lab.diagrams import NOTE, PAGE, Diagram, extent


def residual():
    "A block with a skip connection: the diagram, and its boxes by name."
    d = Diagram()
    x, net = d.box("x", (0, 0), "32 × 14"), d.box("network", (0, 1), "two convolutions", "net")
    boxes = {"x": x, "net": net, "+": d.box("+", (0, 2), kind="op")}
    d.arrow(*boxes.values())
    d.arrow(boxes["x"], boxes["+"], route="above", label="skip")
    return d, boxes


def test_boxes_are_as_large_as_their_words():
    fig = residual()[0].draw()
    ax, renderer = fig.axes[0], fig.canvas.get_renderer()
    place, _, words, _ = diagrams._layout(residual()[0])
    rooms = list(place.values()) + [r for r, _ in words]
    to_inches = ax.transData.inverted()
    for text in ax.texts:
        if text.get_text():
            (x0, y0), (x1, y1) = to_inches.transform(text.get_window_extent(renderer).get_points())
            y0, y1 = sorted((y0, y1))
            inside = [r for r in rooms if r[0] - 0.02 < x0 and x1 < r[2] + 0.02 and r[1] - 0.02 < y0 and y1 < r[3] + 0.02]
            assert inside, text.get_text()


def test_a_unit_is_an_inch():
    fig = residual()[0].draw()
    ax = fig.axes[0]
    size = [abs(b - a) for a, b in (ax.get_xlim(), ax.get_ylim())]
    np.testing.assert_allclose(fig.get_size_inches(), size)


def test_arrows_go_from_border_to_border():
    d, b = residual()
    place, lines, _, _ = diagrams._layout(d)
    x, net, plus = (place[b[k]] for k in ("x", "net", "+"))
    middle = (x[1] + x[3]) / 2
    np.testing.assert_allclose(lines[0], [(x[2], middle), (net[0], middle)])
    np.testing.assert_allclose(lines[1], [(net[2], middle), (plus[0], middle)])
    start, turn, back, end = lines[2]  # up, along, down
    assert start == ((x[0] + x[2]) / 2, x[1]) and end == ((plus[0] + plus[2]) / 2, plus[1])
    assert turn[0] == start[0] and back[0] == end[0] and turn[1] == back[1] < min(x[1], net[1], plus[1])


@pytest.mark.parametrize(
    ("route", "turns"),
    [
        ("auto", ["across", "down", "across"]),
        ("down", ["down", "across", "down"]),
        ("corner", ["across", "down"]),
        ("drop", ["down", "across"]),
    ],
)
def test_routes(route, turns):
    d = Diagram()
    d.arrow(d.box("a", (0, 0)), d.box("b", (1, 1)), route=route)
    line = diagrams._layout(d)[1][0]
    assert ["across" if y == v else "down" for (_, y), (_, v) in pairwise(line)] == turns


@pytest.mark.parametrize(("route", "axis", "sign"), [("above", 1, -1), ("below", 1, 1), ("left", 0, -1), ("right", 0, 1)])
def test_skips_are_clear_of_what_is_between(route, axis, sign):
    d = Diagram()
    at = (lambda i: (0, i)) if axis == 1 else (lambda i: (i, 0))
    a, wide, c = (d.box(label, at(i)) for i, label in enumerate(("a", "a tall\nwide box", "c")))
    d.arrow(a, c, route=route)
    place, (line,), _, _ = diagrams._layout(d)
    border = place[wide][axis + (2 if sign > 0 else 0)]
    assert sign * (line[1][axis] - border) > 0.1 and line[1][axis] == line[2][axis]
    d.draw()


def test_half_a_column_is_half_way():
    d = Diagram()
    a, b, between = d.box("a", (0, 0)), d.box("a longer one", (0, 1)), d.box("m", (1, 0.5))
    place = diagrams._layout(d)[0]
    centre = {k: (place[k][0] + place[k][2]) / 2 for k in (a, b, between)}
    assert centre[between] == pytest.approx((centre[a] + centre[b]) / 2)
    assert place[b][0] - place[a][2] == pytest.approx(d.gap[1])


def test_a_group_holds_its_boxes_and_its_label():
    d, b = residual()
    d.group([b["net"], b["+"]], "inside")
    place, _, _, [(frame, label, _)] = diagrams._layout(d)
    for r in (place[b["net"]], place[b["+"]], label):
        assert frame[0] < r[0] and frame[1] < r[1] and r[2] < frame[2] and r[3] < frame[3]
    assert place[b["x"]][2] < frame[0]


def test_a_label_of_a_group_gives_way_to_a_line():
    d = Diagram()
    top, a, b = d.box("top", (0, 0)), d.box("a", (1, 0)), d.box("a longer one", (1, 1))
    d.group([a, b], "group")
    assert diagrams._layout(d)[3][0][1][0] < diagrams._layout(d)[0][a][2]
    d.arrow(top, a)
    assert diagrams._layout(d)[3][0][1][0] > diagrams._layout(d)[0][a][2]
    d.draw()


def test_what_is_drawn_at_the_border_of_a_page_can_be_read_on_a_phone():
    assert NOTE * 96 / 72 * 358 / (96 * PAGE) > 9  # pixels of the smallest letters, where a page of 390 px leaves 358


def test_a_picture_is_shown_as_it_is():
    d, board = Diagram(), (torch.arange(4)[:, None] + torch.arange(4)) % 2
    d.box("mask", (0, 0), picture=board[None].float())
    (image,) = d.draw().axes[0].images
    assert (image.get_array()[..., 0] == 255 * board.numpy()).all()
    left, right, bottom, top = image.get_extent()
    assert right - left == pytest.approx(bottom - top) and top < bottom  # square, its first row on top


def test_words_take_more_room_where_they_are_more_or_larger():
    assert (
        extent("", 10) == (0, 0)
        and extent("mm", 10)[0] > extent("m", 10)[0]
        and extent("m", 20)[0] == pytest.approx(2 * extent("m", 10)[0])
    )
    assert extent("a\nb", 10)[1] == 2 * extent("a", 10)[1] and 0 < extent("$\\varepsilon$", 10)[0] < 0.2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda d, b: d.box("z", (0, 0)), r"at: \(0, 0\) of 'z' is taken by 'x'"),
        (lambda d, b: d.box("z", (1, 0), kind="nett"), "kind: 'nett'"),
        (lambda d, b: d.arrow(b["x"], b["net"], route="round"), "route: 'round'"),
        (lambda d, b: d.box("z", (1, 0), picture=torch.zeros(1, 4, 4) + 2), "picture: values from 2"),
        (lambda d, b: (d.box("a word that is long", (0, 3)), d.draw()), "inches wide; at most 4.6"),
        (lambda d, b: (d.box("q", (0, 1.3)), d.draw()), "'network' lies on 'q'"),
        (lambda d, b: (d.arrow(b["x"], d.box("q", (0, 3))), d.draw()), "'network' lies on 'a line'"),
        (lambda d, b: (d.arrow(b["net"], b["+"], label="much too long"), d.draw()), "'network' lies on 'much too long'"),
        (lambda d, b: d.arrow(b["x"], Diagram().box("q", (0, 3))), "box 'q' is not of this diagram"),
        (lambda d, b: d.group([Diagram().box("q", (0, 3))]), "box 'q' is not of this diagram"),
        (lambda d, b: d.group([]), "boxes: none"),
        (lambda d, b: Diagram().draw(), "it has no box"),
    ],
)
def test_what_could_not_be_read_is_refused(wrong, message):
    with pytest.raises(GenbookError, match=message):
        wrong(*residual())
