"""Typical wrong answers to assignment 3: what is wrong | the questions that lose points, with what they still get."""

# %% q, k and v each have a U of their own | qkv 0
def first_start(originals, dim, attn_dim):
    matrices = []
    for i, original in enumerate(originals):
        W = original["qkv.weight"]
        own = {f"U_{part}": torch.eye(W.shape[1], dim, dtype=W.dtype) for part in "qkv"}
        own |= {f"M_{part}": torch.eye(attn_dim, len(W) // 3, dtype=W.dtype) * (i == 0) for part in "qkv"}
        matrices.append(own)
    return matrices


def unfolded_qkv(x, originals, matrices):
    merged = [0, 0, 0]
    for original, own in zip(originals, matrices):
        bias = original["qkv.bias"].chunk(3) if "qkv.bias" in original else [None] * 3
        for n, (part, W, b) in enumerate(zip("qkv", original["qkv.weight"].chunk(3), bias)):
            merged[n] = merged[n] + F.linear(x @ own[f"U_{part}"].T, W, b) @ own[f"M_{part}"].T
    return tuple(merged)

# %% the start makes three U, the layer runs with one | qkv 2
def first_start(originals, dim, attn_dim):
    matrices = []
    for i, original in enumerate(originals):
        W = original["qkv.weight"]
        own = {f"U_{part}": torch.eye(W.shape[1], dim, dtype=W.dtype) for part in "qkv"}
        own |= {f"M_{part}": torch.eye(attn_dim, len(W) // 3, dtype=W.dtype) * (i == 0) for part in "qkv"}
        matrices.append(own)
    return matrices


def unfolded_qkv(x, originals, matrices):
    merged = [0, 0, 0]
    for original, own in zip(originals, matrices):
        y = F.linear(x @ own["U_qkv"].T, original["qkv.weight"], original.get("qkv.bias"))
        merged = [m + z @ own[f"M_{part}"].T for m, z, part in zip(merged, y.chunk(3, -1), "qkv")]
    return tuple(merged)

# %% all M are I, and original 1's bias is taken for all | qkv 0.5
def first_start(originals, dim, attn_dim):
    matrices = []
    for original in originals:
        W = original["qkv.weight"]
        own = {f"M_{part}": torch.eye(attn_dim, len(W) // 3, dtype=W.dtype) for part in "qkv"}
        matrices.append(own | {"U_qkv": torch.eye(W.shape[1], dim, dtype=W.dtype)})
    return matrices


def unfolded_qkv(x, originals, matrices):
    merged = [0, 0, 0]
    for i, (original, own) in enumerate(zip(originals, matrices)):
        y = F.linear(x @ own["U_qkv"].T, original["qkv.weight"], original.get("qkv.bias") if i == 0 else None)
        merged = [m + z @ own[f"M_{part}"].T for m, z, part in zip(merged, y.chunk(3, -1), "qkv")]
    return tuple(merged)

# %% the start is always float32 and as wide as original 1 | qkv 2.5
def first_start(originals, dim, attn_dim):
    a, d = len(originals[0]["qkv.weight"]) // 3, originals[0]["qkv.weight"].shape[1]
    return [{"U_qkv": torch.eye(d)} | {f"M_{part}": torch.eye(a) * (i == 0) for part in "qkv"}
            for i in range(len(originals))]


def unfolded_qkv(x, originals, matrices):
    merged = [0, 0, 0]
    for original, own in zip(originals, matrices):
        y = F.linear(x @ own["U_qkv"].T, original["qkv.weight"], original.get("qkv.bias"))
        merged = [m + z @ own[f"M_{part}"].T for m, z, part in zip(merged, y.chunk(3, -1), "qkv")]
    return tuple(merged)

# %% q, v, k instead of q, k, v | qkv 1
def first_start(originals, dim, attn_dim):
    matrices = []
    for i, original in enumerate(originals):
        W = original["qkv.weight"]
        own = {f"M_{part}": torch.eye(attn_dim, len(W) // 3, dtype=W.dtype) * (i == 0) for part in "qkv"}
        matrices.append(own | {"U_qkv": torch.eye(W.shape[1], dim, dtype=W.dtype)})
    return matrices


def unfolded_qkv(x, originals, matrices):
    merged = [0, 0, 0]
    for original, own in zip(originals, matrices):
        y = F.linear(x @ own["U_qkv"].T, original["qkv.weight"], original.get("qkv.bias"))
        q, v, k = y.chunk(3, -1)
        merged = [m + z @ own[f"M_{part}"].T for m, z, part in zip(merged, (q, k, v), "qkv")]
    return tuple(merged)

# %% every third channel is q's: axes mixed | qkv 1
def first_start(originals, dim, attn_dim):
    matrices = []
    for i, original in enumerate(originals):
        W = original["qkv.weight"]
        own = {f"M_{part}": torch.eye(attn_dim, len(W) // 3, dtype=W.dtype) * (i == 0) for part in "qkv"}
        matrices.append(own | {"U_qkv": torch.eye(W.shape[1], dim, dtype=W.dtype)})
    return matrices


def unfolded_qkv(x, originals, matrices):
    merged = [0, 0, 0]
    for original, own in zip(originals, matrices):
        y = F.linear(x @ own["U_qkv"].T, original["qkv.weight"], original.get("qkv.bias"))
        three = y.unflatten(-1, (-1, 3)).unbind(-1)
        merged = [m + z @ own[f"M_{part}"].T for m, z, part in zip(merged, three, "qkv")]
    return tuple(merged)

# %% every original must have a bias, and no gradient reaches M and U | qkv 1.5
def first_start(originals, dim, attn_dim):
    matrices = []
    for i, original in enumerate(originals):
        W = original["qkv.weight"]
        own = {f"M_{part}": torch.eye(attn_dim, len(W) // 3, dtype=W.dtype) * (i == 0) for part in "qkv"}
        matrices.append(own | {"U_qkv": torch.eye(W.shape[1], dim, dtype=W.dtype)})
    return matrices


@torch.no_grad()
def unfolded_qkv(x, originals, matrices):
    merged = [0, 0, 0]
    for original, own in zip(originals, matrices):
        y = F.linear(x @ own["U_qkv"].T, original["qkv.weight"], original["qkv.bias"])
        merged = [m + z @ own[f"M_{part}"].T for m, z, part in zip(merged, y.chunk(3, -1), "qkv")]
    return tuple(merged)

# %% the biases of qkv are forgotten | qkv 1.5
def first_start(originals, dim, attn_dim):
    matrices = []
    for i, original in enumerate(originals):
        W = original["qkv.weight"]
        own = {f"M_{part}": torch.eye(attn_dim, len(W) // 3, dtype=W.dtype) * (i == 0) for part in "qkv"}
        matrices.append(own | {"U_qkv": torch.eye(W.shape[1], dim, dtype=W.dtype)})
    return matrices


def unfolded_qkv(x, originals, matrices):
    merged = [0, 0, 0]
    for original, own in zip(originals, matrices):
        y = x @ own["U_qkv"].T @ original["qkv.weight"].T
        merged = [m + z @ own[f"M_{part}"].T for m, z, part in zip(merged, y.chunk(3, -1), "qkv")]
    return tuple(merged)

# %% M and U swapped | qkv 1
def first_start(originals, dim, attn_dim):
    matrices = []
    for i, original in enumerate(originals):
        W = original["qkv.weight"]
        own = {f"M_{part}": torch.eye(attn_dim, len(W) // 3, dtype=W.dtype) * (i == 0) for part in "qkv"}
        matrices.append(own | {"U_qkv": torch.eye(W.shape[1], dim, dtype=W.dtype)})
    return matrices


def unfolded_qkv(x, originals, matrices):
    merged = [0, 0, 0]
    for original, own in zip(originals, matrices):
        for n, (part, W) in enumerate(zip("qkv", original["qkv.weight"].chunk(3))):
            merged[n] = merged[n] + x @ own[f"M_{part}"].T @ W.T @ own["U_qkv"].T
    return tuple(merged)

# %% the scores are not divided | attention 0
def unfolded_attention(parts, originals, matrices, heads):
    q, k, v = (sum(z @ m[f"M_{part}"].T for z, m in zip(three, matrices)).unflatten(-1, (heads, -1)).transpose(1, 2)
               for part, three in zip("qkv", zip(*parts)))
    mixed = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)
    return sum(F.linear(mixed @ m["U_o"].T, o["proj.weight"], o["proj.bias"]) @ m["M_o"].T
               for o, m in zip(originals, matrices))

# %% divided by the root of the head size of original 1, not of the merged model | attention 1
def unfolded_attention(parts, originals, matrices, heads):
    q, k, v = (sum(z @ m[f"M_{part}"].T for z, m in zip(three, matrices)).unflatten(-1, (heads, -1)).transpose(1, 2)
               for part, three in zip("qkv", zip(*parts)))
    size = parts[0][0].shape[-1] / heads
    mixed = ((q @ k.mT / size ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    return sum(F.linear(mixed @ m["U_o"].T, o["proj.weight"], o["proj.bias"]) @ m["M_o"].T
               for o, m in zip(originals, matrices))

# %% divided by the root of the width of attention, not of a head | attention 0
def unfolded_attention(parts, originals, matrices, heads):
    q, k, v = (sum(z @ m[f"M_{part}"].T for z, m in zip(three, matrices)).unflatten(-1, (heads, -1)).transpose(1, 2)
               for part, three in zip("qkv", zip(*parts)))
    mixed = ((q @ k.mT / (heads * q.shape[-1]) ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    return sum(F.linear(mixed @ m["U_o"].T, o["proj.weight"], o["proj.bias"]) @ m["M_o"].T
               for o, m in zip(originals, matrices))

# %% one head, whatever the number of heads | attention 0
def unfolded_attention(parts, originals, matrices, heads):
    q, k, v = (sum(z @ m[f"M_{part}"].T for z, m in zip(three, matrices)) for part, three in zip("qkv", zip(*parts)))
    mixed = (q @ k.mT / (q.shape[-1] // heads) ** 0.5).softmax(-1) @ v
    return sum(F.linear(mixed @ m["U_o"].T, o["proj.weight"], o["proj.bias"]) @ m["M_o"].T
               for o, m in zip(originals, matrices))

# %% heads and channels mixed in the reshape | attention 0
def unfolded_attention(parts, originals, matrices, heads):
    q, k, v = (sum(z @ m[f"M_{part}"].T for z, m in zip(three, matrices)).unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)
               for part, three in zip("qkv", zip(*parts)))
    mixed = F.scaled_dot_product_attention(q, k, v).permute(0, 2, 3, 1).flatten(2)
    return sum(F.linear(mixed @ m["U_o"].T, o["proj.weight"], o["proj.bias"]) @ m["M_o"].T
               for o, m in zip(originals, matrices))

# %% the heads are not brought back behind the tokens | attention 0
def unfolded_attention(parts, originals, matrices, heads):
    q, k, v = (sum(z @ m[f"M_{part}"].T for z, m in zip(three, matrices)).unflatten(-1, (heads, -1)).transpose(1, 2)
               for part, three in zip("qkv", zip(*parts)))
    mixed = F.scaled_dot_product_attention(q, k, v).reshape(q.shape[0], q.shape[2], -1)
    return sum(F.linear(mixed @ m["U_o"].T, o["proj.weight"], o["proj.bias"]) @ m["M_o"].T
               for o, m in zip(originals, matrices))

# %% a softmax for each original, merged afterwards | attention 1
def unfolded_attention(parts, originals, matrices, heads):
    merged = 0
    for three, m in zip(parts, matrices):
        q, k, v = (z.unflatten(-1, (heads, -1)).transpose(1, 2) for z in three)
        merged = merged + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) @ m["M_v"].T
    return sum(F.linear(merged @ m["U_o"].T, o["proj.weight"], o["proj.bias"]) @ m["M_o"].T
               for o, m in zip(originals, matrices))

# %% a pattern for each original, with merged values | attention 1
def unfolded_attention(parts, originals, matrices, heads):
    def split(z):
        return z.unflatten(-1, (heads, -1)).transpose(1, 2)
    v = split(sum(three[2] @ m["M_v"].T for three, m in zip(parts, matrices)))
    total = 0
    for (q, k, _), o, m in zip(parts, originals, matrices):
        mixed = F.scaled_dot_product_attention(split(q @ m["M_q"].T), split(k @ m["M_k"].T), v)
        z = mixed.transpose(1, 2).flatten(2) @ m["U_o"].T
        total = total + F.linear(z, o["proj.weight"], o["proj.bias"]) @ m["M_o"].T
    return total

# %% the bias of proj is added outside M | attention 0
def unfolded_attention(parts, originals, matrices, heads):
    q, k, v = (sum(z @ m[f"M_{part}"].T for z, m in zip(three, matrices)).unflatten(-1, (heads, -1)).transpose(1, 2)
               for part, three in zip("qkv", zip(*parts)))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return sum(mixed @ m["U_o"].T @ o["proj.weight"].T @ m["M_o"].T + o["proj.bias"]
               for o, m in zip(originals, matrices))

# %% the bias of proj is forgotten | attention 0
def unfolded_attention(parts, originals, matrices, heads):
    q, k, v = (sum(z @ m[f"M_{part}"].T for z, m in zip(three, matrices)).unflatten(-1, (heads, -1)).transpose(1, 2)
               for part, three in zip("qkv", zip(*parts)))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return sum(mixed @ m["U_o"].T @ o["proj.weight"].T @ m["M_o"].T for o, m in zip(originals, matrices))

# %% only original 1 is run | attention 1
def unfolded_attention(parts, originals, matrices, heads):
    q, k, v = ((z @ matrices[0][f"M_{part}"].T).unflatten(-1, (heads, -1)).transpose(1, 2)
               for part, z in zip("qkv", parts[0]))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    y = F.linear(mixed @ matrices[0]["U_o"].T, originals[0]["proj.weight"], originals[0]["proj.bias"])
    return y @ matrices[0]["M_o"].T

# %% never ends | attention 0
def unfolded_attention(parts, originals, matrices, heads):
    while True:
        pass

# %% U of qkv is applied from the wrong side | fold_attention 0
def fold_attention(originals, matrices):
    folded = {}
    for o, m in zip(originals, matrices):
        M = torch.block_diag(m["M_q"], m["M_k"], m["M_v"])
        terms = {"qkv.weight": M @ o["qkv.weight"] @ m["U_qkv"].T, "qkv.bias": M @ o["qkv.bias"],
                 "proj.weight": m["M_o"] @ o["proj.weight"] @ m["U_o"], "proj.bias": m["M_o"] @ o["proj.bias"]}
        folded = {name: folded.get(name, 0) + term for name, term in terms.items()}
    return folded

# %% M and U swapped | fold_attention 0
def fold_attention(originals, matrices):
    folded = {}
    for o, m in zip(originals, matrices):
        M = torch.block_diag(m["M_q"], m["M_k"], m["M_v"])
        terms = {"qkv.weight": m["U_qkv"] @ o["qkv.weight"] @ M, "proj.weight": m["U_o"] @ o["proj.weight"] @ m["M_o"],
                 "qkv.bias": M @ o["qkv.bias"], "proj.bias": m["M_o"] @ o["proj.bias"]}
        folded = {name: folded.get(name, 0) + term for name, term in terms.items()}
    return folded

# %% the weights are transposed | fold_attention 0
def fold_attention(originals, matrices):
    folded = {}
    for o, m in zip(originals, matrices):
        M = torch.block_diag(m["M_q"], m["M_k"], m["M_v"])
        terms = {"qkv.weight": (M @ o["qkv.weight"] @ m["U_qkv"]).T, "proj.bias": m["M_o"] @ o["proj.bias"],
                 "proj.weight": (m["M_o"] @ o["proj.weight"] @ m["U_o"]).T}
        if "qkv.bias" in o:
            terms["qkv.bias"] = M @ o["qkv.bias"]
        folded = {name: folded.get(name, 0) + terms.get(name, 0) for name in folded | terms}
    return folded

# %% rows of q, then v, then k | fold_attention 0
def fold_attention(originals, matrices):
    folded = {}
    for o, m in zip(originals, matrices):
        terms = {"proj.weight": m["M_o"] @ o["proj.weight"] @ m["U_o"], "proj.bias": m["M_o"] @ o["proj.bias"]}
        for name in ("weight", "bias"):
            if f"qkv.{name}" in o:
                q, k, v = (m[f"M_{part}"] @ rows for part, rows in zip("qkv", o[f"qkv.{name}"].chunk(3)))
                terms[f"qkv.{name}"] = torch.cat([q, v, k])
        terms["qkv.weight"] = terms["qkv.weight"] @ m["U_qkv"]
        folded = {name: folded.get(name, 0) + terms.get(name, 0) for name in folded | terms}
    return folded

# %% rows of q, k and v take turns: axes mixed | fold_attention 0
def fold_attention(originals, matrices):
    folded = {}
    for o, m in zip(originals, matrices):
        terms = {"proj.weight": m["M_o"] @ o["proj.weight"] @ m["U_o"], "proj.bias": m["M_o"] @ o["proj.bias"]}
        for name in ("weight", "bias"):
            if f"qkv.{name}" in o:
                three = [m[f"M_{part}"] @ rows for part, rows in zip("qkv", o[f"qkv.{name}"].chunk(3))]
                terms[f"qkv.{name}"] = torch.stack(three, 1).flatten(0, 1)
        terms["qkv.weight"] = terms["qkv.weight"] @ m["U_qkv"]
        folded = {name: folded.get(name, 0) + terms.get(name, 0) for name in folded | terms}
    return folded

# %% the bias of proj is forgotten in the fold | fold_attention 0
def fold_attention(originals, matrices):
    folded = {}
    for o, m in zip(originals, matrices):
        M = torch.block_diag(m["M_q"], m["M_k"], m["M_v"])
        terms = {"qkv.weight": M @ o["qkv.weight"] @ m["U_qkv"], "proj.weight": m["M_o"] @ o["proj.weight"] @ m["U_o"],
                 "proj.bias": m["M_o"] @ torch.zeros_like(o["proj.bias"])}
        if "qkv.bias" in o:
            terms["qkv.bias"] = M @ o["qkv.bias"]
        folded = {name: folded.get(name, 0) + terms.get(name, 0) for name in folded | terms}
    return folded

# %% only original 1 is folded | fold_attention 1
def fold_attention(originals, matrices):
    o, m = originals[0], matrices[0]
    M = torch.block_diag(m["M_q"], m["M_k"], m["M_v"])
    folded = {"qkv.weight": M @ o["qkv.weight"] @ m["U_qkv"], "proj.weight": m["M_o"] @ o["proj.weight"] @ m["U_o"],
              "proj.bias": m["M_o"] @ o["proj.bias"]}
    if "qkv.bias" in o:
        folded["qkv.bias"] = M @ o["qkv.bias"]
    return folded

# %% every original must have a qkv bias | fold_attention 1
def fold_attention(originals, matrices):
    folded = {}
    for o, m in zip(originals, matrices):
        M = torch.block_diag(m["M_q"], m["M_k"], m["M_v"])
        terms = {"qkv.weight": M @ o["qkv.weight"] @ m["U_qkv"], "proj.weight": m["M_o"] @ o["proj.weight"] @ m["U_o"],
                 "qkv.bias": M @ o["qkv.bias"], "proj.bias": m["M_o"] @ o["proj.bias"]}
        folded = {name: folded.get(name, 0) + term for name, term in terms.items()}
    return folded

# %% no gradient reaches M and U | fold_attention 2
def fold_attention(originals, matrices):
    folded = {}
    for o, m in zip(originals, matrices):
        M = torch.block_diag(m["M_q"], m["M_k"], m["M_v"])
        terms = {"qkv.weight": M @ o["qkv.weight"] @ m["U_qkv"], "proj.weight": m["M_o"] @ o["proj.weight"] @ m["U_o"],
                 "proj.bias": m["M_o"] @ o["proj.bias"]}
        if "qkv.bias" in o:
            terms["qkv.bias"] = M @ o["qkv.bias"]
        folded = {name: folded.get(name, 0) + terms.get(name, 0) for name in folded | terms}
    return {name: p.detach() for name, p in folded.items()}

# %% the scale of the softmax is put into q too | fold_attention 0
def fold_attention(originals, matrices):
    folded = {}
    for o, m in zip(originals, matrices):
        M = torch.block_diag(m["M_q"] / len(m["M_q"]) ** 0.5, m["M_k"], m["M_v"])
        terms = {"qkv.weight": M @ o["qkv.weight"] @ m["U_qkv"], "proj.weight": m["M_o"] @ o["proj.weight"] @ m["U_o"],
                 "proj.bias": m["M_o"] @ o["proj.bias"]}
        if "qkv.bias" in o:
            terms["qkv.bias"] = M @ o["qkv.bias"]
        folded = {name: folded.get(name, 0) + terms.get(name, 0) for name in folded | terms}
    return folded

# %% raises an error | fold_attention 0
def fold_attention(originals, matrices):
    return {"qkv.weight": sum(m["M_qkv"] @ o["qkv.weight"] @ m["U_qkv"] for o, m in zip(originals, matrices))}

# %% the residual connection is forgotten | block 1
def unfolded_mlp_half(s, originals, matrices, norm):
    z = norm(s)
    for name in ("fc1", "fc2"):
        z = sum(F.linear(z @ m[f"U_{name}"].T, o[f"mlp.{name}.weight"], o[f"mlp.{name}.bias"]) @ m[f"M_{name}"].T
                for o, m in zip(originals, matrices))
        z = F.gelu(z) if name == "fc1" else z
    return z


def fold_block(originals, matrices, norms):
    folded = dict(norms)
    for o, m in zip(originals, matrices):
        m = m | {"M_qkv": torch.block_diag(m["M_q"], m["M_k"], m["M_v"])}
        for name, at in (("attn.qkv", "qkv"), ("attn.proj", "o"), ("mlp.fc1", "fc1"), ("mlp.fc2", "fc2")):
            M, w, b = m[f"M_{at}"], f"{name}.weight", f"{name}.bias"
            folded[w] = folded.get(w, 0) + M @ o[w] @ m[f"U_{at}"]
            if b in o:
                folded[b] = folded.get(b, 0) + M @ o[b]
    return folded

# %% a GELU for each original, merged afterwards | block 1
def unfolded_mlp_half(s, originals, matrices, norm):
    total = 0
    for o, m in zip(originals, matrices):
        hidden = F.gelu(F.linear(norm(s) @ m["U_fc1"].T, o["mlp.fc1.weight"], o["mlp.fc1.bias"]))
        z = hidden @ m["M_fc1"].T @ m["U_fc2"].T
        total = total + F.linear(z, o["mlp.fc2.weight"], o["mlp.fc2.bias"]) @ m["M_fc2"].T
    return s + total


def fold_block(originals, matrices, norms):
    folded = dict(norms)
    for o, m in zip(originals, matrices):
        m = m | {"M_qkv": torch.block_diag(m["M_q"], m["M_k"], m["M_v"])}
        for name, at in (("attn.qkv", "qkv"), ("attn.proj", "o"), ("mlp.fc1", "fc1"), ("mlp.fc2", "fc2")):
            M, w, b = m[f"M_{at}"], f"{name}.weight", f"{name}.bias"
            folded[w] = folded.get(w, 0) + M @ o[w] @ m[f"U_{at}"]
            if b in o:
                folded[b] = folded.get(b, 0) + M @ o[b]
    return folded

# %% the LayerNorms are folded into the weights and dropped | block 1
def unfolded_mlp_half(s, originals, matrices, norm):
    z = norm(s)
    for name in ("fc1", "fc2"):
        z = sum(F.linear(z @ m[f"U_{name}"].T, o[f"mlp.{name}.weight"], o[f"mlp.{name}.bias"]) @ m[f"M_{name}"].T
                for o, m in zip(originals, matrices))
        z = F.gelu(z) if name == "fc1" else z
    return s + z


def fold_block(originals, matrices, norms):
    folded = {}
    for o, m in zip(originals, matrices):
        m = m | {"M_qkv": torch.block_diag(m["M_q"], m["M_k"], m["M_v"])}
        for name, at in (("attn.qkv", "qkv"), ("attn.proj", "o"), ("mlp.fc1", "fc1"), ("mlp.fc2", "fc2")):
            M, w, b = m[f"M_{at}"], f"{name}.weight", f"{name}.bias"
            folded[w] = folded.get(w, 0) + M @ o[w] @ m[f"U_{at}"]
            if b in o:
                folded[b] = folded.get(b, 0) + M @ o[b]
    for name, norm in (("attn.qkv", "norm1"), ("mlp.fc1", "norm2")):
        W = folded[f"{name}.weight"]
        folded[f"{name}.bias"] = folded.get(f"{name}.bias", 0) + W @ norms[f"{norm}.bias"]
        folded[f"{name}.weight"] = W * norms[f"{norm}.weight"]
    return folded

# %% the LayerNorms are folded into the weights, and stay | block 1
def unfolded_mlp_half(s, originals, matrices, norm):
    z = norm(s)
    for name in ("fc1", "fc2"):
        z = sum(F.linear(z @ m[f"U_{name}"].T, o[f"mlp.{name}.weight"], o[f"mlp.{name}.bias"]) @ m[f"M_{name}"].T
                for o, m in zip(originals, matrices))
        z = F.gelu(z) if name == "fc1" else z
    return s + z


def fold_block(originals, matrices, norms):
    folded = dict(norms)
    for o, m in zip(originals, matrices):
        m = m | {"M_qkv": torch.block_diag(m["M_q"], m["M_k"], m["M_v"])}
        for name, at in (("attn.qkv", "qkv"), ("attn.proj", "o"), ("mlp.fc1", "fc1"), ("mlp.fc2", "fc2")):
            M, w, b = m[f"M_{at}"], f"{name}.weight", f"{name}.bias"
            folded[w] = folded.get(w, 0) + M @ o[w] @ m[f"U_{at}"]
            if b in o:
                folded[b] = folded.get(b, 0) + M @ o[b]
    for name, norm in (("attn.qkv", "norm1"), ("mlp.fc1", "norm2")):
        W = folded[f"{name}.weight"]
        if f"{name}.bias" in folded:
            folded[f"{name}.bias"] = folded[f"{name}.bias"] + W @ norms[f"{norm}.bias"]
        folded[f"{name}.weight"] = W * norms[f"{norm}.weight"]
    return folded

# %% the LayerNorms of original 1 instead of the merged model's, cut or filled up to its width | block 1
def unfolded_mlp_half(s, originals, matrices, norm):
    z = norm(s)
    for name in ("fc1", "fc2"):
        z = sum(F.linear(z @ m[f"U_{name}"].T, o[f"mlp.{name}.weight"], o[f"mlp.{name}.bias"]) @ m[f"M_{name}"].T
                for o, m in zip(originals, matrices))
        z = F.gelu(z) if name == "fc1" else z
    return s + z


def fold_block(originals, matrices, norms):
    folded = {}
    for name, p in norms.items():
        folded[name] = torch.ones_like(p)
        length = min(len(p), len(originals[0][name]))
        folded[name][:length] = originals[0][name][:length]
    for o, m in zip(originals, matrices):
        m = m | {"M_qkv": torch.block_diag(m["M_q"], m["M_k"], m["M_v"])}
        for name, at in (("attn.qkv", "qkv"), ("attn.proj", "o"), ("mlp.fc1", "fc1"), ("mlp.fc2", "fc2")):
            M, w, b = m[f"M_{at}"], f"{name}.weight", f"{name}.bias"
            folded[w] = folded.get(w, 0) + M @ o[w] @ m[f"U_{at}"]
            if b in o:
                folded[b] = folded.get(b, 0) + M @ o[b]
    return folded

# %% M before GELU and U after it are multiplied into one | block 1
def unfolded_mlp_half(s, originals, matrices, norm):
    total = 0
    for o, m in zip(originals, matrices):
        z = 0
        for other, n in zip(originals, matrices):
            hidden = F.gelu(F.linear(norm(s) @ n["U_fc1"].T, other["mlp.fc1.weight"], other["mlp.fc1.bias"]))
            z = z + hidden @ (m["U_fc2"] @ n["M_fc1"]).T
        total = total + F.linear(z, o["mlp.fc2.weight"], o["mlp.fc2.bias"]) @ m["M_fc2"].T
    return s + total


def fold_block(originals, matrices, norms):
    folded = dict(norms)
    for o, m in zip(originals, matrices):
        m = m | {"M_qkv": torch.block_diag(m["M_q"], m["M_k"], m["M_v"])}
        for name, at in (("attn.qkv", "qkv"), ("attn.proj", "o"), ("mlp.fc1", "fc1"), ("mlp.fc2", "fc2")):
            M, w, b = m[f"M_{at}"], f"{name}.weight", f"{name}.bias"
            folded[w] = folded.get(w, 0) + M @ o[w] @ m[f"U_{at}"]
            if b in o:
                folded[b] = folded.get(b, 0) + M @ o[b]
    return folded

# %% both work for two originals with a qkv bias only | block 1
def unfolded_mlp_half(s, originals, matrices, norm):
    z = norm(s)
    for name in ("fc1", "fc2"):
        z = sum(F.linear(z @ m[f"U_{name}"].T, o[f"mlp.{name}.weight"], o[f"mlp.{name}.bias"]) @ m[f"M_{name}"].T
                for o, m in zip(originals[:2], matrices[:2]))
        z = F.gelu(z) if name == "fc1" else z
    return s + z


def fold_block(originals, matrices, norms):
    folded = dict(norms)
    for o, m in zip(originals[:2], matrices[:2]):
        m = m | {"M_qkv": torch.block_diag(m["M_q"], m["M_k"], m["M_v"])}
        for name, at in (("attn.qkv", "qkv"), ("attn.proj", "o"), ("mlp.fc1", "fc1"), ("mlp.fc2", "fc2")):
            for each in (f"{name}.weight", f"{name}.bias"):
                term = m[f"M_{at}"] @ o[each]
                folded[each] = folded.get(each, 0) + (term @ m[f"U_{at}"] if term.dim() == 2 else term)
    return folded

# %% one M for q, k and v, three U counted | count 0.5
meet_in_scores = pairs.index(("M_q", "M_k")) + 1
meet_after_values = pairs.index(("M_v", "U_o")) + 1
matrices_in_block = k * (4 + 4)
numbers_in_block = 4 * merged_d * sum(d) + 2 * merged_a * sum(a) + 2 * merged_h * sum(h)
extra_numbers = 3 * merged_d * sum(d)

# %% the formula for attention as wide as the stream | count 0.5
meet_in_scores = pairs.index(("M_q", "M_k")) + 1
meet_after_values = pairs.index(("M_v", "U_o")) + 1
matrices_in_block = k * 10
numbers_in_block = sum(8 * each * merged_d for each in d) + 2 * merged_h * sum(h)
extra_numbers = 2 * merged_d * sum(d)

# %% across GELU and across the softmax | count 0.5
meet_in_scores = pairs.index(("M_k", "U_o")) + 1
meet_after_values = pairs.index(("M_fc1", "U_fc2")) + 1
matrices_in_block = k * 10
numbers_in_block = 4 * merged_d * sum(d) + 4 * merged_a * sum(a) + 2 * merged_h * sum(h)
extra_numbers = 2 * merged_d * sum(d)

# %% words instead of numbers | count 0
meet_in_scores = "M_q and M_k"
meet_after_values = "M_v and U_o"
matrices_in_block = "ten for each original"
numbers_in_block = None
extra_numbers = None
