# %% [raw]
# # ASSIGNMENT CONFIG
# name: 2_merge_and_unmerge
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
# # Assignment 2: Merge and Unmerge as diagonal plus low rank
#
# **Aim.** You apply $D + AB$ to features and to weights without ever making the full matrix, you fold with it, and you
# count what is trained.
#
# **Time:** about 75 minutes. **Points:** 12. **Before it:** lessons 03 (merge and unmerge), 05 (low-rank merge layers)
# and 10 (folding).
#
# **Given** are the parts of $M = D + A B$ and of $U = E + F G$, and the layers of the originals. $A$ and $F$ are tall,
# $B$ and $G$ are wide. $D$ and $E$ are vectors that hold only the diagonal. It begins in the upper left corner. If a
# matrix is not square, the vector has as many numbers as the shorter side. The other channels get nothing from it.
#
# **You may use** torch and Python. **Do not use** `fsmerge_lite` in your answers, except where a cell here imports it.
#
# Each question has tests that you can run here. When your work is graded, more tests run: with other sizes, another
# number type and other numbers of originals. Some tests look only whether a matrix was made as a whole. If it was, you
# lose the points of these tests and keep those for right numbers.
#
# Each answer stands on its own. Do not call the answer to one question in another. Then a mistake costs points once.

# %%
import torch
from torch import Tensor

from fsmerge_lite.course.grading import Variant, largest

CLASS = 2026
variant = Variant(CLASS)

# %% [markdown]
# `largest` is what the tests use. It calls a function, and it gives its result and how many numbers the largest tensor
# had that was made on the way. Here a function makes a square matrix and forgets it again:

# %%
def doubled(x):
    torch.zeros(len(x), len(x))
    return 2 * x

result, numbers = largest(doubled, torch.ones(50))
print(f"result of shape {tuple(result.shape)}, largest tensor: {numbers:,} numbers")

# %% [raw]
# # BEGIN QUESTION
# name: apply
# points: 4

# %% [markdown]
# ## Question 1: on features (4 points)
#
# Write `apply`. It applies one matrix $D + AB$ to features:
#
# - `D`: the diagonal, shape (the smaller of outputs and inputs,)
# - `A`: shape (outputs, $r$)
# - `B`: shape ($r$, inputs)
# - `x`: features as rows, shape (..., inputs), with any number of dimensions in front
#
# It returns $(D + AB)\,x$ for each row, shape (..., outputs). No tensor on the way may have as many numbers as the
# matrix, which is outputs times inputs.

# %% [raw]
# # BEGIN SOLUTION

