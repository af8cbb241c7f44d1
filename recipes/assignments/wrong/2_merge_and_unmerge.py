"""Typical wrong answers to assignment 2: what is wrong | the questions that lose points, with what they still get."""

# %% the matrix is made as a whole, the numbers are right | apply 2.5
def apply(D, A, B, x):
    S = A @ B
    S[range(len(D)), range(len(D))] += D
    return x @ S.mT

# %% the low rank is thin, but D is a full matrix | apply 2.5
def apply(D, A, B, x):
    full = torch.zeros(len(A), B.shape[1], dtype=x.dtype)
    full.diagonal().copy_(D)
    return x @ full.mT + x @ B.mT @ A.mT

# %% A B is made, the diagonal is not | apply 2.5
def apply(D, A, B, x):
    y, n = x @ (A @ B).mT, len(D)
    return torch.cat([y[..., :n] + D * x[..., :n], y[..., n:]], -1)

# %% A and B swapped | apply 0
def apply(D, A, B, x):
    return D * x + x @ A @ B

# %% the diagonal is forgotten | apply 0
def apply(D, A, B, x):
    return x @ B.mT @ A.mT

# %% the low rank is forgotten | apply 0
def apply(D, A, B, x):
    y = torch.zeros(*x.shape[:-1], len(A), dtype=x.dtype)
    y[..., :len(D)] = D * x[..., :len(D)]
    return y

# %% D is of the wrong length when sizes differ | apply 2.5
def apply(D, A, B, x):
    return D * x + x @ B.mT @ A.mT

# %% a D of the outputs' length, filled with ones | apply 3.25
def apply(D, A, B, x):
    D = torch.cat([D, D.new_ones(len(A) - len(D))])
    x_there = torch.cat([x, x[..., :1].expand(*x.shape[:-1], max(0, len(A) - x.shape[-1]))], -1)[..., :len(A)]
    return D * x_there + x @ B.mT @ A.mT

# %% only for more outputs than inputs | apply 3.25
def apply(D, A, B, x):
    y = x @ B.mT @ A.mT
    y[..., :x.shape[-1]] += D * x
    return y

# %% raises an error | apply 0
def apply(D, A, B, x):
    return D @ x + A @ B @ x.unknown

# %% never ends | apply 0
def apply(D, A, B, x):
    while True:
        pass

# %% right in another way: from the left, on columns | apply 4
def apply(D, A, B, x):
    y, n = (A @ (B @ x.mT)).mT.clone(), len(D)
    y[..., :n] += D * x[..., :n]
    return y

# %% M and U are made as a whole, the numbers are right | fold 2
def fold(merges, weights, biases, unmerges):
    def whole(D, A, B):
        S = A @ B
        S[range(len(D)), range(len(D))] += D
        return S
    weight = sum(whole(*M) @ W @ whole(*U) for M, W, U in zip(merges, weights, unmerges))
    return weight, sum(whole(*M) @ b for M, b in zip(merges, biases))

# %% only U is made as a whole | fold 2.25
def fold(merges, weights, biases, unmerges):
    def whole(D, A, B):
        S = A @ B
        S[range(len(D)), range(len(D))] += D
        return S
    weight = sum(times(*M, (W @ whole(*U)).mT).mT for M, W, U in zip(merges, weights, unmerges))
    return weight, sum(times(*M, b) for M, b in zip(merges, biases))

# %% times of the identity, which makes M as a whole | fold 2.25
def fold(merges, weights, biases, unmerges):
    def whole(D, A, B):
        return times(D, A, B, torch.eye(B.shape[1], dtype=A.dtype)).mT
    weight = sum(whole(*M) @ times(E, G.mT, F.mT, W) for M, W, (E, F, G) in zip(merges, weights, unmerges))
    return weight, sum(whole(*M) @ b for M, b in zip(merges, biases))

# %% A and B swapped | fold 0
def fold(merges, weights, biases, unmerges):
    merges = [(D, B.mT, A.mT) for D, A, B in merges]
    read = [times(E, G.mT, F.mT, W) for W, (E, F, G) in zip(weights, unmerges)]
    weight = sum(times(*M, WU.mT).mT for M, WU in zip(merges, read))
    return weight, sum(times(*M, b) for M, b in zip(merges, biases))

# %% W times the transpose of U (the bias is right) | fold 0.5
def fold(merges, weights, biases, unmerges):
    read = [times(*U, W) if W.shape[1] == U[2].shape[1] else W[:, :1] * U[2][:1] for W, U in zip(weights, unmerges)]
    weight = sum(times(*M, WU.mT).mT for M, WU in zip(merges, read))
    return weight, sum(times(*M, b) for M, b in zip(merges, biases))

# %% the diagonals are forgotten | fold 0
def fold(merges, weights, biases, unmerges):
    weight = sum((A @ (B @ W @ F)) @ G for (_, A, B), W, (_, F, G) in zip(merges, weights, unmerges))
    return weight, sum(A @ (B @ b) for (_, A, B), b in zip(merges, biases))

