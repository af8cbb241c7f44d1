# %% [raw]
# # ASSIGNMENT CONFIG
# name: 1_fold_an_mlp
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
# # Assignment 1: fold a merged MLP by hand
#
# **Aim.** You fold the layers of a merged MLP into plain layers, and you know what folds and what does not.
#
# **Time:** about 60 minutes. **Points:** 10. **Before it:** lessons 03 (merge and unmerge) and 10 (folding).
#
# **Given** are the layers of $k$ originals and the matrices $M$ and $U$ around them. A merged layer computes
#
# $$y^* = \sum_{i=1}^{k} M_i\,(W_i\,U_i\,x^* + b_i).$$
#
# **You may use** torch and Python. **Do not use** `fsmerge_lite` in your answers, except where a cell here imports it.
#
# Each question has tests that you can run here. They compare with a computation that does not go your way, and they
# say what is wrong. When your work is graded, more tests run: with other sizes, another number type and other numbers
# of originals.
#
# Each answer stands on its own. Do not call the answer to one question in another. Then a mistake costs points once.

# %%
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsmerge_lite.course.grading import Variant

CLASS = 2026
variant = Variant(CLASS)

# %% [raw]
# # BEGIN QUESTION
# name: fold_layer
# points: 4

# %% [markdown]
# ## Question 1: one layer (4 points)
#
# Write `fold_layer`. All arguments are lists with one entry for each original:
#
# - `weights`: $W_i$, shape (outputs of original $i$, inputs of original $i$)
# - `biases`: $b_i$, shape (outputs of original $i$,), or `None` for an original whose layer has no bias
# - `merges`: $M_i$, shape (outputs of the merged layer, outputs of original $i$)
# - `unmerges`: $U_i$, shape (inputs of original $i$, inputs of the merged layer)
#
# It returns the weight $W^*$ and the bias $b^*$ of one plain layer. If no original has a bias, $b^*$ is `None`. The
# originals may have different sizes.

# %% [raw]
# # BEGIN SOLUTION

