# %% [raw]
# # ASSIGNMENT CONFIG
# name: 3_attention_block
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
# # Assignment 3: the SuperNet's attention block, unfolded and folded
#
# **Aim.** You run the attention block of a SuperNet with all its $M$ and $U$, and you fold it into one plain timm
# block.
#
# **Time:** about 100 minutes. **Points:** 12. **Before it:** lessons 04 (the SuperNet of a ViT) and 10 (folding).
#
# **Given** are the frozen layers of $k$ originals and the matrices $M$ and $U$ around them. A merged layer computes
#
# $$y^* = \sum_{i=1}^{k} M_i\,(W_i\,U_i\,x^* + b_i).$$
#
# **You may use** torch, timm and Python. **Do not use** `fsmerge_lite` in your answers, except where a cell here
# imports it.
#
# Each question has tests that you can run here. They choose the originals and the matrices so that timm's own modules
# know the right result. When your work is graded, more tests run: with random matrices, other sizes, another number
# type and other numbers of originals. They also ask for gradients, which must reach all $M$ and $U$.
#
# Each question is graded by itself. Do not call in one question a function that you wrote for another one: a mistake
# would cost points twice.

# %%
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention

from fsmerge_lite.course.grading import Variant

CLASS = 2026
variant = Variant(CLASS)

# %% [markdown]
# ## The layers and the matrices
#
# An original is given as a dictionary, the state dict of its timm module. A matrix acts from the left on columns.
# Features are $(B, N, \text{channels})$: pictures, tokens, channels. **The width of attention** is the number of
# channels of all heads together: $a_i$ in original $i$, $a^*$ in the merged model. It may differ from the width of
# the stream, $d_i$ and $d^*$.
#
# | in original $i$ | shape | |
# |---|---|---|
# | `"qkv.weight"` | $(3 a_i, d_i)$ | the rows of q, then of k, then of v |
# | `"qkv.bias"` | $(3 a_i)$ | **may be missing** |
# | `"proj.weight"`, `"proj.bias"` | $(d_i, a_i)$, $(d_i)$ | |
#
# For each original there is a dictionary with its matrices:
#
# | name | symbol | shape | where |
# |---|---|---|---|
# | `"U_qkv"` | $U^{qkv}_i$ | $(d_i, d^*)$ | before qkv |
# | `"M_q"`, `"M_k"`, `"M_v"` | $M^q_i, M^k_i, M^v_i$ | $(a^*, a_i)$ | after q, k and v |
# | `"U_o"` | $U^o_i$ | $(a_i, a^*)$ | before proj |
# | `"M_o"` | $M^o_i$ | $(d^*, d_i)$ | after proj |
#
# Here are two originals to try things with:

# %%
def random_state(module, generator):
    """The state dict of a timm module, filled with random numbers."""
    return {name: torch.randn(p.shape, generator=generator) for name, p in module.state_dict().items()}


g = variant.generator("example")
sizes = [(12, 2, 6), (8, 2, 5)]     # of each original: width of the stream, heads, channels of a head
modules = [Attention(width, heads, attn_head_dim=size, qkv_bias=True) for width, heads, size in sizes]
originals = [random_state(module, g) for module in modules]
for i, original in enumerate(originals, 1):
    print(f"original {i}:", {name: tuple(p.shape) for name, p in original.items()})

# %% [raw]
# # BEGIN QUESTION
# name: qkv
# points: 3

# %% [markdown]
# ## Question 1: the qkv layer, unfolded (3 points)
#
# Write two functions.
#
# `first_start` makes the matrices around qkv at the start *first*: a list with one dictionary for each original. All
# $M$ of original 1 are $I$, all $M$ of the others are 0, all $U$ are $I$. `dim` is $d^*$ and `attn_dim` is $a^*$. A
# matrix $I$ that is not square has ones on its diagonal and zeros elsewhere. The matrices have the number type
# (dtype) of the weights. Make only the matrices around qkv.
#
# `unfolded_qkv` runs the layer on `x` $(B, N, d^*)$, the normalized stream. It returns three things: the merged q, k
# and v, each $(B, N, a^*)$.

# %% [raw]
# # BEGIN SOLUTION