# %% the products of diagonal and low rank are forgotten (the bias is right) | fold 0.5
def fold(merges, weights, biases, unmerges):
    weight = 0
    for (D, A, B), W, (E, F, G) in zip(merges, weights, unmerges):
        part = (A @ (B @ W @ F)) @ G
        n, m = min(len(D), len(part)), min(len(E), part.shape[1])
        part[:n, :m] += D[:n, None] * W[:n, :m] * E[:m]
        weight = weight + part
    return weight, sum(times(*M, b) for M, b in zip(merges, biases))

# %% A of the first original for all | fold 0
def fold(merges, weights, biases, unmerges):
    A = merges[0][1]
    read = [times(E, G.mT, F.mT, W) for W, (E, F, G) in zip(weights, unmerges)]
    weight = sum(times(D, A, B, WU.mT).mT for (D, _, B), WU in zip(merges, read))
    return weight, sum(times(D, A, B, b) for (D, _, B), b in zip(merges, biases))

# %% first original only | fold 0
def fold(merges, weights, biases, unmerges):
    E, F, G = unmerges[0]
    return times(*merges[0], times(E, G.mT, F.mT, weights[0]).mT).mT, times(*merges[0], biases[0])

# %% the bias is forgotten | fold 2.5
def fold(merges, weights, biases, unmerges):
    read = [times(E, G.mT, F.mT, W) for W, (E, F, G) in zip(weights, unmerges)]
    return sum(times(*M, WU.mT).mT for M, WU in zip(merges, read)), None

# %% only for equal sizes | fold 2.25
def fold(merges, weights, biases, unmerges):
    weight, bias = 0, 0
    for (D, A, B), W, b, (E, F, G) in zip(merges, weights, biases, unmerges):
        read = W * E + (W @ F) @ G
        weight = weight + D[:, None] * read + A @ (B @ read)
        bias = bias + D * b + A @ (B @ b)
    return weight, bias

# %% raises an error | fold 0
def fold(merges, weights, biases, unmerges):
    return sum(M @ W @ U for M, W, U in zip(merges, weights, unmerges))

# %% right in another way: the four products, without times | fold 3
def fold(merges, weights, biases, unmerges):
    weight, bias = 0, 0
    for (D, A, B), W, b, (E, F, G) in zip(merges, weights, biases, unmerges):
        read = (W @ F) @ G
        read[:, :len(E)] += W[:, :len(E)] * E
        part, own = A @ (B @ read), A @ (B @ b)
        part[:len(D)] += D[:, None] * read[:len(D)]
        own[:len(D)] += D * b[:len(D)]
        weight, bias = weight + part, bias + own
    return weight, bias

# %% the wide and the tall matrix are made as a whole | fold_shared 2.5
def fold_shared(merges, weights, biases, unmerges):
    (D, A, B), (E, F, G) = merges, unmerges
    wide, tall, column, row = A @ B, F @ G, 0, 0
    for own_D, own_E, W in zip(D, E, weights):
        wide[range(len(own_D)), range(column, column + len(own_D))] += own_D
        tall[range(row, row + len(own_E)), range(len(own_E))] += own_E
        column, row = column + len(W), row + W.shape[1]
    return wide @ torch.block_diag(*weights) @ tall, wide @ torch.cat(biases)

# %% B of the first original for all (U is right) | fold_shared 0
def fold_shared(merges, weights, biases, unmerges):
    (D, A, B), (E, F, G) = merges, unmerges
    F, weight, bias = F.split([W.shape[1] for W in weights]), 0, 0
    for i, W in enumerate(weights):
        first = B[:, :len(W)]
        weight = weight + times(D[i], A, first, times(E[i], G.mT, F[i].mT, W).mT).mT
        bias = bias + times(D[i], A, first, biases[i])
    return weight, bias

# %% F of the first original for all (the bias is right) | fold_shared 0.5
def fold_shared(merges, weights, biases, unmerges):
    (D, A, B), (E, F, G) = merges, unmerges
    B, weight, bias = B.split([len(W) for W in weights], 1), 0, 0
    for i, W in enumerate(weights):
        first = F[:W.shape[1]]
        weight = weight + times(D[i], A, B[i], times(E[i], G.mT, first.mT, W).mT).mT
        bias = bias + times(D[i], A, B[i], biases[i])
    return weight, bias

# %% split into equal parts | fold_shared 1.75
def fold_shared(merges, weights, biases, unmerges):
    (D, A, B), (E, F, G) = merges, unmerges
    B, F, weight, bias = B.chunk(len(weights), 1), F.chunk(len(weights)), 0, 0
    for i, W in enumerate(weights):
        weight = weight + times(D[i], A, B[i], times(E[i], G.mT, F[i].mT, W).mT).mT
        bias = bias + times(D[i], A, B[i], biases[i])
    return weight, bias