# %%
def fold_layer(weights, biases, merges, unmerges):
    """W* and b* of one plain layer."""
    # BEGIN SOLUTION
    weight = sum(M @ W @ U for W, M, U in zip(weights, merges, unmerges))
    parts = [M @ b for M, b in zip(merges, biases) if b is not None]
    return weight, sum(parts) if parts else None
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 1
""" # END TEST CONFIG
def test_the_weight_for_two_originals_of_one_size(fold_layer, variant):
    import torch
    import torch.nn.functional as F

    from fsmerge_lite.course.grading import call, same, shaped
    d = variant.pick("width", (5, 6, 7))
    for seed in range(3):
        g = variant.generator(f"layer {seed}")
        W, M, U = (list(torch.randn(2, d, d, generator=g) / d ** 0.5) for _ in range(3))
        b, x = list(torch.randn(2, d, generator=g)), torch.randn(9, d, generator=g)
        def unfolded(x):
            return sum(F.linear(F.linear(F.linear(x, U[i]), W[i], b[i]), M[i]) for i in range(2))
        expected = unfolded(x) - unfolded(torch.zeros(d))
        folded = call(fold_layer, W, b, M, U)
        assert isinstance(folded, tuple | list) and len(folded) == 2, "fold_layer returns two things: weight and bias"
        shaped(folded[0], (d, d), "the weight of fold_layer")
        same(F.linear(x, folded[0]), expected, "what the folded weight makes of x")

# %%
""" # BEGIN TEST CONFIG
points: 0.5
""" # END TEST CONFIG
def test_the_bias_for_two_originals_of_one_size(fold_layer, variant):
    import torch
    import torch.nn.functional as F

    from fsmerge_lite.course.grading import call, same
    d = variant.pick("width", (5, 6, 7))
    for seed in range(3):
        g = variant.generator(f"layer {seed}")
        W, M, U = (list(torch.randn(2, d, d, generator=g) / d ** 0.5) for _ in range(3))
        b = list(torch.randn(2, d, generator=g))
        of_zero = sum(F.linear(F.linear(F.linear(torch.zeros(d), U[i]), W[i], b[i]), M[i]) for i in range(2))
        folded = call(fold_layer, W, b, M, U)
        assert isinstance(folded, tuple | list) and len(folded) == 2, "fold_layer returns two things: weight and bias"
        assert folded[1] is not None, "the bias of fold_layer is None, but the originals have one"
        same(folded[1], of_zero, "the bias of fold_layer (what the merged layer makes of the zero vector)")

# %%
""" # BEGIN TEST CONFIG
points: 1
hidden: true
""" # END TEST CONFIG
def test_the_weight_for_three_originals_of_other_inputs_in_fp64(fold_layer, variant):
    import torch
    import torch.nn.functional as F

    from fsmerge_lite.course.grading import call, same, shaped
    for seed in range(3):
        g = variant.generator(f"hidden weight {seed}")
        inputs, x = variant.pick("hidden inputs", ((3, 5, 7), (4, 2, 6), (7, 4, 3))), torch.eye(8).double()
        W = [torch.randn(5, i, generator=g).double() for i in inputs]
        M = [torch.randn(5, 5, generator=g).double() for _ in inputs]
        U = [torch.randn(i, 8, generator=g).double() for i in inputs]
        b = [torch.randn(5, generator=g).double() for _ in inputs]
        expected = sum(F.linear(F.linear(F.linear(x, U[i]), W[i]), M[i]) for i in range(3))
        weight, _ = call(fold_layer, W, b, M, U)
        shaped(weight, (5, 8), "the weight of fold_layer")
        same(F.linear(x, weight), expected, "what the folded weight makes of x")

# %%
""" # BEGIN TEST CONFIG
points: 1
hidden: true
""" # END TEST CONFIG
def test_three_originals_of_other_sizes_in_fp64_one_without_a_bias(fold_layer, variant):
    import torch
    import torch.nn.functional as F

    from fsmerge_lite.course.grading import call, same, shaped
    for seed in range(3):
        g = variant.generator(f"hidden layer {seed}")
        sizes = [(4, 3), (6, 5), (3, 7)]  # outputs, inputs
        W = [torch.randn(o, i, generator=g).double() for o, i in sizes]
        M = [torch.randn(5, o, generator=g).double() for o, _ in sizes]
        U = [torch.randn(i, 8, generator=g).double() for _, i in sizes]
        b = [torch.randn(o, generator=g).double() if i != seed else None for i, (o, _) in enumerate(sizes)]
        x = torch.randn(9, 8, generator=g).double()
        expected = sum(F.linear(F.linear(F.linear(x, U[i]), W[i], b[i]), M[i]) for i in range(3))
        weight, bias = call(fold_layer, W, b, M, U)
        shaped(weight, (5, 8), "the weight of fold_layer")
        assert bias is not None, "two originals have a bias, so b* is not None"
        same(F.linear(x, weight, bias), expected, "what the folded layer makes of x")

# %%
""" # BEGIN TEST CONFIG
points: 0.5
hidden: true
""" # END TEST CONFIG
def test_no_original_has_a_bias(fold_layer, variant):
    import torch
    import torch.nn.functional as F

    from fsmerge_lite.course.grading import call, same
    g = variant.generator("hidden layer without bias")
    W, M, U = ([torch.randn(*size, generator=g) / 2 for size in sizes]
               for sizes in ([(4, 3), (2, 5)], [(6, 4), (6, 2)], [(3, 7), (5, 7)]))
    expected = sum(F.linear(F.linear(F.linear(torch.eye(7), U[i]), W[i]), M[i]) for i in range(2))
    weight, bias = call(fold_layer, W, [None, None], M, U)
    assert bias is None, "no original has a bias, so b* is None"
    same(F.linear(torch.eye(7), weight), expected, "what the folded weight makes of one-hot vectors")

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## An MLP of two layers
#
# The next two questions are about MLPs with a nonlinearity $\sigma$ between two layers, fc1 and fc2. The merged MLP
# computes
#
# $$h^* = \sigma\Big(\sum_i M^{fc1}_i\,(W^{fc1}_i\,U^{fc1}_i\,x^* + b^{fc1}_i)\Big), \qquad
# y^* = \sum_i M^{fc2}_i\,(W^{fc2}_i\,U^{fc2}_i\,h^* + b^{fc2}_i).$$
#
# $\sigma$ is the merged model's own. It is the same function as in all originals. `plain` is given:

# %%
def plain(weight, bias):
    """An nn.Linear of this weight and this bias (or None), in their number type."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return layer