# %%
def first_start(originals, dim, attn_dim):
    """The matrices around qkv: a list of dictionaries."""
    # BEGIN SOLUTION
    matrices = []
    for i, original in enumerate(originals):
        weight = original["qkv.weight"]
        merge = torch.eye(attn_dim, len(weight) // 3, dtype=weight.dtype) * (i == 0)
        matrices.append({f"M_{part}": merge.clone() for part in "qkv"})
        matrices[i]["U_qkv"] = torch.eye(weight.shape[1], dim, dtype=weight.dtype)
    return matrices
    # END SOLUTION


def unfolded_qkv(x, originals, matrices):
    """q, k and v of the merged model."""
    # BEGIN SOLUTION
    merged = {"M_q": 0, "M_k": 0, "M_v": 0}
    for original, own in zip(originals, matrices):
        layer_output = F.linear(x @ own["U_qkv"].T, original["qkv.weight"], original.get("qkv.bias"))
        for name, part in zip(merged, layer_output.chunk(3, dim=-1)):
            merged[name] = merged[name] + part @ own[name].T
    return tuple(merged.values())
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 0.5
""" # END TEST CONFIG
def test_start_of_two_originals_of_one_size(first_start, variant):
    import torch

    from fsmerge_lite.course.grading import call, same
    d = variant.pick("width at the start", (6, 9, 12))
    originals = [{"qkv.weight": torch.ones(3 * d, d), "qkv.bias": torch.ones(3 * d),
                  "proj.weight": torch.ones(d, d), "proj.bias": torch.ones(d)} for _ in range(2)]
    start = call(first_start, originals, d, d)
    assert isinstance(start, list) and len(start) == 2, "first_start returns a list with a dictionary for each original"
    for i, own in enumerate(start, 1):
        assert isinstance(own, dict), "each entry of the list is a dictionary: name of a matrix -> matrix"
        unknown = sorted(map(str, set(own) - {"U_qkv", "M_q", "M_k", "M_v"}))
        assert not unknown, f"{', '.join(unknown)}: qkv has no such matrix. The table above has all names"
        assert len(own) == 4, "a matrix around qkv is missing. The table above has all names"
        for name, matrix in own.items():
            what = f"{name} of original {i}"
            same(matrix, torch.eye(d) if i == 1 or name[0] == "U" else torch.zeros(d, d), what)

# %%
""" # BEGIN TEST CONFIG
points: 0.5
""" # END TEST CONFIG
def test_two_originals_side_by_side(unfolded_qkv, variant):
    import torch
    from timm.models.vision_transformer import Attention

    from fsmerge_lite.course.grading import call, same
    for seed in range(3):
        g = variant.generator(f"qkv {seed}")
        def draw(*shape, g=g):
            return torch.randn(*shape, generator=g, dtype=torch.float64)
        sizes = [(variant.pick("d1", (4, 5)), 2, 3), (3, 1, variant.pick("a2", (4, 5)))]  # stream, heads, size
        modules = [Attention(d, h, attn_head_dim=n, qkv_bias=True).double() for d, h, n in sizes]
        for module in modules:
            module.load_state_dict({name: draw(*p.shape) for name, p in module.state_dict().items()})
        xs = [draw(2, 4, d) for d, _, _ in sizes]
        total, width = sum(d for d, _, _ in sizes), sum(h * n for _, h, n in sizes)
        mix, mixes = draw(total, total), draw(3, width + 1, width)
        reads = torch.linalg.inv(mix).split([d for d, _, _ in sizes])
        parts = [three.split([h * n for _, h, n in sizes], 1) for three in mixes]
        matrices = [{"U_qkv": reads[i], "M_q": parts[0][i], "M_k": parts[1][i], "M_v": parts[2][i]} for i in range(2)]
        x = torch.cat(xs, -1) @ mix.T
        def merged(order=(0, 1, 2), keep=1.0, xs=xs, modules=modules, mixes=mixes):
            outputs = [module.qkv(x) + (keep - 1) * module.qkv.bias for module, x in zip(modules, xs)]
            three = [torch.cat([y.chunk(3, -1)[part] for y in outputs], -1) for part in order]
            return tuple(y @ mix.T for y, mix in zip(three, mixes))
        found = call(unfolded_qkv, x, [dict(module.state_dict()) for module in modules], matrices)
        assert isinstance(found, tuple | list) and len(found) == 3, "unfolded_qkv returns three things: q, k and v"
        same(tuple(found), merged(), "unfolded_qkv", {
            "unfolded_qkv is right but for the biases of the originals": merged(keep=0.0),
            "unfolded_qkv takes the rows of v for those of k, and those of k for v": merged((0, 2, 1)),
            "unfolded_qkv returns q, v, k: the order must be q, k, v": tuple(merged()[n] for n in (0, 2, 1))})

# %%
""" # BEGIN TEST CONFIG
points: 0.5
hidden: true
""" # END TEST CONFIG
def test_start_of_three_originals_of_other_sizes(first_start):
    import torch

    from fsmerge_lite.course.grading import call, same, shaped
    widths = [(5, 4), (7, 9), (3, 6)]  # d_i, a_i
    originals = [{"qkv.weight": torch.ones(3 * a, d, dtype=torch.float64)} for d, a in widths]
    start = call(first_start, originals, 6, 8)
    names = {"U_qkv", "M_q", "M_k", "M_v"}
    assert len(start) == 3 and all(set(own) == names for own in start), "the matrices are not those around qkv"
    for i, (own, (d, a)) in enumerate(zip(start, widths)):
        for name, matrix in own.items():
            rows, columns = (d, 6) if name == "U_qkv" else (8, a)
            shaped(matrix, (rows, columns), name)
            entries = torch.zeros(rows, columns, dtype=torch.float64)
            for n in range(min(rows, columns)):
                entries[n, n] = float(name == "U_qkv" or i == 0)
            same(matrix, entries, name)

# %%
""" # BEGIN TEST CONFIG
points: 1
hidden: true
""" # END TEST CONFIG
def test_three_originals_token_by_token(unfolded_qkv, variant):
    import torch

    from fsmerge_lite.course.grading import call, same
    g = variant.generator("hidden qkv")
    widths = [(5, 4), (7, 9), (3, 6)]  # d_i, a_i
    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        originals = [{"qkv.weight": draw(3 * a, d).to(dtype), "qkv.bias": draw(3 * a).to(dtype)} for d, a in widths]
        del originals[1]["qkv.bias"]
        matrices = [{"U_qkv": draw(d, 6), **{f"M_{part}": draw(8, a) for part in "qkv"}} for d, a in widths]
        matrices = [{name: matrix.to(dtype) for name, matrix in own.items()} for own in matrices]
        x = draw(2, 4, 6).to(dtype)
        expected = torch.zeros(3, 2, 4, 8, dtype=dtype)
        for picture in range(2):
            for token in range(4):
                for original, own, (_, a) in zip(originals, matrices, widths):
                    read = own["U_qkv"] @ x[picture, token]
                    for n, part in enumerate("qkv"):
                        rows = slice(n * a, (n + 1) * a)
                        out = original["qkv.weight"][rows] @ read
                        out = out + original["qkv.bias"][rows] if "qkv.bias" in original else out
                        expected[n, picture, token] += own[f"M_{part}"] @ out
        same(tuple(call(unfolded_qkv, x, originals, matrices)), tuple(expected), "unfolded_qkv")

# %%
""" # BEGIN TEST CONFIG
points: 0.5
hidden: true
""" # END TEST CONFIG
def test_gradients_without_biases(unfolded_qkv, variant):
    import torch

    from fsmerge_lite.course.grading import call, same
    g = variant.generator("qkv gradients")
    widths = [(5, 4), (3, 6)]
    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)
    originals = [{"qkv.weight": draw(3 * a, d)} for d, a in widths]
    matrices = [{"U_qkv": draw(d, 6), **{f"M_{part}": draw(8, a) for part in "qkv"}} for d, a in widths]
    leaves = [matrix.requires_grad_() for own in matrices for matrix in own.values()]
    x, goals = draw(2, 4, 6), draw(3, 2, 4, 8)
    found = torch.stack(tuple(call(unfolded_qkv, x, originals, matrices)))
    assert found.requires_grad, "no gradient reaches M and U"
    gradients = torch.autograd.grad((found * goals).sum(), leaves, allow_unused=True)
    assert all(gradient is not None for gradient in gradients), "no gradient reaches one of the matrices"
    expected = []
    for original, own in zip(originals, matrices):
        W, read = original["qkv.weight"].chunk(3), x @ own["U_qkv"].T.detach()
        back = [goals[n] @ own[f"M_{part}"].detach() for n, part in enumerate("qkv")]
        expected.append(sum(torch.einsum("bto, od, bte -> de", back[n], W[n], x) for n in range(3)))
        expected += [torch.einsum("bto, bti -> oi", goals[n], read @ W[n].T) for n in range(3)]
    same(gradients, tuple(expected), "the gradient")

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: attention
# points: 3

# %% [markdown]
# ## Question 2: attention, unfolded (3 points)
#
# Write `unfolded_attention`. It goes on where the frozen qkv layers end, and returns what attention adds to the
# stream, $(B, N, d^*)$:
#
# 1. The merged q, k and v come from the originals' own ones through $M^q_i$, $M^k_i$ and $M^v_i$.
# 2. The merged model's attention runs on them. As in timm, a head owns neighboring channels: the first
#    $a^* / \text{heads}$ channels are head 1. The scores are divided by the square root of the number of channels of
#    a head.
# 3. $U^o_i$, the frozen proj layer and $M^o_i$ follow.
#
# The arguments:
#
# - `parts`: a list with a tuple `(q_i, k_i, v_i)` for each original, each $(B, N, a_i)$: the output of its frozen qkv
# - `originals`, `matrices`: as above; only `"proj.weight"`, `"proj.bias"` and the matrices are needed
# - `heads`: the number of heads of the merged model. The originals' own numbers of heads are not given

# %% [raw]
# # BEGIN SOLUTION

# %%
def unfolded_attention(parts, originals, matrices, heads):
    """What attention adds to the merged stream."""
    # BEGIN SOLUTION
    def merged_heads(part):
        merged = sum(each[part] @ own["M_" + "qkv"[part]].T for each, own in zip(parts, matrices))
        return merged.unflatten(-1, (heads, -1)).transpose(1, 2)
    q, k, v = map(merged_heads, range(3))                                           # (B, heads, N, channels)
    pattern = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
    mixed = (pattern @ v).transpose(1, 2).flatten(2)                                # (B, N, a*)
    return sum(F.linear(mixed @ own["U_o"].T, original["proj.weight"], original["proj.bias"]) @ own["M_o"].T
               for original, own in zip(originals, matrices))
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 1
""" # END TEST CONFIG
def test_two_originals_that_are_pieces_of_one_model(unfolded_attention, variant):
    import copy

    import torch
    from timm.models.vision_transformer import Attention

    from fsmerge_lite.course.grading import call, same, shaped
    dim, heads, n = 6, 3, variant.pick("channels of a head", (2, 3))
    width = heads * n
    for seed in range(3):
        g = variant.generator(f"attention {seed}")
        def draw(*shape, g=g):
            return torch.randn(*shape, generator=g, dtype=torch.float64)
        whole = Attention(dim, heads, attn_head_dim=n, qkv_bias=True).double()
        whole.load_state_dict({name: draw(*p.shape) / 2 for name, p in whole.state_dict().items()})
        x, inverse = draw(2, 4, dim), torch.linalg.pinv
        def halves(tensor, draw=draw):  # two random ones with this sum
            first = draw(*tensor.shape)
            return first, tensor.detach() - first
        three = zip(*map(halves, whole.qkv(x).chunk(3, -1)))
        parts, originals, matrices = [], [], []
        for own_parts, weight, bias, extra in zip(three, halves(whole.proj.weight), halves(whole.proj.bias), (1, 2)):
            d, a = dim + extra, heads * (n + extra)
            own = {f"M_{part}": draw(width, a) for part in "qkv"} | {"U_o": draw(a, width), "M_o": draw(dim, d)}
            parts.append(tuple(z @ inverse(own[f"M_{part}"]).T for z, part in zip(own_parts, "qkv")))
            originals.append({"proj.weight": inverse(own["M_o"]) @ weight @ inverse(own["U_o"]),
                              "proj.bias": inverse(own["M_o"]) @ bias})
            matrices.append(own)
        def scaled(factor, whole=whole, x=x):
            wrong = copy.deepcopy(whole)
            for p in wrong.qkv.parameters():
                p.data[:width] *= factor
            return wrong(x)
        found = call(unfolded_attention, parts, originals, matrices, heads)
        shaped(found, (2, 4, dim), "the result of unfolded_attention")
        same(found, whole(x), "unfolded_attention", {
            "unfolded_attention does not divide the scores": scaled(n ** 0.5),
            "unfolded_attention divides the scores by n, not by its square root": scaled(n ** -0.5),
            "unfolded_attention divides the scores by the wrong number: the heads are the merged model's":
                scaled((n / (n + 1)) ** 0.5),
            "unfolded_attention is right but for the bias of proj": whole(x) - whole.proj.bias})

# %%
""" # BEGIN TEST CONFIG
points: 1
hidden: true
""" # END TEST CONFIG
def test_one_original_comes_back(unfolded_attention, variant):
    import torch
    from timm.models.vision_transformer import Attention

    from fsmerge_lite.course.grading import call, same
    for seed, (d, heads, n) in enumerate(((7, 3, 2), (6, 2, 5))):
        g = variant.generator(f"one original {seed}")
        def draw(*shape, g=g):
            return torch.randn(*shape, generator=g, dtype=torch.float64)
        module = Attention(d, heads, attn_head_dim=n).double()
        module.load_state_dict({name: draw(*p.shape) / 2 for name, p in module.state_dict().items()})
        Q, V = (torch.block_diag(*draw(heads, n, n)) for _ in range(2))
        S = draw(d, d)
        own = {"M_q": Q, "M_k": torch.linalg.inv(Q).T, "M_v": V, "U_o": torch.linalg.inv(V), "M_o": S}
        x = draw(3, 5, d)
        parts = [tuple(module.qkv(x).chunk(3, -1))]
        found = call(unfolded_attention, parts, [dict(module.state_dict())], [own], heads)
        same(found, module(x) @ S.T, "unfolded_attention")

# %%
""" # BEGIN TEST CONFIG
points: 1
hidden: true
""" # END TEST CONFIG
def test_three_originals_token_by_token_and_head_by_head(unfolded_attention, variant):
    import torch

    from fsmerge_lite.course.grading import call, same
    g = variant.generator("hidden attention")
    widths, dim, heads, n = [(5, 6), (7, 8), (3, 4)], 6, 2, 5  # d_i, a_i
    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64) / 2
    originals = [{"proj.weight": draw(d, a), "proj.bias": draw(d)} for d, a in widths]
    matrices = [{"U_o": draw(a, heads * n), "M_o": draw(dim, d), **{f"M_{part}": draw(heads * n, a) for part in "qkv"}}
                for d, a in widths]
    leaves = [matrix.requires_grad_() for own in matrices for matrix in own.values()]
    parts = [tuple(draw(2, 4, a) for _ in range(3)) for _, a in widths]
    rows = []
    for picture in range(2):
        q, k, v = ([sum(own[f"M_{part}"] @ three[m][picture, token] for own, three in zip(matrices, parts))
                    for token in range(4)] for m, part in enumerate("qkv"))
        for token in range(4):
            mixed = []
            for head in range(heads):
                channels = range(head * n, (head + 1) * n)
                scores = [sum(q[token][c] * k[other][c] for c in channels) / n ** 0.5 for other in range(4)]
                powers = [score.exp() for score in scores]
                mixed += [sum(powers[other] * v[other][c] for other in range(4)) / sum(powers) for c in channels]
            mixed = torch.stack(mixed)
            rows.append(sum(own["M_o"] @ (original["proj.weight"] @ (own["U_o"] @ mixed) + original["proj.bias"])
                            for original, own in zip(originals, matrices)))
    expected, goals = torch.stack(rows).reshape(2, 4, dim), draw(2, 4, dim)
    found = call(unfolded_attention, parts, originals, matrices, heads)
    same(found, expected.detach(), "unfolded_attention")
    assert found.requires_grad, "no gradient reaches M and U"
    gradients = [torch.autograd.grad((y * goals).sum(), leaves, allow_unused=True) for y in (found, expected)]
    same(gradients[0], gradients[1], "the gradient")

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: fold_attention
# points: 3