# %%
def apply(D, A, B, x):
    """(D + A B) x for each row of x."""
    # BEGIN SOLUTION
    y, n = x @ B.mT @ A.mT, len(D)
    return torch.cat([y[..., :n] + D * x[..., :n], y[..., n:]], -1)
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 1
""" # END TEST CONFIG
def test_a_square_matrix(apply, variant):
    import torch

    from fsmerge_lite.course.grading import call, same, shaped
    n, r = variant.pick("width", (6, 7, 8, 9)), variant.pick("rank", (2, 3))
    for seed in range(3):
        g = variant.generator(f"apply {seed}")
        D, A, B, x = (torch.randn(*size, generator=g) for size in ((n,), (n, r), (r, n), (5, n)))
        S = A @ B
        for j in range(n):
            S[j, j] += D[j]
        expected = torch.stack([S @ row for row in x])
        y = call(apply, D, A, B, x.clone())
        shaped(y, (5, n), "the result of apply for 5 rows")
        same(y, expected, "the result of apply", {"the diagonal is missing": expected - D * x,
                                                  "the low-rank part is missing": D * x})

# %%
""" # BEGIN TEST CONFIG
points: 0.5
""" # END TEST CONFIG
def test_the_matrix_is_never_made(apply, variant):
    import torch

    from fsmerge_lite.course.grading import largest, same
    n, g = variant.pick("large width", (200, 250, 300)), variant.generator("apply, large")
    D, A, B, x = (torch.randn(*size, generator=g) for size in ((n,), (n, 2), (2, n), (3, n)))
    B = B / 10
    expected = x @ (torch.diag(D) + A @ B).T
    y, most = largest(apply, D, A, B, x.clone())
    same(y, expected, "the result of apply")
    assert most < n * n, f"apply makes a tensor of {most:,} numbers, as many as the matrix of {n} x {n}"

# %%
""" # BEGIN TEST CONFIG
points: 0.75
hidden: true
""" # END TEST CONFIG
def test_more_outputs_than_inputs_in_fp64(apply, variant):
    import torch

    from fsmerge_lite.course.grading import call, same
    o, i, r = variant.pick("wider", ((9, 4, 2), (8, 5, 3), (11, 6, 1)))
    for seed in range(3):
        g = variant.generator(f"apply, wider {seed}")
        D, A, B, x = (torch.randn(*size, generator=g).double() for size in ((i,), (o, r), (r, i), (2, 5, i)))
        S = A @ B
        for j in range(i):
            S[j, j] += D[j]
        same(call(apply, D, A, B, x.clone()), torch.einsum("oi,abi->abo", S, x), "apply, more outputs than inputs")

# %%
""" # BEGIN TEST CONFIG
points: 0.75
hidden: true
""" # END TEST CONFIG
def test_more_inputs_than_outputs_in_fp64(apply, variant):
    import torch

    from fsmerge_lite.course.grading import call, same
    o, i, r = variant.pick("narrower", ((4, 9, 2), (5, 8, 3), (6, 11, 1)))
    for seed in range(3):
        g = variant.generator(f"apply, narrower {seed}")
        D, A, B, x = (torch.randn(*size, generator=g).double() for size in ((o,), (o, r), (r, i), (7, i)))
        S = A @ B
        for j in range(o):
            S[j, j] += D[j]
        same(call(apply, D, A, B, x.clone()), torch.einsum("oi,ai->ao", S, x), "apply with more inputs than outputs")

# %%
""" # BEGIN TEST CONFIG
points: 1
hidden: true
""" # END TEST CONFIG
def test_the_matrix_is_never_made_in_fp64(apply, variant):
    import torch

    from fsmerge_lite.course.grading import largest, same
    n, g = variant.pick("hidden large width", (300, 350, 400)), variant.generator("apply, large, hidden")
    D, A, B, x = (torch.randn(*size, generator=g).double() for size in ((n,), (n, 3), (3, n), (2, 4, n)))
    expected = x @ (torch.diag(D) + A @ B).T
    y, most = largest(apply, D, A, B, x.clone())
    same(y, expected, "the result of apply")
    assert most < n * n, f"apply makes a tensor of {most:,} numbers, as many as the matrix of {n} x {n}"

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## On weights
#
# From here on you may use `times`. It does what question 1 asks for, with the library. It is for questions 2 and
# 3 only.

# %%
from fsmerge_lite import Merge

@torch.no_grad()
def times(D, A, B, x):
    """(D + A B) x for each row of x (..., inputs). Gives (..., outputs)."""
    S = Merge(A.shape[0], B.shape[1], rank=A.shape[1]).to(x.dtype)
    S.load_state_dict({"D": D[None], "A": A[None], "B": B[None]})
    return S(x)

# %% [raw]
# # BEGIN QUESTION
# name: fold
# points: 3

# %% [markdown]
# ## Question 2: fold (3 points)
#
# Write `fold`. It folds a layer of $k$ originals, $W^* = \sum_i M_i W_i U_i$ and $b^* = \sum_i M_i b_i$. Each original
# has its own parts. All arguments are lists with one entry for each original:
#
# - `merges`: the parts $(D_i, A_i, B_i)$ of $M_i = D_i + A_i B_i$ as a tuple
# - `weights`: $W_i$, shape (outputs of original $i$, inputs of original $i$)
# - `biases`: $b_i$, shape (outputs of original $i$,)
# - `unmerges`: the parts $(E_i, F_i, G_i)$ of $U_i = E_i + F_i G_i$ as a tuple
#
# It returns the tuple $(W^*, b^*)$. Neither an $M_i$ nor a $U_i$ may be made as a whole. The originals may have
# different sizes. `times` multiplies a matrix with features, which are rows. Which rows are they for $M_i W_i$, and
# which for $W_i U_i$?

# %% [raw]
# # BEGIN SOLUTION

# %%
def fold(merges, weights, biases, unmerges):
    """W* and b* of one plain layer."""
    # BEGIN SOLUTION
    read = [times(E, G.mT, F.mT, W) for W, (E, F, G) in zip(weights, unmerges)]  # W U: each row of W times U^T
    weight = sum(times(*M, WU.mT).mT for M, WU in zip(merges, read))
    return weight, sum(times(*M, b) for M, b in zip(merges, biases))
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 0.75
""" # END TEST CONFIG
def test_the_weight_for_two_originals_of_one_size(fold, variant):
    import torch

    from fsmerge_lite.course.grading import call, same, shaped
    n = variant.pick("width of a fold", (5, 6, 7, 8))
    for seed in range(3):
        g = variant.generator(f"fold {seed}")
        merges, unmerges = ([tuple(torch.randn(*size, generator=g) / 2 for size in ((n,), (n, 2), (2, n)))
                             for _ in range(2)] for _ in range(2))
        W, b = list(torch.randn(2, n, n, generator=g) / 2), list(torch.randn(2, n, generator=g))
        S = [[torch.diag(D) + A @ B for D, A, B in parts] for parts in (merges, unmerges)]
        x = torch.eye(n)
        expected = sum(S[0][i] @ (W[i] @ (S[1][i] @ x)) for i in range(2))
        folded = call(fold, merges, W, b, unmerges)
        assert isinstance(folded, tuple | list) and len(folded) == 2, "fold returns two things: the weight and the bias"
        shaped(folded[0], (n, n), "the weight of fold")
        same(folded[0], expected, "the weight of fold")

