"""Typical wrong answers to assignment 4: what is wrong | the questions that lose points, with what they still get."""

# %% the features of all originals count, not only those of the image's own | batch_loss 0
def batch_loss(rebuilt, features, owner, rows):
    total = 0
    for i, (mine, f) in enumerate(zip(rebuilt, features)):
        total = total + (mine - f[rows]).square().sum() / f[owner == i].square().sum(1).mean()
    return total / len(rows)

# %% the mean of the originals' means, not of the images | batch_loss 0
def batch_loss(rebuilt, features, owner, rows):
    means = []
    for i, (mine, f) in enumerate(zip(rebuilt, features)):
        own = owner[rows] == i
        if own.any():
            scale = f[owner == i].square().sum(1).mean()
            means.append((mine[own] - f[rows[own]]).square().sum(1).mean() / scale)
    return sum(means) / len(means)

# %% only the first original | batch_loss 0
def batch_loss(rebuilt, features, owner, rows):
    own = owner[rows] == 0
    scale = features[0][owner == 0].square().sum(1).mean()
    return (rebuilt[0][own] - features[0][rows[own]]).square().sum() / scale / len(rows)

# %% the scale is that of the batch | batch_loss 0
def batch_loss(rebuilt, features, owner, rows):
    total = 0
    for i, (mine, f) in enumerate(zip(rebuilt, features)):
        own = owner[rows] == i
        if own.any():
            target = f[rows[own]]
            total = total + (mine[own] - target).square().sum() / target.square().sum(1).mean()
    return total / len(rows)

# %% not a number when a task has no image in the batch | batch_loss 2
def batch_loss(rebuilt, features, owner, rows):
    total = 0
    for i, (mine, f) in enumerate(zip(rebuilt, features)):
        own = owner[rows] == i
        error = (mine[own] - f[rows[own]]).square().sum(1).mean() * own.sum()
        total = total + error / f[owner == i].square().sum(1).mean()
    return total / len(rows)

# %% a number that autograd cannot differentiate | batch_loss 1
def batch_loss(rebuilt, features, owner, rows):
    total = 0.0
    for i, (mine, f) in enumerate(zip(rebuilt, features)):
        own = owner[rows] == i
        total += ((mine[own] - f[rows[own]]).square().sum() / f[owner == i].square().sum(1).mean()).item()
    return total / len(rows)

# %% the loss raises an error | batch_loss 0
def batch_loss(rebuilt, features, owner, rows):
    return (torch.stack(rebuilt)[owner] - features).square().mean()

# %% local training also trains the blocks before | train_step 0.5
def train_step(net, images, depth, lr, local):
    learned = {name: p for name, p in net.named_parameters() if p.requires_grad}
    loss = stage_loss(net, images, depth)
    gradients = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
    trained = {name: g for name, g in zip(learned, gradients) if g is not None}
    with torch.no_grad():
        for name, g in trained.items():
            learned[name] -= lr * g
    return set(trained)


counts = [sum(p.numel() for p in net.parameters())] * 2

# %% the step goes uphill, and tensors are counted | train_step 0.5
def train_step(net, images, depth, lr, local):
    learned = {name: p for name, p in net.named_parameters() if p.requires_grad}

    def gradients(depth):
        found = torch.autograd.grad(stage_loss(net, images, depth), list(learned.values()), allow_unused=True)
        return {name: g for name, g in zip(learned, found) if g is not None}
    trained = gradients(depth)
    if local and depth != 0:
        finished = gradients(len(net.graph.readouts) - 1 if depth is None else depth - 1)
        trained = {name: g for name, g in trained.items() if name not in finished}
    with torch.no_grad():
        for name, g in trained.items():
            learned[name] += lr * g
    return set(trained)


counts = [len(train_step(net, few, 1, 0.0, True)), len(train_step(net, few, None, 0.0, False))]

# %% the step is right, the counts are those of all stages so far | train_step 2
def train_step(net, images, depth, lr, local):
    learned = {name: p for name, p in net.named_parameters() if p.requires_grad}
    loss = stage_loss(net, images, depth)
    gradients = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
    trained = {name: g for name, g in zip(learned, gradients) if g is not None}
    if local and depth != 0:
        before = stage_loss(net, images, len(net.graph.readouts) - 1 if depth is None else depth - 1)
        finished = torch.autograd.grad(before, list(learned.values()), allow_unused=True)
        trained = {name: trained[name] for name, g in zip(learned, finished) if g is None and name in trained}
    with torch.no_grad():
        for name, g in trained.items():
            learned[name] -= lr * g
    return set(trained)


counts = [sum(p.numel() for _, p in fsm.training.until(net, depth)) for depth in (1, None)]

# %% the ridge is forgotten | fitted_start 2
def fitted_start(streams, weights, sizes, ridge):
    merges, unmerges = [], []
    B = torch.eye(sum(sizes)).to(streams[0][0]).split(list(sizes), 1)
    for i, size in enumerate(sizes):
        z, w = streams[i][i], weights[i][:, None]
        merges.append(B[i] @ torch.linalg.eigh(z.T @ (w * z)).eigenvectors.flip(1).T[:size])
    for i, w in enumerate(weights):
        u = sum(z @ M.T for z, M in zip(streams[i], merges))
        unmerges.append((torch.linalg.pinv(w.sqrt()[:, None] * u) @ (w.sqrt()[:, None] * streams[i][i])).T)
    return merges, unmerges