# %% [markdown]
# ## Question 3: fold it into a plain timm Attention (3 points)
#
# Write `fold_attention`. It returns a dictionary with `"qkv.weight"`, `"qkv.bias"`, `"proj.weight"` and `"proj.bias"`
# of one plain `Attention` of timm, which computes the same as the unfolded layers: its qkv layer reads the normalized
# merged stream, and its proj layer writes what attention adds to it.
#
# - The dictionary must load with `load_state_dict`, which is strict: no name too few, none too many.
# - If no original has a bias in its qkv, the folded layer has none: leave `"qkv.bias"` out. If some have one and
#   others do not, those without one add nothing to it.
# - The fold is also a step of the training. So do not cut off the gradients of $M$ and $U$.

# %% [raw]
# # BEGIN SOLUTION

# %%
def fold_attention(originals, matrices):
    """The weights and biases of one plain timm Attention."""
    # BEGIN SOLUTION
    folded = {}
    for original, own in zip(originals, matrices):
        M, U = torch.block_diag(own["M_q"], own["M_k"], own["M_v"]), own["U_qkv"]
        terms = {"qkv.weight": M @ original["qkv.weight"] @ U,
                 "proj.weight": own["M_o"] @ original["proj.weight"] @ own["U_o"],
                 "proj.bias": own["M_o"] @ original["proj.bias"]}
        if "qkv.bias" in original:
            terms["qkv.bias"] = M @ original["qkv.bias"]
        folded = {name: folded.get(name, 0) + terms.get(name, 0) for name in folded | terms}
    return folded
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 1
""" # END TEST CONFIG
def test_two_originals_side_by_side(fold_attention, variant):
    import torch
    from timm.models.vision_transformer import Attention

    from fsmerge_lite.course.grading import call, same, shaped
    sizes, heads, n = [(5, 2, 3), (4, 1, 2)], 3, variant.pick("channels of a folded head", (4, 5))
    for seed in range(3):
        g = variant.generator(f"fold {seed}")
        def draw(*shape, g=g):
            return torch.randn(*shape, generator=g, dtype=torch.float64)
        modules = [Attention(d, h, attn_head_dim=s, qkv_bias=True).double() for d, h, s in sizes]
        for module in modules:
            module.load_state_dict({name: draw(*p.shape) / 2 for name, p in module.state_dict().items()})
        xs, stream = [draw(2, 4, d) for d, _, _ in sizes], draw(9, 9)
        reads, writes = (part.split([d for d, _, _ in sizes], dim)
                         for dim, part in enumerate((torch.linalg.inv(stream), stream)))
        matrices, place = [], 0
        for (_, h, s), read, write in zip(sizes, reads, writes):
            own = {"U_qkv": read, "M_o": write, "U_o": torch.zeros(h * s, heads * n, dtype=torch.float64)}
            own.update({f"M_{part}": torch.zeros(heads * n, h * s, dtype=torch.float64) for part in "qkv"})
            for head in range(h):
                a, b = slice(place * n, (place + 1) * n), slice(head * s, (head + 1) * s)
                own["M_q"][a, b], own["M_v"][a, b] = draw(n, s), draw(n, s)
                own["M_k"][a, b] = torch.linalg.pinv(own["M_q"][a, b]).T * (n / s) ** 0.5
                own["U_o"][b, a] = torch.linalg.pinv(own["M_v"][a, b])
                place += 1
            matrices.append(own)
        folded = call(fold_attention, [dict(module.state_dict()) for module in modules], matrices)
        assert isinstance(folded, dict), "fold_attention returns a dictionary: name -> weight or bias"
        plain = Attention(9, heads, attn_head_dim=n, qkv_bias=True).double()
        names = set(plain.state_dict())
        assert set(folded) == names, f"the dictionary must have the names {', '.join(sorted(names))}, and no others"
        for name, p in plain.state_dict().items():
            shaped(folded[name], p.shape, name)
        plain.load_state_dict(folded)
        right = torch.cat([module(x) for module, x in zip(modules, xs)], -1) @ stream.T
        found, bias = plain(torch.cat(xs, -1) @ stream.T), torch.cat([module.proj.bias for module in modules])
        same(found, right, "the output of the folded Attention", {
            "the folded Attention is right but for the bias of proj": right - stream @ bias})

# %%
""" # BEGIN TEST CONFIG
points: 1
hidden: true
""" # END TEST CONFIG
def test_one_original_without_a_qkv_bias_comes_back(fold_attention, variant):
    import torch
    from timm.models.vision_transformer import Attention

    from fsmerge_lite.course.grading import call, same
    for seed, (d, heads, n) in enumerate(((7, 3, 2), (6, 2, 5))):
        g = variant.generator(f"one original folded {seed}")
        def draw(*shape, g=g):
            return torch.randn(*shape, generator=g, dtype=torch.float64)
        original, plain = (Attention(d, heads, attn_head_dim=n).double() for _ in range(2))
        original.load_state_dict({name: draw(*p.shape) / 2 for name, p in original.state_dict().items()})
        Q, V = (torch.block_diag(*draw(heads, n, n)) for _ in range(2))
        S = draw(d, d)
        own = {"U_qkv": torch.linalg.inv(S), "M_q": Q, "M_k": torch.linalg.inv(Q).T, "M_v": V,
               "U_o": torch.linalg.inv(V), "M_o": S}
        folded = call(fold_attention, [dict(original.state_dict())], [own])
        assert set(folded) == set(plain.state_dict()), "no original has a qkv bias, so the fold has none"
        plain.load_state_dict(folded)
        x = draw(3, 5, d)
        same(plain(x @ S.T), original(x) @ S.T, "the output of the folded Attention")

# %%
""" # BEGIN TEST CONFIG
points: 1
hidden: true
""" # END TEST CONFIG
def test_three_originals_and_gradients(fold_attention, variant):
    import torch
    import torch.nn.functional as F
    from timm.models.vision_transformer import Attention

    from fsmerge_lite.course.grading import call, same
    g = variant.generator("hidden fold")
    widths, dim, heads, n = [(5, 6), (7, 8), (3, 4)], 6, 2, 5  # d_i, a_i
    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64) / 2
    originals = [{"qkv.weight": draw(3 * a, d), "qkv.bias": draw(3 * a), "proj.weight": draw(d, a),
                  "proj.bias": draw(d)} for d, a in widths]
    del originals[0]["qkv.bias"]
    matrices = [{"U_qkv": draw(d, dim), "U_o": draw(a, heads * n), "M_o": draw(dim, d),
                 **{f"M_{part}": draw(heads * n, a) for part in "qkv"}} for d, a in widths]
    leaves = [matrix.requires_grad_() for own in matrices for matrix in own.values()]
    x, goals = draw(2, 4, dim), draw(2, 4, dim)
    merged = torch.zeros(3, 2, 4, heads * n, dtype=torch.float64)
    for original, own in zip(originals, matrices):
        three = F.linear(F.linear(x, own["U_qkv"]), original["qkv.weight"], original.get("qkv.bias")).chunk(3, -1)
        merged = merged + torch.stack([F.linear(three[m], own[f"M_{part}"]) for m, part in enumerate("qkv")])
    outputs = []
    for head in range(heads):
        q, k, v = merged[..., head * n:(head + 1) * n]
        powers = torch.einsum("btc, bsc -> bts", q, k).div(n ** 0.5).exp()
        outputs.append(torch.einsum("bts, bsc -> btc", powers / powers.sum(-1, keepdim=True), v))
    mixed = torch.cat(outputs, -1)
    expected = 0
    for original, own in zip(originals, matrices):
        written = F.linear(F.linear(mixed, own["U_o"]), original["proj.weight"], original["proj.bias"])
        expected = expected + F.linear(written, own["M_o"])
    plain = Attention(dim, heads, attn_head_dim=n, qkv_bias=True).double()
    folded = call(fold_attention, originals, matrices)
    found = torch.func.functional_call(plain, folded, x, strict=True)
    same(found, expected.detach(), "the output of the folded Attention")
    assert found.requires_grad, "no gradient reaches M and U"
    gradients = [torch.autograd.grad((y * goals).sum(), leaves, allow_unused=True) for y in (found, expected)]
    same(gradients[0], gradients[1], "the gradient")

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: block
# points: 2

# %% [markdown]
# ## Question 4: a whole block (2 points)
#
# Now an original is the state dict of a whole timm `Block`. So its names have `attn.` or `mlp.` in front:
# `"attn.qkv.weight"`, `"mlp.fc1.weight"` $(h_i, d_i)$, `"mlp.fc2.weight"` $(d_i, h_i)$ and so on, with their biases.
# Here all heads together are as wide as the stream: $a_i = d_i$ and $a^* = d^*$. The matrices around the MLP have the
# names
#
# - `"U_fc1"` $(d_i, d^*)$ and `"M_fc1"` $(h^*, h_i)$
# - `"U_fc2"` $(h_i, h^*)$ and `"M_fc2"` $(d^*, d_i)$
#
# Write two functions.
#
# `unfolded_mlp_half` takes the merged stream `s` $(B, N, d^*)$ and returns the stream after the MLP half of the
# block: norm, fc1, GELU, fc2, and what a residual connection does. `norm` is the merged model's own `norm2`, a
# module.
#
# `fold_block` returns the state dict of one plain timm `Block`. `norms` is a dictionary with the merged model's own
# `"norm1.weight"`, `"norm1.bias"`, `"norm2.weight"` and `"norm2.bias"`. The LayerNorms of the originals are not used.
# As before, the dictionary must load strictly, and the qkv bias of an original may be missing.

# %% [raw]
# # BEGIN SOLUTION

# %%
def unfolded_mlp_half(s, originals, matrices, norm):
    """The merged stream after the MLP half of the block."""
    # BEGIN SOLUTION
    def layer(x, name):
        return sum((x @ own[f"U_{name}"].T @ original[f"mlp.{name}.weight"].T + original[f"mlp.{name}.bias"])
                   @ own[f"M_{name}"].T for original, own in zip(originals, matrices))
    return s + layer(F.gelu(layer(norm(s), "fc1")), "fc2")
    # END SOLUTION


def fold_block(originals, matrices, norms):
    """The state dict of one plain timm Block."""
    # BEGIN SOLUTION
    places = {"attn.qkv": "qkv", "attn.proj": "o", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
    folded = dict(norms)
    for original, own in zip(originals, matrices):
        own = own | {"M_qkv": torch.block_diag(own["M_q"], own["M_k"], own["M_v"])}
        for layer, place in places.items():
            weight, bias = f"{layer}.weight", f"{layer}.bias"
            folded[weight] = folded.get(weight, 0) + own[f"M_{place}"] @ original[weight] @ own[f"U_{place}"]
            if bias in original:
                folded[bias] = folded.get(bias, 0) + own[f"M_{place}"] @ original[bias]
    return folded
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 0.5
""" # END TEST CONFIG
def test_the_mlp_half_of_two_originals_side_by_side(unfolded_mlp_half, variant):
    import torch
    from timm.models.vision_transformer import Block

    from fsmerge_lite.course.grading import call, same, shaped
    dims, dim, wide = (4, 6), variant.pick("width of the block", (11, 12)), 24
    for seed in range(3):
        g = variant.generator(f"mlp {seed}")
        def draw(*shape, g=g):
            return torch.randn(*shape, generator=g, dtype=torch.float64)
        blocks = [Block(d, 2, mlp_ratio=2).double() for d in dims]
        for block in blocks:
            block.load_state_dict({name: draw(*p.shape) / 2 for name, p in block.state_dict().items()})
        norm = torch.nn.LayerNorm(dim).double()
        norm.load_state_dict({"weight": draw(dim), "bias": draw(dim)})
        mix, units = draw(dim, 10), torch.eye(wide, dtype=torch.float64)[:, torch.randperm(wide, generator=g)[:20]]
        undo, hidden, factors = torch.linalg.pinv(mix), [2 * d for d in dims], draw(20).split([2 * d for d in dims])
        matrices = [{"U_fc1": read, "M_fc1": up * factor, "U_fc2": up.T, "M_fc2": write} for read, up, factor, write in
                    zip(undo.split(dims), units.split(hidden, 1), factors, mix.split(dims, 1))]
        s = draw(2, 4, dim)
        def half(read, late=False, blocks=blocks, mix=mix, undo=undo, factors=factors):
            """What is added. M_fc1 multiplies each hidden unit by its factor; late: after GELU, which is wrong."""
            outputs = []
            for block, part, factor in zip(blocks, (read @ undo.T).split(dims, -1), factors):
                z = block.mlp.fc1(part)
                outputs.append(block.mlp.fc2(factor * block.mlp.act(z) if late else block.mlp.act(factor * z)))
            return torch.cat(outputs, -1) @ mix.T
        found = call(unfolded_mlp_half, s, [dict(block.state_dict()) for block in blocks], matrices, norm)
        shaped(found, s.shape, "the result of unfolded_mlp_half")
        same(found, s + half(norm(s)), "unfolded_mlp_half", {
            "unfolded_mlp_half gives what is added to the stream, not the stream after it": half(norm(s)),
            "unfolded_mlp_half adds to the normalized stream": norm(s) + half(norm(s)),
            "unfolded_mlp_half leaves out the norm": s + half(s),
            "unfolded_mlp_half merges after GELU, it must merge before it": s + half(norm(s), late=True)})

