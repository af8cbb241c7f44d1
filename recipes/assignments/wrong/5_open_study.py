"""Typical wrong answers to assignment 5: what is wrong | the questions that lose points, with what they still get."""

# %% the plan varies two things | plan 1.25
base = {"originals": (mine, "shapes" if mine != "shapes" else "digits"), "start": "fitted", "rank": 12, "images": 8,
        "augmented": 3, "steps": 20, "width": 96}
plan = {"settings": [base, base | {"images": 16, "steps": 40}], "seeds": [5, 6], "limit": 200, "predicted": [60, 70]}

# %% nothing varies | plan 1.25
base = {"originals": (mine, "shapes" if mine != "shapes" else "digits"), "start": "fitted", "rank": 12, "images": 8,
        "augmented": 3, "steps": 20, "width": 96}
plan = {"settings": [base, dict(base)], "seeds": [5, 6], "limit": 200, "predicted": [60, 70]}

# %% one seed only | plan 1.5
base = {"originals": (mine, "shapes" if mine != "shapes" else "digits"), "start": "fitted", "rank": 12, "images": 8,
        "augmented": 3, "steps": 20, "width": 96}
plan = {"settings": [base | {"rank": rank} for rank in (2, 24)], "seeds": [5], "limit": 200, "predicted": [60, 70]}

# %% a setting that is not allowed | plan 1.5
base = {"originals": (mine, "shapes" if mine != "shapes" else "digits"), "start": "fitted", "rank": 12, "images": 8,
        "augmented": 3, "steps": 20, "width": 96}
plan = {"settings": [base | {"width": d} for d in (96, 100)], "seeds": [5, 6], "limit": 200, "predicted": [60, 70]}

# %% the original of the class is missing | plan 1.5
others = [name for name in ("digits", "letters", "shapes", "textures") if name != mine]
base = {"originals": tuple(others[:2]), "start": "fitted", "rank": 12, "images": 8, "augmented": 3, "steps": 20,
        "width": 96}
plan = {"settings": [base, base | {"start": "paper_first"}], "seeds": [5, 6], "limit": 200, "predicted": [60, 70]}

# %% the prediction is empty | plan 1.75
base = {"originals": (mine, "shapes" if mine != "shapes" else "digits"), "start": "fitted", "rank": 12, "images": 8,
        "augmented": 3, "steps": 20, "width": 96}
plan = {"settings": [base | {"rank": rank} for rank in (2, 24)], "seeds": [5, 6], "limit": 200, "predicted": []}

# %% joint and per-task accuracy are swapped | study 0.25
def study(plan, load):
    rows = []
    for number, setting in enumerate(plan["settings"]):
        originals = load(*setting["originals"])
        for seed in plan["seeds"]:
            images = fsm.calibration(originals, setting["images"], setting["augmented"], seed)
            start = {} if setting["start"] == "fitted" else {"init": "paper_first"}
            net = fsm.SuperNet(originals, setting["rank"], shared=True, seed=seed, **start,
                               into=fsm.vit(setting["width"]))
            if not start:
                fsm.fit_subspaces(net, images)
            if setting["steps"]:
                fsm.train_global(net, images, setting["steps"], 2e-3, 32, seed, (1, 2, 3), off_task=0.2)
            scores = fsm.evaluate(net.fold(), [o.task for o in originals], plan["limit"])
            rows.append({"setting": number, "seed": seed, **scores.per_task, "mean": scores.joint,
                         "joint": scores.mean})
    return rows

# %% the seed is not used | study 1.25
def study(plan, load):
    rows = []
    for number, setting in enumerate(plan["settings"]):
        originals = load(*setting["originals"])
        for seed in plan["seeds"]:
            images = fsm.calibration(originals, setting["images"], setting["augmented"])
            start = {} if setting["start"] == "fitted" else {"init": "paper_first"}
            net = fsm.SuperNet(originals, setting["rank"], shared=True, **start,
                               into=fsm.vit(setting["width"]))
            if not start:
                fsm.fit_subspaces(net, images)
            if setting["steps"]:
                fsm.train_global(net, images, setting["steps"], 2e-3, 32, depths=(1, 2, 3), off_task=0.2)
            scores = fsm.evaluate(net.fold(), [o.task for o in originals], plan["limit"])
            rows.append({"setting": number, "seed": seed, **scores.row()})
    return rows

# %% only the first setting is run | study 1.5
def study(plan, load):
    rows, setting = [], plan["settings"][0]
    originals = load(*setting["originals"])
    for seed in plan["seeds"]:
        images = fsm.calibration(originals, setting["images"], setting["augmented"], seed)
        start = {} if setting["start"] == "fitted" else {"init": "paper_first"}
        net = fsm.SuperNet(originals, setting["rank"], shared=True, seed=seed, **start,
                               into=fsm.vit(setting["width"]))
        if not start:
            fsm.fit_subspaces(net, images)
        if setting["steps"]:
            fsm.train_global(net, images, setting["steps"], 2e-3, 32, seed, (1, 2, 3), off_task=0.2)
        scores = fsm.evaluate(net.fold(), [o.task for o in originals], plan["limit"])
        rows.append({"setting": 0, "seed": seed, **scores.row()})
    return rows

# %% the study raises an error | study 0
def study(plan, load):
    return [fsm.evaluate(fsm.SuperNet(each["originals"]).fold(), each["originals"]) for each in plan["settings"]]

# %% never ends | study 0
def study(plan, load):
    rows = []
    while len(rows) < len(plan["settings"]) * len(plan["seeds"]):
        pass
    return rows

# %% the spread is missing | summary 0.5
def summary(rows, column):
    table = []
    for number in sorted({row["setting"] for row in rows}):
        values = [row[column] for row in rows if row["setting"] == number]
        table.append({"setting": number, "mean": sum(values) / len(values)})
    return table

# %% the spread is divided by the number of seeds | summary 0.5
def summary(rows, column):
    table = []
    for number in sorted({row["setting"] for row in rows}):
        values = torch.tensor([row[column] for row in rows if row["setting"] == number]).double()
        spread = values.std(correction=0).item()
        table.append({"setting": number, "mean": values.mean().item(), "spread": spread})
    return table

# %% the mean over all settings | summary 0
def summary(rows, column):
    values = torch.tensor([row[column] for row in rows]).double()
    return [{"setting": number, "mean": values.mean().item(), "spread": values.std().item()}
            for number in sorted({row["setting"] for row in rows})]
