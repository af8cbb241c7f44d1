# %% [raw]
# # ASSIGNMENT CONFIG
# name: 5_open_study
# init_cell: true
# export_cell:
#   pdf: false
#   instructions: "Save the notebook first. Hand in the zip file."
# show_question_points: true
# tests:
#   ok_format: false
# generate:
#   show_hidden: true
#   plugins:
#     - fsmerge_lite.course.grading.TimeLimit:
#         seconds: 60

# %% [markdown]
# # Assignment 5: an open study
#
# **Aim.** You ask one question about merging, predict the answer, measure it, and say what your numbers show and what
# they do not show.
#
# **Time:** about 4 hours in one week. Of these, some minutes are running time. **Points:** 20. Tests give 6 of them,
# a person gives 14. **Before it:** lessons 07, 08 and 11. Lesson 12 if you vary the width.
#
# **Given** are four shipped originals and the settings that you may choose.
#
# **You may use** everything: the library, its source, the lessons. **Do not use** numbers that somebody else
# measured. Write all texts yourself.
#
# | part | points | who gives them |
# |---|---:|---|
# | 1 a plan that varies one thing | 2 | tests |
# | 2 a prediction, argued before you run | 4 | a person |
# | 3 the function `study` | 2 | tests |
# | 4 the function `summary` | 2 | tests |
# | 5 a figure with the spread | 3 | a person |
# | 6 a control experiment | 3 | a person |
# | 7 an explanation | 4 | a person |
#
# **Right or wrong predictions get the same points.** The argument counts. So write the prediction first, and leave it
# as it is.

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch

import fsmerge_lite as fsm
from fsmerge_lite.course.grading import Variant, graded

CLASS = 2026
variant = Variant(CLASS)
mine = variant.pick("original", ("digits", "letters", "shapes", "textures"))
print(f"In your class {mine} is one of the originals of every study.")

# %% [raw]
# # BEGIN QUESTION
# name: plan
# points: 2

# %% [markdown]
# ## 1 · The plan (2 points)
#
# What happens to the merged model if *one* thing changes? Choose the thing and two to six values of it. Write the
# dictionary `plan`:
#
# - `"settings"`: a list of two to six dictionaries, one for each setting. They have the seven entries below, and they
#   differ in exactly one of them.
# - `"seeds"`: a list of two or more seeds. Take seeds of your own, the last digits of your student number for
#   example.
# - `"limit"`: how many test images of each task are used, 100 to 500
# - `"predicted"`: for each setting the joint accuracy in percent that you expect. Question 2 asks you why.
#
# | entry | allowed |
# |---|---|
# | `"originals"` | a tuple of two to four different names of shipped originals. One is that of your class. |
# | `"start"` | `"fitted"` (the fitted start) or `"paper_first"` (the paper's start) |
# | `"rank"` | 1 to 48 |
# | `"images"` | images of each task, 1 to 100 |
# | `"augmented"` | augmented copies of each image, 0 to 49 |
# | `"steps"` | steps of training, 0 to 200 |
# | `"width"` | width of the merged model: 96 as the originals, 128 or 192 |
#
# Keep it small. A merge with 16 images, 3 copies and 20 steps takes some seconds. Three settings with three seeds
# then take about a minute.
#
# You can see all tests of this question. An example of one setting:
#
# ```python
# {"originals": ("digits", "letters"), "start": "fitted", "rank": 12, "images": 8, "augmented": 3, "steps": 20,
#  "width": 96}
# ```

# %% [raw]
# # BEGIN SOLUTION

# %%
# BEGIN SOLUTION NO PROMPT
partner = "shapes" if mine == "letters" else "letters"
base = {"originals": (mine, partner), "start": "fitted", "rank": 12, "images": 8, "augmented": 3, "steps": 0,
        "width": 96}