# %%
""" # BEGIN TEST CONFIG
points: 0.25
""" # END TEST CONFIG
def test_the_bias_for_two_originals_of_one_size(fold, variant):
    import torch
    import torch.nn.functional as F

    from fsmerge_lite.course.grading import call, same
    n, g = variant.pick("width of a fold", (5, 6, 7, 8)), variant.generator("fold, bias")
    merges, unmerges = ([tuple(torch.randn(*size, generator=g) / 2 for size in ((n,), (n, 2), (2, n)))
                         for _ in range(2)] for _ in range(2))
    W, b = list(torch.randn(2, n, n, generator=g) / 2), list(torch.randn(2, n, generator=g))
    S = [[torch.diag(parts[0]) + parts[1] @ parts[2] for parts in each] for each in (merges, unmerges)]
    of_zero = sum(F.linear(F.linear(F.linear(torch.zeros(n), S[1][i]), W[i], b[i]), S[0][i]) for i in range(2))
    folded = call(fold, merges, W, b, unmerges)
    assert isinstance(folded, tuple | list) and len(folded) == 2, "fold returns two things: the weight and the bias"
    assert folded[1] is not None, "the bias of fold is None, but the originals have one"
    same(folded[1], of_zero, "the bias of fold (what the merged layer makes of the zero vector)")

# %%
""" # BEGIN TEST CONFIG
points: 0.25
""" # END TEST CONFIG
def test_no_merge_is_made(fold, variant):
    import torch

    from fsmerge_lite.course.grading import largest, same
    n, d, g = variant.pick("large outputs", (200, 250, 300)), 4, variant.generator("fold, many outputs")
    def parts(size):
        return [tuple(torch.randn(*s, generator=g) / 2 for s in ((size,), (size, 2), (2, size))) for _ in range(2)]
    merges, unmerges = parts(n), parts(d)
    W, b = ([torch.randn(*size, generator=g) for _ in range(2)] for size in ((n, d), (n,)))
    M, U = ([torch.diag(D) + A @ B for D, A, B in parts] for parts in (merges, unmerges))
    expected = sum(M[i] @ W[i] @ U[i] for i in range(2))
    folded, most = largest(fold, merges, W, b, unmerges)
    same(folded[0] / 10, expected / 10, "the weight of fold for many outputs")
    assert most < n * n, f"fold makes a tensor of {most:,} numbers, as many as an M of {n} x {n}"

