"""Controls over drawings, tested without a front end: they show what the drawing function draws."""
import base64
import re
from html import unescape

import ipywidgets
import pytest
from matplotlib.figure import Figure

from fsmerge_lite.bench.figures import png
from fsmerge_lite.course.drawings import folding, ranks
from fsmerge_lite.course.interactive import explore

MANY = [1, 2, 3, 4, 5, 6]


def line(height: float, line_style: str = "-") -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, height], ls=line_style)
    return figure


def shown(box: ipywidgets.VBox) -> tuple[str, bytes]:
    """The words and the picture below the controls."""
    alt, data = re.search('alt="(.+)" src="data:image/png;base64,(.+)">', box.children[-1].value).groups()
    return unescape(alt), base64.b64decode(data)


def test_the_first_values_are_shown_first():
    alt, picture = shown(explore(line, "A line", height=[2, 1], line_style=["--", ":"]))
    assert alt == "A line (height 2, line style --)" and picture == png(line(2, "--"))


def test_the_default_of_the_drawing_is_shown_first():
    alt, picture = shown(explore(line, "A line", height=[2, 1], line_style=[":", "-"]))
    assert alt == "A line (height 2, line style -)" and picture == png(line(2))


def test_the_controls_change_the_picture_and_its_words():
    box = explore(line, "A line", height=MANY, line_style=[("solid", "-"), ("dotted", ":")])
    height, style, _ = box.children
    for value, kind in ((1, ":"), (5, ":"), (5, "-")):
        height.value, style.value = value, kind
        alt, picture = shown(box)
        assert picture == png(line(value, kind)) and f"height {value}, line style {kind}" in alt


def test_few_values_become_buttons_and_many_a_slider():
    few, many, _ = explore(line, "A line", height=MANY[:5], line_style=["-", ":", "--", "-.", "None", ""]).children
    assert isinstance(few, ipywidgets.ToggleButtons) and isinstance(many, ipywidgets.SelectionSlider)
    assert few.description == "height" and many.description == "line style"


def test_axes_can_be_drawn_as_well_as_figures():
    _, picture = shown(explore(lambda height: line(height).axes[0], "A line", height=[3]))
    assert picture == png(line(3))


def test_words_cannot_break_out_of_the_page():
    box = explore(line, 'a "line" <b>', height=[1])
    assert "<b>" not in box.children[-1].value and shown(box)[0].startswith('a "line" <b>')


def test_an_argument_without_values_is_refused():
    with pytest.raises(ValueError, match="no values for line_style"):
        explore(line, "A line", height=[1], line_style=[])


def test_the_rank_controls_show_the_measured_ranks():
    measured = [run["rank"] for run in ranks.load_ranks()["first"]]
    assert measured == [run["rank"] for run in ranks.load_ranks()["subspaces"]]
    box = explore(ranks.draw_rank, "The merge", rank=[(ranks.name_of(rank), rank) for rank in measured],
                  start=[(text, name) for name, text in ranks.STARTS.items()])
    rank, start, _ = box.children
    rank.value, start.value = 1, "subspaces"
    alt, picture = shown(box)
    assert picture == png(ranks.draw_rank(1, "subspaces")) and "rank 1, start subspaces" in alt


@pytest.mark.parametrize("draw, settings, match", [
    (ranks.draw_rank, (5, "first"), "rank must be one of 0, 1, .*, got 5"),
    (ranks.draw_rank, (12, "elsewhere"), "start must be one of first, subspaces, got 'elsewhere'"),
    (folding.draw_cost, (1, 100, 12), "k must be at least 2, .*, got 1, 100, 12"),
    (folding.draw_cost, (2, 0, 12), "tokens at least 1"),
    (folding.draw_cost, (2, 100, 97, 96), "rank from 1 to 96"),
])
def test_settings_that_were_not_measured_or_make_no_sense_are_refused(draw, settings, match):
    with pytest.raises(ValueError, match=match):
        draw(*settings)


def test_the_cost_that_is_drawn_is_what_pytorch_counted():
    records = folding.step_records()
    for way in ("folded", "unfolded"):
        known = records.dropna(subset=f"{way}, counted")
        assert ((known[f"{way}, formula"] / known[f"{way}, counted"] - 1).abs() < 0.07).all()


@pytest.mark.parametrize("k, rank, width", [(2, 12, 96), (8, 12, 96), (2, 32, 768)])
def test_folding_pays_from_the_break_even_on(k, rank, width):
    even = folding.break_even(k, rank, width)
    before, after = (folding.ratios(k, tokens, rank, width) for tokens in (even - 1, even))
    assert before["folded"] >= before["unfolded"] and after["folded"] < after["unfolded"]
