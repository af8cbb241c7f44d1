"""The rank slider: what it shows is what was measured, without a front end."""
import base64
import re

import pytest

from fsmerge_lite import plots, widgets


def test_the_slider_shows_what_is_drawn_for_its_rank():
    box = widgets.rank_slider(12)
    slider, start, picture = box.children
    for rank, name in ((12, "first"), (1, "first"), (1, "subspaces")):
        slider.value, start.value = rank, name
        alt, data = re.search('alt="(.+)" src="data:image/png;base64,(.+)">', picture.value).groups()
        assert base64.b64decode(data) == plots.png(widgets.draw_rank(rank, name))
        assert f"rank {rank}," in alt and widgets.STARTS[name] in alt


def test_what_was_not_measured_is_refused():
    for rank, start in ((5, "first"), (12, "elsewhere")):
        with pytest.raises(ValueError, match="there are the starts first, subspaces, with ranks"):
            widgets.draw_rank(rank, start)