# %%
""" # BEGIN TEST CONFIG
points: 0.25
""" # END TEST CONFIG
def test_no_unmerge_is_made(fold, variant):
    import torch

    from fsmerge_lite.course.grading import largest, same
    n, o, g = variant.pick("large inputs", (200, 250, 300)), 4, variant.generator("fold, many inputs")
    def parts(size):
        return [tuple(torch.randn(*s, generator=g) / 2 for s in ((size,), (size, 2), (2, size))) for _ in range(2)]
    merges, unmerges = parts(o), parts(n)
    W, b = ([torch.randn(*size, generator=g) for _ in range(2)] for size in ((o, n), (o,)))
    M, U = ([torch.diag(D) + A @ B for D, A, B in parts] for parts in (merges, unmerges))
    expected = sum(M[i] @ W[i] @ U[i] for i in range(2))
    folded, most = largest(fold, merges, W, b, unmerges)
    same(folded[0] / 10, expected / 10, "the weight of fold for many inputs")
    assert most < n * n, f"fold makes a tensor of {most:,} numbers, as many as a U of {n} x {n}"

# %%
""" # BEGIN TEST CONFIG
points: 0.75
hidden: true
""" # END TEST CONFIG
def test_the_weight_for_three_originals_of_other_sizes_in_fp64(fold, variant):
    import torch
    import torch.nn.functional as F

    from fsmerge_lite.course.grading import call, same, shaped
    o, d = variant.pick("hidden sizes of a fold", ((6, 5), (5, 6), (7, 4)))
    for seed in range(3):
        g = variant.generator(f"hidden fold {seed}")
        def structured(out, into, r, g=g):
            return tuple(torch.randn(*s, generator=g).double() for s in ((min(out, into),), (out, r), (r, into)))
        def written_out(D, A, B):
            S = A @ B
            for j in range(len(D)):
                S[j, j] += D[j]
            return S
        sizes = [(4, 8), (9, 3), (6, 5)]  # outputs, inputs
        merges = [structured(o, own, 1 + i) for i, (own, _) in enumerate(sizes)]
        unmerges = [structured(own, d, 3 - i) for i, (_, own) in enumerate(sizes)]
        W = [torch.randn(*size, generator=g).double() for size in sizes]
        b = [torch.randn(own, generator=g).double() for own, _ in sizes]
        x = torch.eye(d).double()
        expected = sum(F.linear(F.linear(F.linear(x, written_out(*U)), own), written_out(*M))
                       for M, own, U in zip(merges, W, unmerges))
        weight = call(fold, merges, W, b, unmerges)[0]
        shaped(weight, (o, d), "the weight of fold")
        same(F.linear(x, weight), expected, "what the folded weight makes of one-hot vectors")

# %%
""" # BEGIN TEST CONFIG
points: 0.25
hidden: true
""" # END TEST CONFIG
def test_the_bias_for_three_originals_in_fp64(fold, variant):
    import torch

    from fsmerge_lite.course.grading import call, same
    n, g = 6, variant.generator("hidden fold, bias")
    merges, unmerges = ([tuple(torch.randn(*size, generator=g).double() for size in ((n,), (n, 2), (2, n)))
                         for _ in range(3)] for _ in range(2))
    W, b = list(torch.randn(3, n, n, generator=g).double()), list(torch.randn(3, n, generator=g).double())
    expected = sum((torch.diag(D) + A @ B) @ own for (D, A, B), own in zip(merges, b))
    same(call(fold, merges, W, b, unmerges)[1], expected, "the bias of fold")

# %%
""" # BEGIN TEST CONFIG
points: 0.5
hidden: true
""" # END TEST CONFIG
def test_neither_is_made_for_three_originals_in_fp64(fold, variant):
    import torch

    from fsmerge_lite.course.grading import largest, same
    n = variant.pick("hidden large size", (240, 270, 320))
    for o, d in ((n, 5), (5, n)):
        g = variant.generator(f"hidden fold {o} {d}")
        merges, unmerges = ([tuple(torch.randn(*s, generator=g).double() / 2 for s in ((size,), (size, 3), (3, size)))
                             for _ in range(3)] for size in (o, d))
        W, b = ([torch.randn(*size, generator=g).double() for _ in range(3)] for size in ((o, d), (o,)))
        S = [[torch.diag(D) + A @ B for D, A, B in parts] for parts in (merges, unmerges)]
        expected = sum(S[0][i] @ W[i] @ S[1][i] for i in range(3))
        folded, most = largest(fold, merges, W, b, unmerges)
        same(folded[0], expected, "the weight of fold")
        assert most < n * n, f"fold makes a tensor of {most:,} numbers, as many as a matrix of {n} x {n}"

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [raw]
# # BEGIN QUESTION
# name: fold_shared
# points: 3