settings = [base | {"images": n} for n in (4, 8, 16)]
# END SOLUTION
plan = {"settings": settings, "seeds": [3, 17, 58], "limit": 200, "predicted": [50, 65, 80]}  # SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 0.5
""" # END TEST CONFIG
def test_the_settings_are_allowed(plan, variant):
    assert isinstance(plan, dict), "plan is not there yet: replace the three dots by a dictionary"
    settings, names = plan.get("settings"), ("digits", "letters", "shapes", "textures")
    assert isinstance(settings, list | tuple) and settings, 'plan["settings"] is a list of dictionaries'
    limit = plan.get("limit")
    assert isinstance(limit, int) and 100 <= limit <= 500, 'plan["limit"] is a whole number from 100 to 500'
    mine = variant.pick("original", names)
    numbers = {"rank": range(1, 49), "images": range(1, 101), "augmented": range(50), "steps": range(201),
               "width": (96, 128, 192)}
    for i, setting in enumerate(settings):
        assert isinstance(setting, dict), f"setting {i} is not a dictionary"
        entries = {"originals", "start", *numbers}
        assert set(setting) == entries, f"setting {i} needs the entries {', '.join(sorted(entries))}, and no others"
        for entry, allowed in numbers.items():
            value = setting[entry]
            assert type(value) is int and value in allowed, f"setting {i}: {entry} {value!r} is not allowed"
        assert setting["start"] in ("fitted", "paper_first"), f"setting {i}: there is no start {setting['start']!r}"
        chosen = setting["originals"]
        assert isinstance(chosen, list | tuple) and 2 <= len(chosen) <= 4, f"setting {i}: take two to four originals"
        assert set(chosen) <= set(names), f"setting {i}: the originals are {', '.join(names)}"
        assert len(set(chosen)) == len(chosen), f"setting {i}: an original is there twice"
        assert mine in chosen, f"setting {i}: {mine}, the original of your class, is missing"

# %%
""" # BEGIN TEST CONFIG
points: 0.75
""" # END TEST CONFIG
def test_exactly_one_thing_varies(plan):
    assert isinstance(plan, dict), "plan is not there yet: replace the three dots by a dictionary"
    settings = plan.get("settings")
    assert isinstance(settings, list | tuple) and all(isinstance(s, dict) for s in settings), (
        'plan["settings"] is a list of dictionaries')
    assert 2 <= len(settings) <= 6, f"a study compares two to six settings, yours has {len(settings)}"
    values = {entry: {str(s.get(entry)) for s in settings} for entry in sorted({e for s in settings for e in s})}
    vary = [entry for entry, found in values.items() if len(found) > 1]
    assert vary, "all settings are the same: nothing varies"
    assert len(vary) == 1, f"{' and '.join(vary)} vary together: you could not say which of them made the difference"
    assert len(values[vary[0]]) == len(settings), f"two settings have the same {vary[0]}"

# %%
""" # BEGIN TEST CONFIG
points: 0.5
""" # END TEST CONFIG
def test_there_are_two_seeds_or_more(plan):
    assert isinstance(plan, dict), "plan is not there yet: replace the three dots by a dictionary"
    seeds = plan.get("seeds")
    assert isinstance(seeds, list | tuple) and all(type(s) is int and s >= 0 for s in seeds), (
        'plan["seeds"] is a list of whole numbers, 0 or larger')
    assert len(set(seeds)) == len(seeds), "the same seed twice gives the same numbers twice"
    assert len(seeds) >= 2, "with one seed you cannot see how much a result changes by chance: take two or more"

# %%
""" # BEGIN TEST CONFIG
points: 0.25
""" # END TEST CONFIG
def test_there_is_a_prediction_for_each_setting(plan):
    assert isinstance(plan, dict), "plan is not there yet: replace the three dots by a dictionary"
    predicted, settings = plan.get("predicted"), plan.get("settings") or []
    assert isinstance(predicted, list | tuple) and predicted, 'plan["predicted"] is empty: what do you expect?'
    assert len(predicted) == len(settings), f"there are {len(settings)} settings and {len(predicted)} predictions"
    assert all(isinstance(p, int | float) and 0 <= p <= 100 for p in predicted), "predict percents"

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: prediction
# manual: true
# points: 4

# %% [markdown]
# ## 2 · The prediction (4 points, graded by a person)
#
# Write 100 to 250 words **before you run anything**. What do you expect of the per-task and of the joint accuracy in
# each setting, and why?
#
# - **2 points** for a mechanism: which part of the method ($M$, $U$, start, loss, images) feels the change, and how
#   does it reach the accuracy?
# - **1 point** for direction and size in each setting, per task and jointly.
# - **1 point** for a result that would speak *against* your argument.
#
# No points depend on being right.

# %% [raw]
# # BEGIN SOLUTION

# %% [markdown]
# *A model answer. Others are as good.*
#
# I vary the number of images of each task: 4, 8 and 16, each with three copies. I do not train. The fitted start
# solves least squares for every $U^0_i$. Inside the model each picture gives 17 tokens, which are 17 rows, so even 4
# images with copies give 272 rows for 96 inputs. After the last attention only the class token counts: 16, 32 and 64
# rows, fewer than the layer has inputs. There the ridge decides, so the last block and the output matrices should
# suffer most from few images. Besides, 4 images cannot show all ten classes. I expect 50, 65 and 80 % jointly, and 5
# points more per task. The step from 4 to 8 should be larger than that from 8 to 16, because each new image is less
# new. If 4 and 16 images were within the spread of the seeds, my argument about rows would be wrong.
#
# **Rubric (4 points)**
#
# - **Mechanism, 2.** 0: none, or "more is better". 1: names a part of the method, but not how it reaches the
#   accuracy. 2: a chain from the setting over a named part to the accuracy, which fits the lessons.
# - **Direction and size, 1.** 0: missing for a setting. 0.5: only the direction, or only one of the two accuracies.
#   1: numbers for all settings, per task and jointly.
# - **Can be refuted, 1.** 0: no such result. 0.5: vague, "if it does not work". 1: a result of this plan that would
#   speak against it.
#
# Being right or wrong changes nothing. A mechanism that contradicts the lessons gets at most 1 of 2. Numbers that
# agree with the result to the decimal were not predicted: ask.

# %% [raw]
# # END SOLUTION

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: study
# points: 2

# %% [markdown]
# ## 3 · The study (2 points)
#
# Write `study`. It gets a plan and `load`, a function that gives the originals of some names as `fsm.load_originals`
# does. It returns a list of rows, one for each setting and seed. All seeds of setting 0 come first, then those of
# setting 1, and so on. One merge goes like this:
#
# | step | library | arguments beside the setting's own |
# |---|---|---|
# | load | `load` | |
# | images | `fsm.calibration` | the seed |
# | SuperNet | `fsm.SuperNet` | `shared=True`, the seed, `into=fsm.vit(dim=width)` (see below) |
# | start | `fsm.fit_subspaces`, for the fitted start only | |
# | train | `fsm.train_global`, unless there are 0 steps | the seed, `training` (see below) |
# | score | `fsm.evaluate` of the fold | the plan's limit |
#
# The paper's start also needs `init="paper_first"` in the SuperNet. The training of all merges is
#
# ```python
# training = {"lr": 2e-3, "batch_size": 32, "depths": (1, 2, 3), "off_task": 0.2}
# ```
#
# A row is a dictionary: `"setting"` (its number, from 0), `"seed"`, the accuracy of each task under its name,
# `"mean"` (the mean of the per-task accuracies) and `"joint"`, all in percent. `Scores.row()` has the accuracies.

# %% [raw]
# # BEGIN SOLUTION

# %%
def study(plan, load):
    """One row for each setting and seed."""
    # BEGIN SOLUTION
    rows = []
    for number, setting in enumerate(plan["settings"]):
        originals = load(*setting["originals"])
        fitted, steps = setting["start"] == "fitted", setting["steps"]
        for seed in plan["seeds"]:
            images = fsm.calibration(originals, setting["images"], setting["augmented"], seed)
            net = fsm.SuperNet(originals, setting["rank"], init="first" if fitted else "paper_first", shared=True,
                               seed=seed, into=fsm.vit(dim=setting["width"]))
            if fitted:
                fsm.fit_subspaces(net, images)
            if steps:
                fsm.train_global(net, images, steps, lr=2e-3, batch_size=32, seed=seed, depths=(1, 2, 3), off_task=0.2)
            scores = fsm.evaluate(net.fold(), [original.task for original in originals], plan["limit"])
            rows.append({"setting": number, "seed": seed, **scores.row()})
    return rows
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 0.25
""" # END TEST CONFIG
def test_one_row_for_each_setting_and_seed(study):
    from fsmerge_lite.course.grading import call, small_original
    setting = {"originals": ("textures", "shapes"), "start": "paper_first", "rank": 2, "images": 2, "augmented": 0,
               "steps": 0, "width": 16}
    plan = {"settings": [setting], "seeds": [4, 9], "limit": 20, "predicted": [50]}
    rows = call(study, plan, lambda *names: [small_original(name, depth=4) for name in names])
    assert isinstance(rows, list) and all(isinstance(row, dict) for row in rows), "study returns a list of dictionaries"
    found = [(row.get("setting"), row.get("seed")) for row in rows]
    assert found == [(0, 4), (0, 9)], f"setting and seed of the rows should be (0, 4), (0, 9); yours are {found}"
    for row in rows:
        scores = {name: value for name, value in row.items() if name not in ("setting", "seed")}
        assert set(scores) == {"textures", "shapes", "mean", "joint"}, (
            f"a row has the entries setting, seed, textures, shapes, mean and joint; yours has {', '.join(row)}")
        assert all(0 <= value <= 100 for value in scores.values()), "accuracies go from 0 to 100"