# %% [raw]
# # BEGIN QUESTION
# name: fold_mlp
# points: 3

# %% [markdown]
# ## Question 2: an MLP (3 points)
#
# Write `fold_mlp`. Both arguments are lists with one entry for each original:
#
# - `originals`: an `nn.Sequential(fc1, activation, fc2)`; fc1 and fc2 are `nn.Linear` with or without a bias
# - `matrices`: the four matrices $(U^{fc1}_i, M^{fc1}_i, U^{fc2}_i, M^{fc2}_i)$ as a tuple
#
# It returns the merged MLP as an `nn.Sequential` of a plain layer, the activation and a plain layer. Its number type is
# that of the originals. The originals may differ in all their sizes, and the merged MLP has sizes of its own.

# %% [raw]
# # BEGIN SOLUTION

# %%
def fold_mlp(originals, matrices):
    """The merged MLP as nn.Sequential(plain layer, activation, plain layer)."""
    # BEGIN SOLUTION
    def folded(layers, unmerges, merges):
        weight = sum(M @ layer.weight @ U for layer, U, M in zip(layers, unmerges, merges))
        biases = [M @ layer.bias for layer, M in zip(layers, merges) if layer.bias is not None]
        return plain(weight, sum(biases) if biases else None)
    U_fc1, M_fc1, U_fc2, M_fc2 = zip(*matrices)
    fc1, activations, fc2 = zip(*originals)
    return nn.Sequential(folded(fc1, U_fc1, M_fc1), activations[0], folded(fc2, U_fc2, M_fc2))
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 1
""" # END TEST CONFIG
def test_two_originals_of_other_sizes(fold_mlp, variant):
    import torch
    import torch.nn.functional as F
    from torch import nn

    from fsmerge_lite.course.grading import call, same, shaped
    d, h, o = variant.pick("sizes of the merged MLP", ((5, 8, 6), (6, 9, 4), (4, 8, 5)))
    for seed in range(3):
        torch.manual_seed(variant.generator(f"mlp {seed}").initial_seed())
        originals = [nn.Sequential(nn.Linear(di, hi), nn.GELU(), nn.Linear(hi, oi))
                     for di, hi, oi in ((3, 7, 4), (6, 5, 2))]
        matrices = [tuple(torch.randn(*size) / 2 for size in ((each[0].in_features, d), (h, each[0].out_features),
                                                              (each[2].in_features, h), (o, each[2].out_features)))
                    for each in originals]
        x, pairs = torch.randn(9, d), list(zip(originals, matrices))
        with torch.no_grad():
            hidden = F.gelu(sum(F.linear(mlp[0](F.linear(x, U)), M) for mlp, (U, M, _, _) in pairs))
            expected = sum(F.linear(mlp[2](F.linear(hidden, U)), M) for mlp, (_, _, U, M) in pairs)
        merged = call(fold_mlp, originals, matrices)
        kinds = [type(each).__name__ for each in merged] if isinstance(merged, nn.Sequential) else type(merged).__name__
        assert kinds == ["Linear", "GELU", "Linear"], f"fold_mlp returns {kinds}, expected Linear, GELU, Linear"
        shaped(merged[0].weight, (h, d), "the weight of the first folded layer")
        shaped(merged[2].weight, (o, h), "the weight of the second folded layer")
        with torch.no_grad():
            same(merged(x), expected, "what the folded MLP makes of x")

# %%
""" # BEGIN TEST CONFIG
points: 1
hidden: true
""" # END TEST CONFIG
def test_three_originals_in_fp64_some_without_a_bias(fold_mlp, variant):
    import torch
    import torch.nn.functional as F
    from torch import nn

    from fsmerge_lite.course.grading import call, same
    d, h, o = variant.pick("hidden sizes of the merged MLP", ((4, 6, 3), (3, 7, 5), (5, 4, 6)))
    for seed in range(3):
        torch.manual_seed(variant.generator(f"hidden mlp {seed}").initial_seed())
        originals = [nn.Sequential(nn.Linear(di, hi, bias=i != 1), nn.Tanh(), nn.Linear(hi, oi, bias=i != 2)).double()
                     for i, (di, hi, oi) in enumerate(((2, 8, 4), (6, 3, 7), (5, 5, 1)))]
        matrices = [tuple(torch.randn(*size).double() for size in ((each[0].in_features, d), (h, each[0].out_features),
                                                                   (each[2].in_features, h), (o, each[2].out_features)))
                    for each in originals]
        x, pairs = torch.randn(9, d).double(), list(zip(originals, matrices))
        with torch.no_grad():
            hidden = torch.tanh(sum(F.linear(mlp[0](F.linear(x, U)), M) for mlp, (U, M, _, _) in pairs))
            expected = sum(F.linear(mlp[2](F.linear(hidden, U)), M) for mlp, (_, _, U, M) in pairs)
            merged = call(fold_mlp, originals, matrices)
            assert [type(each).__name__ for each in merged] == ["Linear", "Tanh", "Linear"], "a layer, Tanh, a layer"
            assert merged[0].weight.dtype == torch.float64, "the originals have 64 bits, and so has the merged MLP"
            same(merged(x), expected, "what the folded MLP makes of x")

# %%
""" # BEGIN TEST CONFIG
points: 1
hidden: true
""" # END TEST CONFIG
def test_no_layer_has_a_bias(fold_mlp, variant):
    import torch
    import torch.nn.functional as F
    from torch import nn

    from fsmerge_lite.course.grading import call, same
    d, h, o = 4, 5, 3
    for seed in range(3):
        torch.manual_seed(variant.generator(f"hidden mlp without bias {seed}").initial_seed())
        originals = [nn.Sequential(nn.Linear(di, hi, bias=False), nn.SiLU(), nn.Linear(hi, oi, bias=False))
                     for di, hi, oi in ((4, 6, 1), (3, 1, 6))]
        matrices = [tuple(torch.randn(*size) / 2 for size in ((each[0].in_features, d), (h, each[0].out_features),
                                                              (each[2].in_features, h), (o, each[2].out_features)))
                    for each in originals]
        x, pairs = torch.randn(9, d), list(zip(originals, matrices))
        with torch.no_grad():
            hidden = F.silu(sum(F.linear(mlp[0](F.linear(x, U)), M) for mlp, (U, M, _, _) in pairs))
            expected = sum(F.linear(mlp[2](F.linear(hidden, U)), M) for mlp, (_, _, U, M) in pairs)
            merged = call(fold_mlp, originals, matrices)
            assert [type(each).__name__ for each in merged] == ["Linear", "SiLU", "Linear"], "a layer, SiLU, a layer"
            same(merged(x), expected, "what the folded MLP makes of x")

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## Fold without a formula
#
# `as_linear` is given for question 3. It feeds a function with the zero vector and with one-hot vectors, and makes an
# `nn.Linear` of the answers. This is right only if the function is a matrix product plus a constant. For any other
# function the layer is wrong, and there is no error message.

# %%
def as_linear(function, width, dtype):
    """An nn.Linear for a function of features as rows (n, width)."""
    with torch.no_grad():
        bias = function(torch.zeros(1, width, dtype=dtype))
        return plain((function(torch.eye(width, dtype=dtype)) - bias).T, bias[0])

# %% [raw]
# # BEGIN QUESTION
# name: fold_after_norm
# points: 2

# %% [markdown]
# ## Question 3: an MLP after a LayerNorm (2 points)
#
# In a transformer block a LayerNorm comes before the MLP. Each original has one of its own, and so has the merged
# model: $\mathrm{LN}^*$. Its MLP reads $\mathrm{LN}^*(x^*)$ in the place of $x^*$. Write `fold_after_norm`:
#
# - `norm`: $\mathrm{LN}^*$, the merged model's `nn.LayerNorm`
# - `originals`: for each original an `nn.Sequential(norm, fc1, activation, fc2)`; all layers have biases
# - `matrices`: for each original the tuple of question 2
#
# It returns an `nn.Sequential` that maps $x^*$ to $y^*$. All its layers have the merged model's sizes, and they are as
# few as possible. Which of the norms are needed? Decide first which parts fold, and where the fold must stop. You may
# use `as_linear`.

# %% [raw]
# # BEGIN SOLUTION

# %%
def fold_after_norm(norm, originals, matrices):
    """The merged model's LayerNorm and MLP as an nn.Sequential."""
    # BEGIN SOLUTION
    def fc1(x):
        return sum(F.linear(each[1](F.linear(x, U)), M) for each, (U, M, _, _) in zip(originals, matrices))

    def fc2(h):
        return sum(F.linear(each[3](F.linear(h, U)), M) for each, (_, _, U, M) in zip(originals, matrices))
    first = as_linear(fc1, matrices[0][0].shape[1], norm.weight.dtype)
    return nn.Sequential(norm, first, originals[0][2], as_linear(fc2, first.out_features, norm.weight.dtype))
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 1
""" # END TEST CONFIG
def test_two_originals(fold_after_norm, variant):
    import torch
    import torch.nn.functional as F
    from torch import nn

    from fsmerge_lite.course.grading import call, same
    d, h = variant.pick("sizes after a norm", ((5, 8), (6, 7), (4, 9)))
    for seed in range(3):
        torch.manual_seed(variant.generator(f"norm {seed}").initial_seed())
        originals = [nn.Sequential(nn.LayerNorm(di), nn.Linear(di, hi), nn.GELU(), nn.Linear(hi, di))
                     for di, hi in ((d, h), (3, 5))]
        matrices = [tuple(torch.randn(*size) / 2 for size in ((each[3].out_features, d), (h, each[1].out_features),
                                                              (each[1].out_features, h), (d, each[3].out_features)))
                    for each in originals]
        norm, x, pairs = nn.LayerNorm(d), 30 * torch.randn(9, d) + 20, list(zip(originals, matrices))
        with torch.no_grad():
            for each in (norm, *(original[0] for original in originals)):
                each.weight.normal_()
                each.bias.normal_()
            read = F.layer_norm(x, (d,), norm.weight, norm.bias, norm.eps)
            hidden = F.gelu(sum(F.linear(mlp[1](F.linear(read, U)), M) for mlp, (U, M, _, _) in pairs))
            expected = sum(F.linear(mlp[3](F.linear(hidden, U)), M) for mlp, (_, _, U, M) in pairs)
            merged = call(fold_after_norm, norm, originals, matrices)
            assert isinstance(merged, nn.Sequential), "fold_after_norm returns an nn.Sequential"
            found = merged(x)
            close = found.shape == expected.shape and torch.allclose(merged(10 * x + 5), found, atol=1e-3)
            assert close, "x and 10 x + 5 must give nearly the same result, as a LayerNorm comes first; they do not"
            same(found, expected, "what the folded block makes of x")
            widths = [each.weight.shape for each in merged if isinstance(each, nn.Linear)]
            assert widths == [(h, d), (d, h)], f"the layers have the shapes {widths}, expected the merged model's two"

# %%
""" # BEGIN TEST CONFIG
points: 1
hidden: true
""" # END TEST CONFIG
def test_three_originals_in_fp64_and_small_features(fold_after_norm, variant):
    import torch
    import torch.nn.functional as F
    from torch import nn

    from fsmerge_lite.course.grading import call, same
    d, h = variant.pick("hidden sizes after a norm", ((7, 5), (5, 9), (6, 6)))
    for seed in range(3):
        torch.manual_seed(variant.generator(f"hidden norm {seed}").initial_seed())
        originals = [nn.Sequential(nn.LayerNorm(di), nn.Linear(di, hi), nn.Tanh(), nn.Linear(hi, di)).double()
                     for di, hi in ((3, 4), (8, 5), (d, 7))]
        matrices = [tuple(torch.randn(*size).double() / 2 for size in (
            (each[3].out_features, d), (h, each[1].out_features), (each[1].out_features, h), (d, each[3].out_features)))
                    for each in originals]
        norm, pairs = nn.LayerNorm(d, eps=1e-3).double(), list(zip(originals, matrices))
        x = torch.randn(9, d).double() * torch.logspace(-2, 1, 9).double()[:, None] + 1
        with torch.no_grad():
            norm.weight.normal_()
            norm.bias.normal_()
            read = F.layer_norm(x, (d,), norm.weight, norm.bias, norm.eps)
            hidden = torch.tanh(sum(F.linear(mlp[1](F.linear(read, U)), M) for mlp, (U, M, _, _) in pairs))
            expected = sum(F.linear(mlp[3](F.linear(hidden, U)), M) for mlp, (_, _, U, M) in pairs)
            merged = call(fold_after_norm, norm, originals, matrices)
            same(merged(x), expected, "what the folded block makes of x")
            widths = [each.weight.shape for each in merged if isinstance(each, nn.Linear)]
            assert widths == [(h, d), (d, h)], f"the layers have the shapes {widths}, expected the merged model's two"

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## A layer of your class
#
# The last question is about one layer of a SuperNet. Its sizes are your class's own:

# %%
sizes = [(variant.pick(f"outputs {i}", range(20, 60)), variant.pick(f"inputs {i}", range(60, 100)))
         for i in range(variant.pick("how many originals", (3, 4, 5)))]
outputs, inputs = variant.pick("merged outputs", range(20, 60)), variant.pick("merged inputs", range(60, 100))
for i, (o, d) in enumerate(sizes, 1):
    print(f"original {i}: {d} inputs, {o} outputs, with a bias")
print(f"merged layer: {inputs} inputs, {outputs} outputs")

# %% [raw]
# # BEGIN QUESTION
# name: count_numbers
# points: 1

# %% [markdown]
# ## Question 4: count (1 point)
#
# The layer of the SuperNet holds these layers of the originals, each between a full matrix $M_i$ and a full matrix
# $U_i$. How many of its numbers are frozen? How many are trained? And how many numbers does the folded layer have?
#
# Write whole numbers, or expressions that give them. The test here only looks whether they are whole numbers.

# %% [raw]
# # BEGIN SOLUTION

# %%
frozen = sum(o * d + o for o, d in sizes)  # SOLUTION
trained = sum(outputs * o + d * inputs for o, d in sizes)  # SOLUTION
folded = outputs * inputs + outputs  # SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 0
""" # END TEST CONFIG
def test_whole_numbers(frozen, trained, folded):
    for name, found in {"frozen": frozen, "trained": trained, "folded": folded}.items():
        assert found is not None and found is not ..., f"{name} is not there yet: replace the three dots"
        assert isinstance(found, int | float) and found > 0 and found == int(found), f"{name} is not a whole number > 0"