# %% [markdown]
# ## Question 3: the paper's shared form (3 points)
#
# In the paper one $A$ serves the $M$ of all originals, and one $G$ serves the $U$ of all originals:
#
# $$[M_1 \cdots M_k] = [D_1 \cdots D_k] + A\,[B_1 \cdots B_k], \qquad
# \begin{bmatrix} U_1 \\ \vdots \\ U_k \end{bmatrix} = \begin{bmatrix} E_1 \\ \vdots \\ E_k \end{bmatrix} +
# \begin{bmatrix} F_1 \\ \vdots \\ F_k \end{bmatrix} G.$$
#
# Write `fold_shared(merges, weights, biases, unmerges)`, which folds such a layer. `weights` and `biases` are the lists
# of question 2. The other two are tuples of three for all originals together:
#
# - `merges`: a list of the vectors $D_i$; $A$; and $[B_1 \cdots B_k]$ as one tensor
# - `unmerges`: a list of the vectors $E_i$; the $F_i$ one above the other as one tensor; and $G$
#
# It returns the tuple $(W^*, b^*)$. Again no matrix may be made as a whole, and sizes may differ. You may use `times`.

# %% [raw]
# # BEGIN SOLUTION

# %%
def fold_shared(merges, weights, biases, unmerges):
    """W* and b* of one plain layer. One A serves all M, and one G all U."""
    # BEGIN SOLUTION
    (D, A, B), (E, F, G) = merges, unmerges
    B = B.split([len(W) for W in weights], 1)
    F = F.split([W.shape[1] for W in weights])
    weight, bias = 0, 0
    for i, W in enumerate(weights):
        read = times(E[i], G.mT, F[i].mT, W)
        weight = weight + times(D[i], A, B[i], read.mT).mT
        bias = bias + times(D[i], A, B[i], biases[i])
    return weight, bias
    # END SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 0.75