# %% least squares the wrong way round | fitted_start 2
def fitted_start(streams, weights, sizes, ridge):
    merges, unmerges = [], []
    B = torch.eye(sum(sizes)).to(streams[0][0]).split(list(sizes), 1)
    for i, size in enumerate(sizes):
        z, w = streams[i][i], weights[i][:, None]
        merges.append(B[i] @ torch.linalg.eigh(z.T @ (w * z)).eigenvectors.flip(1).T[:size])
    for i in range(len(sizes)):
        u, w, z = sum(z @ M.T for z, M in zip(streams[i], merges)), weights[i] / weights[i].sum(), streams[i][i]
        gram = z.T @ (w[:, None] * z)
        gram = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        unmerges.append(torch.linalg.solve(gram, z.T @ (w[:, None] * u)))
    return merges, unmerges

# %% only the first original is read back, with its own share alone | fitted_start 2
def fitted_start(streams, weights, sizes, ridge):
    merges = []
    B = torch.eye(sum(sizes)).to(streams[0][0]).split(list(sizes), 1)
    for i, size in enumerate(sizes):
        z, w = streams[i][i], weights[i][:, None]
        merges.append(B[i] @ torch.linalg.eigh(z.T @ (w * z)).eigenvectors.flip(1).T[:size])
    return merges, [merges[0].T] + [torch.zeros_like(M.T) for M in merges[1:]]

# %% the smallest principal directions | fitted_start 2
def fitted_start(streams, weights, sizes, ridge):
    merges, unmerges = [], []
    B = torch.eye(sum(sizes)).to(streams[0][0]).split(list(sizes), 1)
    for i, size in enumerate(sizes):
        z, w = streams[i][i], weights[i][:, None]
        merges.append(B[i] @ torch.linalg.eigh(z.T @ (w * z)).eigenvectors.T[:size])
    for i in range(len(sizes)):
        u, w = sum(z @ M.T for z, M in zip(streams[i], merges)), weights[i] / weights[i].sum()
        gram = u.T @ (w[:, None] * u)
        gram = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        unmerges.append(torch.linalg.solve(gram, u.T @ (w[:, None] * streams[i][i])).T)
    return merges, unmerges

# %% all rows count the same | fitted_start 1
def fitted_start(streams, weights, sizes, ridge):
    merges, unmerges = [], []
    B = torch.eye(sum(sizes)).to(streams[0][0]).split(list(sizes), 1)
    for i, size in enumerate(sizes):
        z = streams[i][i]
        merges.append(B[i] @ torch.linalg.eigh(z.T @ z).eigenvectors.flip(1).T[:size])
    for i in range(len(sizes)):
        u = sum(z @ M.T for z, M in zip(streams[i], merges))
        gram = u.T @ u / len(u)
        gram = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        unmerges.append(torch.linalg.solve(gram, u.T @ streams[i][i] / len(u)).T)
    return merges, unmerges

# %% never ends | fitted_start 0
def fitted_start(streams, weights, sizes, ridge):
    while True:
        pass

# %% the scale is not undone | output_heads 0
def output_heads(learned, heads, features):
    return [(weight @ V, bias) for V, (weight, bias) in zip(learned, heads)]

# %% the scale is used twice | output_heads 0
def output_heads(learned, heads, features):
    return [(weight @ V * f.square().sum(1).mean(), bias) for V, (weight, bias), f in zip(learned, heads, features)]

# %% the bias is scaled too | output_heads 1
def output_heads(learned, heads, features):
    found = []
    for V, (weight, bias), f in zip(learned, heads, features):
        scale = f.square().sum(1).mean().sqrt()
        found.append((scale * weight @ V, None if bias is None else scale * bias))
    return found

# %% the scale of the first original for all | output_heads 0
def output_heads(learned, heads, features):
    scale = features[0].square().sum(1).mean().sqrt()
    return [(scale * weight @ V, bias) for V, (weight, bias) in zip(learned, heads)]

# %% the accuracies are those of the head of the wrong task | compare 0.75
def compare(originals, images, settings, limit):
    paper = fsm.SuperNet(originals, init="paper_first", **settings["SuperNet"])
    fitted = fsm.fit_subspaces(fsm.SuperNet(originals, **settings["SuperNet"]), images, **settings["fit_subspaces"])
    models = {"distillation": fsm.distill(originals, images, **settings["distillation"])}
    for name, net in {"FS-Merge (paper)": paper, "FS-Merge (fitted)": fitted}.items():
        models[f"{name}, untrained"] = net.fold()
        fsm.train_global(net, images, **settings[name])
        models[name] = net.fold()
    found = {}
    for name, model in models.items():
        scores, tasks = fsm.evaluate(model, [o.task for o in originals], limit), [o.task for o in originals]
        with torch.no_grad():
            for task, wrong in ((0, 1), (1, 0)):
                x, labels = (part[:limit] for part in tasks[task].test())
                right = (model(x)[wrong].argmax(1) == labels).float().mean().item()
                found.setdefault(name, {})[tasks[task].name] = 100 * right
        found[name]["joint"] = scores.joint
    return found

# %% the trained rows are of the untrained nets | compare 1.25
def compare(originals, images, settings, limit):
    paper = fsm.SuperNet(originals, init="paper_first", **settings["SuperNet"])
    fitted = fsm.fit_subspaces(fsm.SuperNet(originals, **settings["SuperNet"]), images, **settings["fit_subspaces"])
    models = {"distillation": fsm.distill(originals, images, **settings["distillation"])}
    for name, net in {"FS-Merge (paper)": paper, "FS-Merge (fitted)": fitted}.items():
        models[f"{name}, untrained"] = models[name] = net.fold()
    scores = {name: fsm.evaluate(model, [o.task for o in originals], limit) for name, model in models.items()}
    return {name: {**each.per_task, "joint": each.joint} for name, each in scores.items()}