# %%
""" # BEGIN TEST CONFIG
points: 0.75
""" # END TEST CONFIG
def test_a_fitted_start_as_in_the_benchmarks(study, variant):
    import fsmerge_lite as fsm
    from fsmerge_lite.bench.methods import Cell, fs_merge
    from fsmerge_lite.course.grading import call, small_original
    seed = variant.pick("small", range(999))
    originals = [small_original(name, depth=4, seed=seed) for name in ("textures", "shapes")]
    setting = {"originals": ("textures", "shapes"), "start": "fitted", "rank": 3, "images": 6, "augmented": 1,
               "steps": 0, "width": 16}
    seed = variant.pick("seed", range(3, 30))
    plan = {"settings": [setting], "seeds": [seed], "limit": 100, "predicted": [50]}
    rows = call(study, plan, lambda *names: originals)
    assert len(rows) == 1, f"one setting and one seed give one row, yours are {len(rows)}"
    models, images, tasks = (cell := Cell((), 6, seed, 0, 12, batch_size=32)).prepare(originals)
    model = fs_merge(rank=3, shared=True, into=fsm.vit(dim=16))(models, images, cell, {}).model
    row, right = rows[0], fsm.evaluate(model, tasks, 100).row()
    far = {name: row.get(name) for name in right if abs(row.get(name, -99) - right[name]) > 1.1}
    swapped = "mean" in far and abs(row["mean"] - right["joint"]) + abs(row["joint"] - right["mean"]) < 2
    assert not swapped, "joint and mean are swapped"
    names = ", ".join(f"{name} {right[name]:.1f}" for name in far)
    assert not far, f"with the seed {seed} the library has {names}; you have {far}"