# %%
""" # BEGIN TEST CONFIG
points: 0.5
""" # END TEST CONFIG
def test_the_fold_of_two_originals_side_by_side(fold_block, variant):
    import torch
    from timm.models.vision_transformer import Block

    from fsmerge_lite.course.grading import call, same, shaped
    dims, heads, n, s = (8, 4), 3, variant.pick("channels of a block's head", (5, 6)), 4  # n, s: of a head
    dim, total = heads * n, sum(dims)
    for seed in range(3):
        g = variant.generator(f"fold of a block {seed}")
        def draw(*shape, g=g):
            return torch.randn(*shape, generator=g, dtype=torch.float64)
        blocks = [Block(d, d // s, mlp_ratio=2, qkv_bias=True).double() for d in dims]
        for block in blocks:
            block.load_state_dict({name: draw(*p.shape) / 2 for name, p in block.state_dict().items()})
        mix = draw(dim, total)
        undo, units = torch.linalg.pinv(mix), torch.eye(2 * dim, dtype=torch.float64)
        units = units[:, torch.randperm(2 * dim, generator=g)[:2 * total]]
        maps = {name: torch.zeros(dim, total, dtype=torch.float64) for name in ("M_q", "M_k", "M_v", "U_o")}
        for head in range(total // s):
            a, b = slice(head * n, (head + 1) * n), slice(head * s, (head + 1) * s)
            maps["M_q"][a, b], maps["M_v"][a, b] = draw(n, s), draw(n, s)
            maps["M_k"][a, b] = torch.linalg.pinv(maps["M_q"][a, b]).T * (n / s) ** 0.5
            maps["U_o"][a, b] = torch.linalg.pinv(maps["M_v"][a, b]).T
        cut = {name: matrix.split(dims, 1) for name, matrix in maps.items()}
        matrices = []
        ups = units.split([2 * d for d in dims], 1)
        for i, (read, up, write) in enumerate(zip(undo.split(dims), ups, mix.split(dims, 1))):
            matrices.append({"U_qkv": read, "M_q": cut["M_q"][i], "M_k": cut["M_k"][i], "M_v": cut["M_v"][i],
                             "U_o": cut["U_o"][i].T, "M_o": write, "U_fc1": read, "M_fc1": up, "U_fc2": up.T,
                             "M_fc2": write})
        plain = Block(dim, heads, mlp_ratio=2, qkv_bias=True).double()
        norms = {f"norm{m}.{kind}": draw(dim) for m in (1, 2) for kind in ("weight", "bias")}
        folded = call(fold_block, [dict(block.state_dict()) for block in blocks], matrices, dict(norms))
        assert isinstance(folded, dict), "fold_block returns a dictionary: name -> weight or bias"
        expected = plain.state_dict()
        missing, unknown = sorted(set(expected) - set(folded)), sorted(map(str, set(folded) - set(expected)))
        assert not missing, f"a timm Block also has {', '.join(missing)}"
        assert not unknown, f"a timm Block has no {', '.join(unknown)}"
        for name, p in expected.items():
            shaped(folded[name], p.shape, name)
        plain.load_state_dict(folded)
        x = stream = draw(2, 4, dim)
        for m, part in ((1, "attn"), (2, "mlp")):
            norm = torch.nn.LayerNorm(dim, eps=plain.norm1.eps).double()
            norm.load_state_dict({kind: norms[f"norm{m}.{kind}"] for kind in ("weight", "bias")})
            inputs = (norm(x) @ undo.T).split(dims, -1)
            outputs = [block.get_submodule(part)(own) for block, own in zip(blocks, inputs)]
            x = x + torch.cat(outputs, -1) @ mix.T
        same(plain(stream), x, "the output of the folded Block")

# %%
""" # BEGIN TEST CONFIG
points: 0.5
hidden: true
""" # END TEST CONFIG
def test_the_mlp_half_of_three_originals_token_by_token(unfolded_mlp_half, variant):
    import torch

    from fsmerge_lite.course.grading import call, same
    g = variant.generator("hidden mlp")
    widths, dim, wide = [(5, 9), (7, 6), (3, 8)], 6, 11  # d_i, h_i
    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64) / 2
    originals = [{"mlp.fc1.weight": draw(h, d), "mlp.fc1.bias": draw(h), "mlp.fc2.weight": draw(d, h),
                  "mlp.fc2.bias": draw(d), "norm2.weight": draw(d), "norm2.bias": draw(d)} for d, h in widths]
    matrices = [{"U_fc1": draw(d, dim), "M_fc1": draw(wide, h), "U_fc2": draw(h, wide), "M_fc2": draw(dim, d)}
                for d, h in widths]
    leaves = [matrix.requires_grad_() for own in matrices for matrix in own.values()]
    norm = torch.nn.LayerNorm(dim, eps=1e-2).double()
    norm.load_state_dict({"weight": draw(dim), "bias": draw(dim)})
    s, goals, rows = draw(2, 4, dim), draw(2, 4, dim), []
    for token in s.reshape(-1, dim):
        centered = token - token.mean()
        z = centered / (centered.square().mean() + 1e-2).sqrt() * norm.weight.detach() + norm.bias.detach()
        for name in ("fc1", "fc2"):
            total = 0
            for original, own in zip(originals, matrices):
                out = original[f"mlp.{name}.weight"].mv(own[f"U_{name}"].mv(z)) + original[f"mlp.{name}.bias"]
                total = total + own[f"M_{name}"].mv(out)
            z = total * (1 + torch.erf(total / 2 ** 0.5)) / 2 if name == "fc1" else total
        rows.append(token + z)
    expected = torch.stack(rows).reshape(s.shape)
    found = call(unfolded_mlp_half, s, originals, matrices, norm)
    same(found, expected.detach(), "unfolded_mlp_half")
    assert found.requires_grad, "no gradient reaches M and U"
    gradients = [torch.autograd.grad((y * goals).sum(), leaves, allow_unused=True) for y in (found, expected)]
    same(gradients[0], gradients[1], "the gradient")

# %%
""" # BEGIN TEST CONFIG
points: 0.5
hidden: true
""" # END TEST CONFIG
def test_the_fold_of_three_originals_with_and_without_a_qkv_bias(fold_block, variant):
    import torch
    import torch.nn.functional as F
    from timm.models.vision_transformer import Block

    from fsmerge_lite.course.grading import call, same
    g = variant.generator("hidden block")
    dims, dim, heads = (8, 4, 12), 10, 2
    names = {"attn.qkv": "qkv", "attn.proj": "o", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64) / 2
    for bias in (True, False):
        blocks = [Block(d, 2, mlp_ratio=1.5, qkv_bias=bias) for d in dims]
        originals = [{name: draw(*p.shape) for name, p in block.state_dict().items()} for block in blocks]
        if bias:
            del originals[2]["attn.qkv.bias"]
        matrices = []
        for d in dims:
            own = {name: draw(d, dim) for name in ("U_qkv", "U_o", "U_fc1")}
            own |= {name: draw(dim, d) for name in ("M_q", "M_k", "M_v", "M_o", "M_fc2")}
            matrices.append(own | {"M_fc1": draw(2 * dim, 3 * d // 2), "U_fc2": draw(3 * d // 2, 2 * dim)})
        plain = Block(dim, heads, mlp_ratio=2, qkv_bias=bias).double()
        norms = {f"norm{m}.{kind}": draw(dim) for m in (1, 2) for kind in ("weight", "bias")}
        def layer(z, name, originals=originals, matrices=matrices):
            total = 0
            for original, own in zip(originals, matrices):
                read = F.linear(z, own[f"U_{names[name]}"])
                out = F.linear(read, original[f"{name}.weight"], original.get(f"{name}.bias"))
                merges = [own[f"M_{part}"] for part in ("qkv" if name == "attn.qkv" else [names[name]])]
                total = total + torch.cat([F.linear(z, M) for z, M in zip(out.chunk(len(merges), -1), merges)], -1)
            return total
        x = s = draw(2, 4, dim)
        read = F.layer_norm(s, (dim,), norms["norm1.weight"], norms["norm1.bias"], plain.norm1.eps)
        q, k, v = layer(read, "attn.qkv").chunk(3, -1)
        mixed = []
        for head in range(heads):
            own = slice(head * dim // heads, (head + 1) * dim // heads)
            powers = torch.einsum("btc, bsc -> bts", q[..., own], k[..., own]).div((dim / heads) ** 0.5).exp()
            mixed.append(torch.einsum("bts, bsc -> btc", powers / powers.sum(-1, keepdim=True), v[..., own]))
        x = x + layer(torch.cat(mixed, -1), "attn.proj")
        read = F.layer_norm(x, (dim,), norms["norm2.weight"], norms["norm2.bias"], plain.norm2.eps)
        x = x + layer(F.gelu(layer(read, "mlp.fc1")), "mlp.fc2")
        plain.load_state_dict(call(fold_block, originals, matrices, dict(norms)))
        same(plain(s), x, "the output of the folded Block")

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: count
# points: 1

# %% [markdown]
# ## Question 5: which matrices meet, and how many numbers there are (1 point)
#
# The next cell draws the sizes of your class, and a list of pairs. A pair **meets** if the merged block depends on
# the two only through their product, in each head by itself: one could write one matrix in the place of the two.
# (Where one matrix has the name of a place, the matrices of all originals at that place are meant.) Two pairs of the
# list meet.
#
# Each answer is a whole number. You may write a computation in the place of a number.
#
# - `meet_in_scores`: the number of the pair that meets where the scores of attention are computed
# - `meet_after_values`: the number of the pair that meets where attention has mixed the values
# - `matrices_in_block`: how many $M$ and $U$ there are in one block, of all originals together
# - `numbers_in_block`: how many numbers are in them, if each is a dense matrix
# - `extra_numbers`: how many numbers more it would be, if q, k and v each had a $U$ of their own

# %%
k = variant.pick("originals", (3, 4, 5, 6, 7))
d = [variant.pick(f"stream {i}", range(40, 100, 4)) for i in range(k)]      # d_i
a = [variant.pick(f"attention {i}", range(24, 72, 4)) for i in range(k)]    # a_i
h = [variant.pick(f"hidden {i}", range(100, 400, 20)) for i in range(k)]    # h_i
merged_d, merged_a, merged_h = 80, 60, 320                                  # d*, a*, h*
print(f"{k} originals: d = {d}, a = {a}, h = {h}")
print(f"merged: d* = {merged_d}, a* = {merged_a}, h* = {merged_h}")
pairs = [("M_q", "M_k"), ("M_q", "M_v"), ("M_v", "U_o"), ("M_o", "U_fc1"), ("M_fc1", "U_fc2"), ("U_qkv", "M_q"),
         ("U_fc1", "M_fc2"), ("M_k", "U_o"), ("M_fc2", "U_qkv of the next block")]
pairs = [pairs[n] for n in torch.randperm(len(pairs), generator=variant.generator("pairs"))]
for number, pair in enumerate(pairs, 1):
    print(f"pair {number}:", " and ".join(pair))

# %% [raw]
# # BEGIN SOLUTION

# %%
meet_in_scores = pairs.index(("M_q", "M_k")) + 1  # SOLUTION
meet_after_values = pairs.index(("M_v", "U_o")) + 1  # SOLUTION
matrices_in_block = k * (4 + 6)  # SOLUTION
numbers_in_block = 4 * merged_d * sum(d) + 4 * merged_a * sum(a) + 2 * merged_h * sum(h)  # SOLUTION
extra_numbers = 2 * merged_d * sum(d)  # SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 0
""" # END TEST CONFIG
def test_all_are_whole_numbers(meet_in_scores, meet_after_values, matrices_in_block, numbers_in_block, extra_numbers):
    answers = {"meet_in_scores": meet_in_scores, "meet_after_values": meet_after_values,
               "matrices_in_block": matrices_in_block, "numbers_in_block": numbers_in_block,
               "extra_numbers": extra_numbers}
    for name, answer in answers.items():
        assert answer is not ..., f"{name} is not there yet: replace the three dots"
        assert isinstance(answer, int), f"{name} must be a whole number, without quotes and without a point"
    for name in ("meet_in_scores", "meet_after_values"):
        assert 1 <= answers[name] <= 9, f"{name} must be the number of a pair, from 1 to 9"

# %%
""" # BEGIN TEST CONFIG
points: 0.5
hidden: true
""" # END TEST CONFIG
def test_which_meet(meet_in_scores, meet_after_values, variant):
    import torch

    from fsmerge_lite.course.grading import same
    order = torch.randperm(9, generator=variant.generator("pairs")).tolist()
    same(meet_in_scores, 1 + order.index(0), "meet_in_scores")
    same(meet_after_values, 1 + order.index(2), "meet_after_values")

# %%
""" # BEGIN TEST CONFIG
points: 0.5
hidden: true
""" # END TEST CONFIG
def test_counts(matrices_in_block, numbers_in_block, extra_numbers, variant):
    k = variant.pick("originals", (3, 4, 5, 6, 7))
    count = numbers = extra = 0
    for i in range(k):
        d = variant.pick(f"stream {i}", range(40, 100, 4))
        a = variant.pick(f"attention {i}", range(24, 72, 4))
        h = variant.pick(f"hidden {i}", range(100, 400, 20))
        shapes = {"U_qkv": (d, 80), "M_q": (60, a), "M_k": (60, a), "M_v": (60, a), "U_o": (a, 60), "M_o": (80, d),
                  "U_fc1": (d, 80), "M_fc1": (320, h), "U_fc2": (h, 320), "M_fc2": (80, d)}
        count += len(shapes)
        numbers += sum(rows * columns for rows, columns in shapes.values())
        extra += shapes["U_qkv"][0] * shapes["U_qkv"][1] * 2
    found = {"matrices_in_block": (matrices_in_block, count), "numbers_in_block": (numbers_in_block, numbers),
             "extra_numbers": (extra_numbers, extra)}
    for name, (answer, right) in found.items():
        assert answer == right, f"{name} is wrong"

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION
