"""Controls over a drawing function. What they show also stands in the page, drawn by the same function."""
import base64
from collections.abc import Callable, Sequence
from html import escape
from inspect import signature

import ipywidgets
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..bench.figures import png


def explore(draw: Callable[..., Figure | Axes], alt: str, **controls: Sequence) -> ipywidgets.VBox:
    """A slider for each argument of `draw`, and below them what it draws.

    Args:
        draw: a function of the arguments named in `controls`, without side effects.
        alt: describes the figure for readers who cannot see it; the settings are added.
        controls: argument -> its values, in order. Values are numbers or strings, or pairs of a label and a value.
            More than five become a slider, fewer become buttons. The default that `draw` has for the argument is
            shown first, and without one the first value.

    Raises:
        ValueError: an argument without values.
    """
    if empty := [name for name, values in controls.items() if not len(values)]:
        raise ValueError(f"no values for {', '.join(empty)}")
    defaults = {name: argument.default for name, argument in signature(draw).parameters.items()}
    chosen = {name: _control(name, values, defaults.get(name)) for name, values in controls.items()}
    picture = ipywidgets.HTML()  # not an Output widget, at which nbclient may wait forever

    def redraw(change: object = None) -> None:
        settings = {name: control.value for name, control in chosen.items()}
        data = base64.b64encode(png(draw(**settings).get_figure())).decode()
        said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
        picture.value = (f'<img style="max-width: 100%" alt="{escape(f"{alt} ({said})")}" '
                         f'src="data:image/png;base64,{data}">')
    for control in chosen.values():
        control.observe(redraw, "value")
    redraw()
    return ipywidgets.VBox([*chosen.values(), picture])


def _control(name: str, values: Sequence, default: object) -> ipywidgets.Widget:
    """A slider for many values, buttons for few."""
    options = [value if isinstance(value, tuple) else (f"{value}", value) for value in values]
    first = default if default in [value for _, value in options] else options[0][1]
    words = {"description": name.replace("_", " "), "style": {"description_width": "initial"}, "value": first}
    if len(options) > 5:
        return ipywidgets.SelectionSlider(options=options, continuous_update=False, **words)
    words["style"] |= {"button_width": "auto"}
    return ipywidgets.ToggleButtons(options=options, **words)