# %% A serves the first original only | fold_shared 0
def fold_shared(merges, weights, biases, unmerges):
    (D, A, B), (E, F, G) = merges, unmerges
    B, F = B.split([len(W) for W in weights], 1), F.split([W.shape[1] for W in weights])
    weight, bias = 0, 0
    for i, W in enumerate(weights):
        tall = A if i == 0 else A * 0
        weight = weight + times(D[i], tall, B[i], times(E[i], G.mT, F[i].mT, W).mT).mT
        bias = bias + times(D[i], tall, B[i], biases[i])
    return weight, bias

# %% the diagonals are forgotten | fold_shared 0
def fold_shared(merges, weights, biases, unmerges):
    (_, A, B), (_, F, G) = merges, unmerges
    B, F = B.split([len(W) for W in weights], 1), F.split([W.shape[1] for W in weights])
    weight = A @ sum(own_B @ W @ own_F for own_B, W, own_F in zip(B, weights, F)) @ G
    return weight, A @ sum(own_B @ b for own_B, b in zip(B, biases))

# %% first original only | fold_shared 0
def fold_shared(merges, weights, biases, unmerges):
    (D, A, B), (E, F, G), W = merges, unmerges, weights[0]
    B, F = B[:, :len(W)], F[:W.shape[1]]
    return times(D[0], A, B, times(E[0], G.mT, F.mT, W).mT).mT, times(D[0], A, B, biases[0])

# %% the bias is forgotten | fold_shared 2.5
def fold_shared(merges, weights, biases, unmerges):
    (D, A, B), (E, F, G) = merges, unmerges
    B, F = B.split([len(W) for W in weights], 1), F.split([W.shape[1] for W in weights])
    read = [times(E[i], G.mT, F[i].mT, W) for i, W in enumerate(weights)]
    return sum(times(D[i], A, B[i], read[i].mT).mT for i in range(len(weights))), None

# %% raises an error | fold_shared 0
def fold_shared(merges, weights, biases, unmerges):
    return merges.A

# %% right in another way: the low ranks of all in one product | fold_shared 3
def fold_shared(merges, weights, biases, unmerges):
    (D, A, B), (E, F, G) = merges, unmerges
    B, F = B.split([len(W) for W in weights], 1), F.split([W.shape[1] for W in weights])
    def left(i, W):
        result = A @ (B[i] @ W)
        result[:len(D[i])] += D[i][:, None] * W[:len(D[i])]
        return result
    weight = sum(left(i, W @ F[i]) for i, W in enumerate(weights)) @ G
    for i, W in enumerate(weights):
        n = len(E[i])
        weight[:, :n] += left(i, W[:, :n] * E[i])
    return weight, sum(left(i, b[:, None])[:, 0] for i, b in enumerate(biases))

# %% the norms are not counted | count_numbers 0
own = (8 * depth + 2) * k * (width + 2 * width * rank) + 2 * depth * k * ratio * width * (1 + 2 * ratio * rank)
shared = ((8 * depth + 2) * width * (k + (k + 1) * rank)
          + 2 * depth * ratio * width * (k + (k + 1) * ratio * rank))

# %% the rank of the stream on the hidden units too | count_numbers 0
norms = (2 * depth + 1) * 2 * width
own = (8 * depth + 2) * k * (width + 2 * width * rank) + 2 * depth * k * ratio * width * (1 + 2 * rank) + norms
shared = ((8 * depth + 2) * width * (k + (k + 1) * rank)
          + 2 * depth * ratio * width * (k + (k + 1) * rank) + norms)

# %% one A and one B for all in the shared form | count_numbers 1
norms = (2 * depth + 1) * 2 * width
own = (8 * depth + 2) * k * (width + 2 * width * rank) + 2 * depth * k * ratio * width * (1 + 2 * ratio * rank) + norms
shared = ((8 * depth + 2) * width * (k + 2 * rank) + 2 * depth * ratio * width * (k + 2 * ratio * rank) + norms)

# %% the patch embedding and the output matrices are not counted | count_numbers 0
norms = (2 * depth + 1) * 2 * width
own = 8 * depth * k * (width + 2 * width * rank) + 2 * depth * k * ratio * width * (1 + 2 * ratio * rank) + norms
shared = 8 * depth * width * (k + (k + 1) * rank) + 2 * depth * ratio * width * (k + (k + 1) * ratio * rank) + norms

# %% the last norm is not counted, so both are close | count_numbers 0
norms = 2 * depth * 2 * width
own = (8 * depth + 2) * k * (width + 2 * width * rank) + 2 * depth * k * ratio * width * (1 + 2 * ratio * rank) + norms
shared = ((8 * depth + 2) * width * (k + (k + 1) * rank)
          + 2 * depth * ratio * width * (k + (k + 1) * ratio * rank) + norms)