# %%
""" # BEGIN TEST CONFIG
points: 0.5
hidden: true
""" # END TEST CONFIG
def test_two_settings_from_the_start_of_the_paper(study, variant):
    import fsmerge_lite as fsm
    from fsmerge_lite.bench.methods import Cell, fs_merge
    from fsmerge_lite.course.grading import call, small_original
    seed = variant.pick("paper", range(999))
    originals = [small_original(name, depth=4, seed=seed) for name in ("shapes", "textures")]
    base = {"originals": ("shapes", "textures"), "start": "paper_first", "rank": 4, "images": 3, "augmented": 1,
            "width": 16}
    plan = {"settings": [base | {"steps": 0}, base | {"steps": 2}], "seeds": [0], "limit": 100, "predicted": [50, 50]}
    rows = call(study, plan, lambda *names: originals)
    assert [(row["setting"], row["seed"]) for row in rows] == [(0, 0), (1, 0)], "two settings give two rows"
    models, images, tasks = (cell := Cell((), 3, 0, 2, 6, batch_size=32)).prepare(originals)
    model = fs_merge(init="paper_first", rank=4, shared=True, into=fsm.vit(dim=16))(models, images, cell, {}).model
    for name, value in fsm.evaluate(model, tasks, 100).row().items():
        assert abs(rows[1][name] - value) < 1.1, f"after two steps {name} is {value:.1f} %"