# %%
""" # BEGIN TEST CONFIG
points: 0.25
hidden: true
""" # END TEST CONFIG
def test_frozen(frozen, variant):
    from torch import nn
    layers = [nn.Linear(variant.pick(f"inputs {i}", range(60, 100)), variant.pick(f"outputs {i}", range(20, 60)))
              for i in range(variant.pick("how many originals", (3, 4, 5)))]
    expected = sum(p.numel() for layer in layers for p in layer.parameters())
    assert frozen == expected, "the count of frozen numbers is not right"

# %%
""" # BEGIN TEST CONFIG
points: 0.5
hidden: true
""" # END TEST CONFIG
def test_trained(trained, variant):
    from torch import nn

    from fsmerge_lite import Merge, SuperLinear, Unmerge
    o, d = variant.pick("merged outputs", range(20, 60)), variant.pick("merged inputs", range(60, 100))
    layers = [nn.Linear(variant.pick(f"inputs {i}", range(60, 100)), variant.pick(f"outputs {i}", range(20, 60)))
              for i in range(variant.pick("how many originals", (3, 4, 5)))]
    merges = nn.ModuleList(Merge(o, layer.out_features, "full") for layer in layers)
    unmerges = nn.ModuleList(Unmerge(layer.in_features, d, "full") for layer in layers)
    expected = sum(p.numel() for p in SuperLinear(layers, merges, unmerges).parameters())
    assert trained == expected, "the count of trained numbers is not right"

# %%
""" # BEGIN TEST CONFIG
points: 0.25
hidden: true
""" # END TEST CONFIG
def test_folded(folded, variant):
    from torch import nn
    layer = nn.Linear(variant.pick("merged inputs", range(60, 100)), variant.pick("merged outputs", range(20, 60)))
    expected = sum(p.numel() for p in layer.parameters())
    assert folded == expected, "the count of the folded layer's numbers is not right"

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION
