"""The rank slider, tested without a front end: it shows the measured results."""
import base64
import re

import pytest

from fsmerge_lite.bench import figures
from fsmerge_lite.course import widgets


def test_the_slider_shows_the_figure_of_its_rank():
    box = widgets.rank_slider(12)
    slider, start, picture = box.children
    for rank, name in ((12, "first"), (1, "first"), (1, "subspaces")):
        slider.value, start.value = rank, name
        alt, data = re.search('alt="(.+)" src="data:image/png;base64,(.+)">', picture.value).groups()
        assert base64.b64decode(data) == figures.png(widgets.draw_rank(rank, name))
        assert f"rank {rank}," in alt and widgets.STARTS[name] in alt


@pytest.mark.parametrize("rank, start, match", [
    (5, "first", "rank must be one of 0, 1, .*, got 5"),
    (12, "elsewhere", "start must be one of first, subspaces, got 'elsewhere'"),
])
def test_a_setting_that_was_not_measured_is_refused(rank, start, match):
    with pytest.raises(ValueError, match=match):
        widgets.draw_rank(rank, start)