# %%
""" # BEGIN TEST CONFIG
points: 0.5
hidden: true
""" # END TEST CONFIG
def test_three_originals_and_another_width(study, variant):
    import fsmerge_lite as fsm
    from fsmerge_lite.bench.methods import Cell, fs_merge
    from fsmerge_lite.course.grading import call, small_original
    names = variant.pick("three", (("shapes", "textures", "letters"), ("textures", "letters", "shapes")))
    originals = {name: small_original(name, depth=4, seed=variant.pick("three", range(999))) for name in names}
    setting = {"originals": names, "start": "paper_first", "rank": 5, "images": 5, "augmented": 0, "steps": 1,
               "width": 24}
    plan = {"settings": [setting], "seeds": [0], "limit": 100, "predicted": [50]}
    rows = call(study, plan, lambda *names: [originals[name] for name in names])
    models, images, tasks = (cell := Cell((), 5, 0, 1, 5, batch_size=32)).prepare(list(originals.values()))
    merge = fs_merge(init="paper_first", rank=5, shared=True, into=fsm.vit(dim=24))
    right = fsm.evaluate(merge(models, images, cell, {}).model, tasks, 100).row()
    assert len(rows) == 1 and set(right) <= set(rows[0]), "one setting and one seed give one row"
    assert all(abs(rows[0][name] - right[name]) < 1.1 for name in right), "three originals, another width"

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# Run your study. It is left out when your work is graded, so save the notebook with its output.

# %%
rows = []
if not graded():
    rows = study(plan, fsm.load_originals)
pd.DataFrame(rows).round(1)

# %% [raw]
# # BEGIN QUESTION
# name: summary
# points: 2

# %% [markdown]
# ## 4 · The summary (2 points)
#
# Write `summary`. It gets rows as `study` returns them, and the name of a column, `"joint"` for example. It returns a
# list with one dictionary for each setting, in the order of their numbers: `"setting"`, `"mean"` and `"spread"`.
#
# The spread is the sample standard deviation over the seeds: the sum of squares is divided by the number of seeds
# minus 1. With one seed the spread is not known. Then it is `float("nan")`. The rows may come in any order, and
# settings may have different numbers of seeds.

# %% [raw]
# # BEGIN SOLUTION