""" # END TEST CONFIG
def test_the_weight_for_two_originals_of_one_size(fold_shared, variant):
    import torch

    from fsmerge_lite.course.grading import call, same, shaped
    n, r = variant.pick("width of a shared fold", (5, 6, 7, 8)), 2
    for seed in range(3):
        g = variant.generator(f"shared {seed}")
        D, E, A, B, F, G = (torch.randn(*size, generator=g) / 2
                            for size in ((2, n), (2, n), (n, r), (r, 2 * n), (2 * n, r), (r, n)))
        W, b = list(torch.randn(2, n, n, generator=g) / 2), list(torch.randn(2, n, generator=g))
        wide = torch.cat([torch.diag(own) for own in D], 1) + A @ B
        tall = torch.cat([torch.diag(own) for own in E]) + F @ G
        expected = wide @ torch.block_diag(*W) @ tall
        folded = call(fold_shared, (list(D), A, B), W, b, (list(E), F, G))
        assert isinstance(folded, tuple | list) and len(folded) == 2, "fold_shared returns the weight and the bias"
        shaped(folded[0], (n, n), "the weight of fold_shared")
        same(folded[0], expected, "the weight of fold_shared")

# %%
""" # BEGIN TEST CONFIG
points: 0.25
""" # END TEST CONFIG
def test_the_bias_for_two_originals_of_one_size(fold_shared, variant):
    import torch

    from fsmerge_lite.course.grading import call, same
    n, r, g = variant.pick("width of a shared fold", (5, 6, 7, 8)), 2, variant.generator("shared, bias")
    D, E, A, B, F, G = (torch.randn(*size, generator=g) / 2
                        for size in ((2, n), (2, n), (n, r), (r, 2 * n), (2 * n, r), (r, n)))
    W, b = list(torch.randn(2, n, n, generator=g) / 2), list(torch.randn(2, n, generator=g))
    expected = (torch.cat([torch.diag(own) for own in D], 1) + A @ B) @ torch.cat(b)
    folded = call(fold_shared, (list(D), A, B), W, b, (list(E), F, G))
    assert isinstance(folded, tuple | list) and len(folded) == 2, "fold_shared returns the weight and the bias"
    assert folded[1] is not None, "the bias of fold_shared is None, but the originals have one"
    same(folded[1], expected, "the bias of fold_shared")

# %%
""" # BEGIN TEST CONFIG
points: 1.25
hidden: true
""" # END TEST CONFIG
def test_the_weight_for_three_originals_of_other_sizes_in_fp64(fold_shared, variant):
    import torch

    from fsmerge_lite.course.grading import call, same, shaped
    o, d = variant.pick("hidden sizes of a shared fold", ((6, 5), (5, 6), (7, 4)))
    for seed in range(3):
        g = variant.generator(f"hidden shared {seed}")
        sizes = [(8, 4), (3, 9), (5, 6)]  # outputs, inputs
        outputs, inputs = sum(own for own, _ in sizes), sum(own for _, own in sizes)
        A, B, F, G = (torch.randn(*s, generator=g).double() for s in ((o, 3), (3, outputs), (inputs, 2), (2, d)))
        D = [torch.randn(min(own, o), generator=g).double() for own, _ in sizes]
        E = [torch.randn(min(own, d), generator=g).double() for _, own in sizes]
        W = [torch.randn(*size, generator=g).double() for size in sizes]
        b = [torch.randn(own, generator=g).double() for own, _ in sizes]
        wide, tall, column, row = A @ B, F @ G, 0, 0
        for i, size in enumerate(sizes):
            for j in range(len(D[i])):
                wide[j, column + j] += D[i][j]
            for j in range(len(E[i])):
                tall[row + j, j] += E[i][j]
            column, row = column + size[0], row + size[1]
        weight = call(fold_shared, (D, A, B), W, b, (E, F, G))[0]
        shaped(weight, (o, d), "the weight of fold_shared")
        same(weight, wide @ torch.block_diag(*W) @ tall, "the weight of fold_shared")

# %%
""" # BEGIN TEST CONFIG
points: 0.25
hidden: true
""" # END TEST CONFIG
def test_the_bias_for_three_originals_in_fp64(fold_shared, variant):
    import torch

    from fsmerge_lite.course.grading import call, same
    n, r, g = 6, 3, variant.generator("hidden shared, bias")
    D, E, A, B, F, G = (torch.randn(*size, generator=g).double()
                        for size in ((3, n), (3, n), (n, r), (r, 3 * n), (3 * n, r), (r, n)))
    W, b = list(torch.randn(3, n, n, generator=g).double()), list(torch.randn(3, n, generator=g).double())
    expected = (torch.cat([torch.diag(own) for own in D], 1) + A @ B) @ torch.cat(b)
    same(call(fold_shared, (list(D), A, B), W, b, (list(E), F, G))[1], expected, "the bias of fold_shared")

# %%
""" # BEGIN TEST CONFIG
points: 0.5
hidden: true
""" # END TEST CONFIG
def test_no_matrix_is_made(fold_shared, variant):
    import torch

    from fsmerge_lite.course.grading import largest, same
    n = variant.pick("hidden large size of a shared fold", (220, 260, 310))
    for o, d in ((n, 4), (4, n)):
        g = variant.generator(f"hidden shared {o} {d}")
        D, E, A, B, F, G = (torch.randn(*size, generator=g).double() / 2
                            for size in ((2, o), (2, d), (o, 2), (2, 2 * o), (2 * d, 2), (2, d)))
        W, b = ([torch.randn(*size, generator=g).double() for _ in range(2)] for size in ((o, d), (o,)))
        wide = torch.cat([torch.diag(own) for own in D], 1) + A @ B
        tall = torch.cat([torch.diag(own) for own in E]) + F @ G
        folded, most = largest(fold_shared, (list(D), A, B), W, b, (list(E), F, G))
        same(folded[0], wide @ torch.block_diag(*W) @ tall, "the weight of fold_shared")
        assert most < n * n, f"fold_shared makes a tensor of {most:,} numbers, as many as a matrix of {n} x {n}"

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION

# %% [markdown]
# ## A SuperNet of your class
#
# The last question is about a SuperNet of vision transformers. Its sizes are your class's own:

# %%
width, depth = variant.pick("width of the vit", range(48, 136, 4)), variant.pick("blocks", range(3, 9))
ratio, k = variant.pick("hidden units per channel", (2, 3, 4)), variant.pick("originals", (2, 3, 4, 5))
rank = variant.pick("rank of the vit", range(4, 17))
print(f"{k} originals of width {width} with {depth} blocks, {ratio * width} hidden units in each MLP")
print(f"rank {rank}, and {ratio * rank} on the hidden units")

# %% [raw]
# # BEGIN QUESTION
# name: count_numbers
# points: 2

# %% [markdown]
# ## Question 4: count (2 points)
#
# How many numbers does this SuperNet train? All its $M$ and $U$ are a diagonal plus a low rank, at the places of
# lesson 05. The merged model has the originals' width. Its LayerNorms are trained too, two in each block and one at the
# end. Each of them has a weight and a bias.
#
# - `own`: each original has its own factors at each place, as in question 2
# - `shared`: the paper's form of question 3 at each place, the output matrices $U_{out,i}$ included
#
# Write whole numbers, or expressions that give them. The test here only looks whether they can be right.

# %% [raw]
# # BEGIN SOLUTION

# %%
# BEGIN SOLUTION NO PROMPT
def of_a_place(size, r, low_ranks):
    return k * size + low_ranks * size * r

def of_a_vit(low_ranks):
    stream, hidden = of_a_place(width, rank, low_ranks), of_a_place(ratio * width, ratio * rank, low_ranks)
    return (8 * depth + 2) * stream + 2 * depth * hidden + (2 * depth + 1) * 2 * width
# END SOLUTION
own = of_a_vit(2 * k)  # SOLUTION
shared = of_a_vit(k + 1)  # SOLUTION

# %% [raw]
# # END SOLUTION

# %% [raw]
# # BEGIN TESTS

# %%
""" # BEGIN TEST CONFIG
points: 0
""" # END TEST CONFIG
def test_whole_numbers(own, shared):
    for name, found in {"own": own, "shared": shared}.items():
        assert found is not None and found is not ..., f"{name} is not there yet: replace the three dots"
        assert isinstance(found, int | float) and found > 0 and found == int(found), f"{name} is not a whole number > 0"
    assert shared < own, "what is shared must be counted once only, so shared is smaller than own"

# %%
""" # BEGIN TEST CONFIG
points: 1
hidden: true
""" # END TEST CONFIG
def test_own(own, variant):
    from torch import nn

    import fsmerge_lite as fsm
    width, depth = variant.pick("width of the vit", range(48, 136, 4)), variant.pick("blocks", range(3, 9))
    ratio, k = variant.pick("hidden units per channel", (2, 3, 4)), variant.pick("originals", (2, 3, 4, 5))
    rank, vit = variant.pick("rank of the vit", range(4, 17)), fsm.vit(width, depth, num_heads=4, mlp_ratio=ratio)
    norms = [module for module in vit.modules() if isinstance(module, nn.LayerNorm)]
    expected = sum(p.numel() for norm in norms for p in norm.parameters())
    sizes = [width, width]  # the M of the patch embedding and the U of the output
    for name, layer in vit.named_modules():
        if isinstance(layer, nn.Linear):
            sizes += [layer.in_features, *([width] * 3 if "qkv" in name else [layer.out_features])]
    for size in sizes:
        place = fsm.Merge(size, size, rank=rank * size // width)
        expected += k * (place.D.numel() + place.A.numel() + place.B.numel())
    assert own == expected, "the count with factors of each original's own is not right"

# %%
""" # BEGIN TEST CONFIG
points: 1
hidden: true
""" # END TEST CONFIG
def test_shared(shared, variant):
    from torch import nn

    import fsmerge_lite as fsm
    width, depth = variant.pick("width of the vit", range(48, 136, 4)), variant.pick("blocks", range(3, 9))
    ratio, k = variant.pick("hidden units per channel", (2, 3, 4)), variant.pick("originals", (2, 3, 4, 5))
    rank, vit = variant.pick("rank of the vit", range(4, 17)), fsm.vit(width, depth, num_heads=4, mlp_ratio=ratio)
    norms = [module for module in vit.modules() if isinstance(module, nn.LayerNorm)]
    expected = sum(p.numel() for norm in norms for p in norm.parameters())
    sizes = [width, width]  # the M of the patch embedding and the U of the output
    for name, layer in vit.named_modules():
        if isinstance(layer, nn.Linear):
            sizes += [layer.in_features, *([width] * 3 if "qkv" in name else [layer.out_features])]
    for size in sizes:
        place = fsm.Merge(size, size, rank=rank * size // width)
        expected += k * place.D.numel() + place.A.numel() + k * place.B.numel()
    assert shared == expected, "the count with one factor for all is not right"

# %% [raw]
# # END TESTS

# %% [raw]
# # END QUESTION
