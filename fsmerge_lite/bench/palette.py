"""One meaning for each color, in every table, figure, lesson and report. Color-blind readers can tell them apart.

A model has the color of its place, M and U are green, the merged model is pink, and a method has one color
everywhere. Per-task accuracy is solid, joint accuracy hatched or hollow.
"""
from matplotlib.colors import LinearSegmentedColormap

BLUE, ORANGE, SKY, VERMILION = "#0072B2", "#E69F00", "#56B4E9", "#D55E00"
GREEN, PINK, GREY, DARK = "#009E73", "#CC79A7", "#BBBBBB", "#444444"
MODELS = (BLUE, ORANGE, SKY, VERMILION)  # originals 1 to 4, and their tasks
LEARNED, MERGED, NEUTRAL = GREEN, PINK, GREY  # M and U, the folded model, and what belongs to neither
COLOURS = (*MODELS, GREEN, PINK)  # of lines that are neither models nor methods
MARKERS, LINES = "osD^vPX*<>", ("-", "--", "-.", ":", (0, (6, 1)), (0, (1, 2)))
LABELS = {"mean": "per task", "joint": "joint"}  # of a summary's columns
BLUE_ORANGE = LinearSegmentedColormap.from_list("blue, white, orange", [BLUE, "white", ORANGE])
METHODS = {
    "originals (k models)": "#222222",
    "originals": "#222222",
    "average": GREY,
    "slerp": "#999933",
    "regmean": "#DDCC77",
    "align": "#C9A66B",
    "align, then slerp": "#B58A4A",
    "align, then regmean": "#AA7744",
    "align, orthogonal": "#8C5A2B",
    "align, orthogonal, then regmean": "#663311",
    "distillation": "#332288",
    "distillation, same time": "#8877CC",
    "distillation, as long as rank 32": "#BBAAEE",
    "distillation, our losses": "#5E4FA2",
    "all weights from the fitted start": "#44AA99",
    "FS-Merge (paper)": "#882255",
    "FS-Merge (fitted), untrained": "#E6B8D0",
    "FS-Merge (fitted)": PINK,
    "FS-Merge (fitted), rank 32, off-task 0.5": "#DD4488",
    "FS-Merge (fitted), in sequence": "#AA4499",
}


def style_of(name: str, j: int = 0) -> dict[str, str]:
    """The color and the marker of a method, or of line number `j` if the name is not a method's.

    What follows " @ " in a name (a rank, a width), or how wide it is, does not change the color.
    """
    method = name.split(" @ ")[0].removesuffix(", twice as wide").removesuffix(", 1.5 times as wide")
    if method not in METHODS:
        return {"color": COLOURS[j % len(COLOURS)], "marker": MARKERS[j % len(MARKERS)]}
    return {"color": METHODS[method], "marker": MARKERS[list(METHODS).index(method) % len(MARKERS)]}