# %%
def summary(rows, column):
    """The mean and the spread of a column for each setting."""
    # BEGIN SOLUTION
    table = []
    for number in sorted({row["setting"] for row in rows}):
        values = torch.tensor([row[column] for row in rows if row["setting"] == number], dtype=torch.float64)
        spread = values.std().item() if len(values) > 1 else float("nan")
        table.append({"setting": number, "mean": values.mean().item(), "spread": spread})
    return table
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 0.5
""" # END TEST CONFIG
def test_the_means(summary, variant):
    import torch

    from fsmerge_lite.course.grading import call, same
    values = (100 * torch.rand(2, 3, generator=variant.generator("means"))).double()
    rows = [{"setting": i, "seed": s, "mean": 0.0, "joint": values[i, s].item()} for i in range(2) for s in range(3)]
    table = call(summary, rows, "joint")
    assert isinstance(table, list) and len(table) == 2, "summary returns a list with one dictionary for each setting"
    assert all(isinstance(each, dict) and "mean" in each for each in table), 'each dictionary needs "mean"'
    same([each["mean"] for each in table], [value.mean().item() for value in values], "the mean")

# %%
""" # BEGIN TEST CONFIG
points: 0.5
""" # END TEST CONFIG
def test_the_spreads(summary, variant):
    import statistics

    import torch

    from fsmerge_lite.course.grading import call, same
    values = (100 * torch.rand(3, 4, generator=variant.generator("spreads"))).double()
    rows = [{"setting": i, "seed": s, "mean": values[i, s].item(), "joint": 5.0} for i in range(3) for s in range(4)]
    table = call(summary, rows, "mean")
    assert isinstance(table, list) and len(table) == 3, "summary returns a list with one dictionary for each setting"
    assert all(isinstance(each, dict) and "spread" in each for each in table), 'each dictionary needs "spread"'
    same([each["spread"] for each in table], [statistics.stdev(value.tolist()) for value in values], "the spread", {
        "divide by the number of seeds minus 1": [statistics.pstdev(value.tolist()) for value in values]})

# %%
""" # BEGIN TEST CONFIG
points: 0.5
hidden: true
""" # END TEST CONFIG
def test_rows_in_any_order_and_other_numbers_of_seeds(summary):
    import statistics

    from fsmerge_lite.course.grading import call, same
    values = {2: [10.0, 20.0, 60.0, 5.0], 0: [71.0, 73.5], 1: [33.0, 31.0, 38.0]}
    rows = [{"setting": i, "seed": s, "joint": value} for i, found in values.items() for s, value in enumerate(found)]
    table = call(summary, rows[3::-1] + rows[:3:-1], "joint")
    assert [each["setting"] for each in table] == [0, 1, 2], "the settings come in the order of their numbers"
    for each in table:
        found = values[each["setting"]]
        same([each["mean"], each["spread"]], [statistics.mean(found), statistics.stdev(found)], "mean and spread")

# %%
""" # BEGIN TEST CONFIG
points: 0.5
hidden: true
""" # END TEST CONFIG
def test_one_seed_has_no_spread(summary):
    import math

    from fsmerge_lite.course.grading import call, same
    table = call(summary, [{"setting": 0, "seed": 7, "joint": 42.0}, {"setting": 1, "seed": 7, "joint": 44.0}], "joint")
    same([each["mean"] for each in table], [42.0, 44.0], "the mean of one seed")
    assert all(math.isnan(each["spread"]) for each in table), "the spread of one seed is not known: nan"

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %%
for column in ("mean", "joint"):
    if rows:
        print(column)
        print(pd.DataFrame(summary(rows, column)).round(1).to_string(index=False))

# %% [raw]
# # BEGIN QUESTION
# name: figure
# manual: true
# points: 3

# %% [markdown]
# ## 5 · The figure (3 points, graded by a person)
#
# Write `figure(rows)`. It draws the per-task mean and the joint accuracy of all settings **with the spread over the
# seeds**, and your prediction. The cell after it runs it. Say in one or two sentences what one sees.
#
# - **1 point** if all seeds can be seen, or their mean with a spread that is named.
# - **1 point** if both accuracies are there, the axes have names and units, and settings that are numbers stand in
#   their order.
# - **1 point** if your sentences fit the figure, and it does not make differences look larger than they are.

# %% [raw]
# # BEGIN SOLUTION

# %% [markdown]
# *A model answer, measured in the class 2026 (shapes, letters).* Both accuracies rise with the number of images, for
# each seed. All predictions (crosses) lie above the measured joint accuracy, by 15 to 24 points, far more than the
# seeds differ.
#
# **Rubric (3 points)**
#
# - **Spread, 1.** 0: means alone. 0.5: bars or bands, but not said of what. 1: all seeds, or a spread with its name.
# - **Complete, 1.** 0: one accuracy only. 0.5: a name or a unit of an axis is missing, or the order is wrong. 1: all
#   there.
# - **Honest, 1.** 0: the sentences contradict the figure. 0.5: a cut axis that makes noise look like an effect, and
#   no word about it. 1: what is said can be seen.

# %%
def figure(rows):
    """Accuracy of each setting: points are seeds, lines their means, crosses what was predicted."""
    # BEGIN SOLUTION
    vary, = (entry for entry in plan["settings"][0] if len({str(s[entry]) for s in plan["settings"]}) > 1)
    values = [str(setting[vary]) for setting in plan["settings"]]
    ax = plt.figure(figsize=(6, 3.5), layout="constrained").gca()
    for column, name in (("mean", "per task"), ("joint", "joint")):
        line, = ax.plot(values, [each["mean"] for each in summary(rows, column)], label=f"{name}, mean of the seeds")
        ax.plot([values[row["setting"]] for row in rows], [row[column] for row in rows], "o", color=line.get_color(),
                alpha=0.5, label=f"{name}, one seed")
    ax.plot(values, plan["predicted"], "kx", label="joint, predicted")
    ax.set(xlabel=f"{vary} of each task", ylabel="test accuracy in percent", ylim=(0, 100),
           title="More images of each task help")
    ax.legend(frameon=False)
    plt.show()
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # END QUESTION

# %%
if rows:
    figure(rows)

# %% [raw]
# # BEGIN QUESTION
# name: control
# manual: true
# points: 3

# %% [markdown]
# ## 6 · A control experiment (3 points, graded by a person)
#
# Your result may have another reason than the one you gave. Name one such reason, and run one experiment that tells
# the two apart. Describe it in 60 to 150 words with its result, and put its plan into `control`. The settings are
# allowed as in question 1.
#
# - **1 point** for another reason that could be true.
# - **1 point** for a control in which only that reason is kept or taken away, and all else is as before. Use the same
#   seeds.
# - **1 point** for its result, with spread, and for what follows from it.

# %% [raw]
# # BEGIN SOLUTION

# %% [markdown]
# *A model answer, measured in the class 2026.* More images also mean more pictures, because each has three copies:
# 16, 32 and 64 of each task. Perhaps only the number of rows counts, and new images are no better than more copies.
# The control gives 4 images 15 copies, so that there are 64 pictures as with 16 images and three copies. Seeds and
# all else are the same. Jointly, 4 images have 26.3 % with 3 copies (spread 1.9) and 46.2 % with 15 copies (4.7), and
# 16 images have 64.5 % (1.2). So about half of the gain of 38 points comes with more pictures of the same images. The
# other half needs new images. My reason, the number of rows, is one of two.
#
# **Rubric (3 points)**
#
# - **Another reason, 1.** 0: none, or the same in other words. 0.5: possible, but not in this plan. 1: it could make
#   the same numbers.
# - **The control, 1.** 0: changes several things. 0.5: fits, but has other seeds or another limit. 1: one thing
#   changes, the rest stays.
# - **Result and conclusion, 1.** 0: not run. 0.5: no spread, or a conclusion that the numbers do not carry. 1:
#   numbers, spread, and a conclusion that fits, also "it does not decide".

# %%
control = {**plan, "settings": [base | {"images": n, "augmented": 64 // n - 1} for n in (4, 16)]}  # SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # END QUESTION

# %%
if not graded():
    print(pd.DataFrame(summary(study(control, fsm.load_originals), "joint")).round(1).to_string(index=False))

# %% [raw]
# # BEGIN QUESTION
# name: explanation
# manual: true
# points: 4

# %% [markdown]
# ## 7 · The explanation (4 points, graded by a person)
#
# Write 150 to 350 words. Compare your prediction with the result, explain the difference or the agreement, and say
# what your evidence does **not** show.
#
# - **1 point** for comparing each prediction with its result, and with the spread.
# - **2 points** for an explanation that uses your own numbers: per-task and joint accuracy, single tasks, the
#   control.
# - **1 point** for two limits that belong to *your* study, not to all studies.

# %% [raw]
# # BEGIN SOLUTION

# %% [markdown]
# *A model answer, measured in the class 2026.* I predicted 50, 65 and 80 % jointly. Three seeds gave 26.3, 47.6 and
# 64.5 % with spreads of 1.9, 3.0 and 1.2. The direction is right for each seed, the size is not: I was 15 to 24
# points too high, many times the spread. The first step is 21 points, the second 17, but for one of three seeds the
# second is the larger one. So I cannot say that the first images help most.
#
# Per task it is 36.2, 58.8 and 75.2 %, 10 to 11 points more than jointly, where I expected 5. Those are images whose
# own head is right while the other head is surer. The gap does not shrink with more images, so few images do not
# explain it. Both tasks rise: with 16 images shapes reach 73 to 85 % and letters 66 to 74 %. In the control, 64
# pictures of 4 images have 46.2 %. So rows explain about half, and new images the rest. Perhaps missing classes are
# why, as 4 images show at most 4 of 10. I did not test this. It would take 4 images of chosen classes, scored class
# by class.
#
# This is one pair in one order, untrained: training could make up for what the start lacks. With 200 test images of
# each task, one run is uncertain by about 2.5 points. Three seeds give a rough spread, and the control has the
# largest one, 4.7.
#
# **Rubric (4 points)**
#
# - **Comparison, 1.** 0: missing, or only "I was right". 0.5: without the spread, or not for all settings. 1: each
#   setting, against the spread.
# - **Explanation, 2.** 0: repeats the numbers. 1: plausible, but not tied to own numbers, or some of them contradict
#   it. 2: uses single tasks, joint against per task or the control, and says how sure it is.
# - **Limits, 1.** 0: none. 0.5: one, or general ones such as "more data". 1: two of this study, such as this pair,
#   this order, the seeds, the limit of test images, the steps.
#
# A difference that is smaller than the spread and is called an effect costs the point of the comparison.

# %% [raw]
# # END SOLUTION

# %% [raw]
# # END QUESTION
