"""Typical wrong answers to assignment 1: what is wrong | the questions that lose points, with what they still get."""

# %% M and U swapped (the bias of square layers is right) | fold_layer 0.5
def fold_layer(weights, biases, merges, unmerges):
    weight = sum(U @ W @ M for W, M, U in zip(weights, merges, unmerges))
    return weight, sum(M @ b for M, b in zip(merges, biases))

# %% the weights transposed (the bias of square layers is right) | fold_layer 0.5
def fold_layer(weights, biases, merges, unmerges):
    weight = sum(M @ W.T @ U for W, M, U in zip(weights, merges, unmerges))
    parts = [M @ b for M, b in zip(merges, biases) if b is not None]
    return weight, sum(parts) if parts else None

# %% the result transposed | fold_layer 0.5
def fold_layer(weights, biases, merges, unmerges):
    weight = sum(M @ W @ U for W, M, U in zip(weights, merges, unmerges)).T
    parts = [M @ b for M, b in zip(merges, biases) if b is not None]
    return weight, sum(parts) if parts else None

# %% the bias is forgotten | fold_layer 2.5
def fold_layer(weights, biases, merges, unmerges):
    return sum(M @ W @ U for W, M, U in zip(weights, merges, unmerges)), None

# %% the bias goes through U, where the sizes allow it | fold_layer 2.5
def fold_layer(weights, biases, merges, unmerges):
    weight = sum(M @ W @ U for W, M, U in zip(weights, merges, unmerges))
    parts = [M @ (U @ b) if len(b) == U.shape[1] == M.shape[1] else M @ b * 0
             for M, U, b in zip(merges, unmerges, biases) if b is not None]
    return weight, sum(parts) if parts else None

# %% the bias does not go through M | fold_layer 2.5
def fold_layer(weights, biases, merges, unmerges):
    weight = sum(M @ W @ U for W, M, U in zip(weights, merges, unmerges))
    parts = [b for b in biases if b is not None]
    return weight, sum(parts) if parts else None

# %% an original without a bias raises an error | fold_layer 2.5
def fold_layer(weights, biases, merges, unmerges):
    weight = sum(M @ W @ U for W, M, U in zip(weights, merges, unmerges))
    return weight, sum(M @ b for M, b in zip(merges, biases))

# %% no bias gives zeros in the place of None | fold_layer 3.5
def fold_layer(weights, biases, merges, unmerges):
    weight = sum(M @ W @ U for W, M, U in zip(weights, merges, unmerges))
    return weight, sum(M @ (W[:, 0] * 0 if b is None else b) for M, b, W in zip(merges, biases, weights))

# %% first original only | fold_layer 0
def fold_layer(weights, biases, merges, unmerges):
    return merges[0] @ weights[0] @ unmerges[0], None if biases[0] is None else merges[0] @ biases[0]

# %% the average of the originals | fold_layer 0
def fold_layer(weights, biases, merges, unmerges):
    k = len(weights)
    weight = sum(M @ W @ U for W, M, U in zip(weights, merges, unmerges)) / k
    parts = [M @ b / k for M, b in zip(merges, biases) if b is not None]
    return weight, sum(parts) if parts else None

# %% raises an error | fold_layer 0
def fold_layer(weights, biases, merges, unmerges):
    return weights.shape

# %% never ends | fold_layer 0
def fold_layer(weights, biases, merges, unmerges):
    while True:
        pass

# %% first original only | fold_mlp 0
def fold_mlp(originals, matrices):
    (fc1, activation, fc2), (U1, M1, U2, M2) = originals[0], matrices[0]
    def of(layer, U, M):
        return plain(M @ layer.weight @ U, None if layer.bias is None else M @ layer.bias)
    return nn.Sequential(of(fc1, U1, M1), activation, of(fc2, U2, M2))

# %% the activation stays in each original, before M | fold_mlp 0
def fold_mlp(originals, matrices):
    first = torch.cat([fc1.weight @ U for (fc1, _, _), (U, _, _, _) in zip(originals, matrices)])
    bias = torch.cat([fc1.weight[:, 0] * 0 if fc1.bias is None else fc1.bias for fc1, _, _ in originals])
    merge = torch.cat([M for _, M, _, _ in matrices], 1)
    second = sum(M @ fc2.weight @ U for (_, _, fc2), (_, _, U, M) in zip(originals, matrices)) @ merge
    parts = [M @ fc2.bias for (_, _, fc2), (_, _, _, M) in zip(originals, matrices) if fc2.bias is not None]
    return nn.Sequential(plain(first, bias), originals[0][1], plain(second, sum(parts) if parts else None))

# %% one layer, folded across the activation | fold_mlp 0
def fold_mlp(originals, matrices):
    weight = sum(M2 @ fc2.weight @ U2 @ M1 @ fc1.weight @ U1
                 for (fc1, _, fc2), (U1, M1, U2, M2) in zip(originals, matrices))
    return nn.Sequential(plain(weight, None))

# %% the unfolded functions, in no plain layer | fold_mlp 0
def fold_mlp(originals, matrices):
    def merged(x):
        pairs = list(zip(originals, matrices))
        h = pairs[0][0][1](sum(F.linear(o[0](F.linear(x, U)), M) for o, (U, M, _, _) in pairs))
        return sum(F.linear(o[2](F.linear(h, U)), M) for o, (_, _, U, M) in pairs)
    return merged

# %% the second layer's bias is forgotten | fold_mlp 1
def fold_mlp(originals, matrices):
    first = sum(M @ fc1.weight @ U for (fc1, _, _), (U, M, _, _) in zip(originals, matrices))
    parts = [M @ fc1.bias for (fc1, _, _), (_, M, _, _) in zip(originals, matrices) if fc1.bias is not None]
    second = sum(M @ fc2.weight @ U for (_, _, fc2), (_, _, U, M) in zip(originals, matrices))
    return nn.Sequential(plain(first, sum(parts) if parts else None), originals[0][1], plain(second, None))

# %% GELU whatever the originals have | fold_mlp 1
def fold_mlp(originals, matrices):
    def of(j, U, M):
        pairs = [(original[j], each[U], each[M]) for original, each in zip(originals, matrices)]
        parts = [M @ layer.bias for layer, _, M in pairs if layer.bias is not None]
        return plain(sum(M @ layer.weight @ U for layer, U, M in pairs), sum(parts) if parts else None)
    return nn.Sequential(of(0, 0, 1), nn.GELU(), of(2, 2, 3))

# %% always in 32 bits | fold_mlp 2
def fold_mlp(originals, matrices):
    def of(j, U, M):
        pairs = [(original[j], each[U], each[M]) for original, each in zip(originals, matrices)]
        parts = [M @ layer.bias for layer, _, M in pairs if layer.bias is not None]
        return plain(sum(M @ layer.weight @ U for layer, U, M in pairs).float(), sum(parts).float() if parts else None)
    return nn.Sequential(of(0, 0, 1), originals[0][1], of(2, 2, 3))

# %% raises an error | fold_mlp 0
def fold_mlp(originals, matrices):
    return nn.Sequential(originals[0].fc1, nn.GELU(), originals[0].fc2)

# %% the LayerNorm is folded into the weights and dropped | fold_after_norm 0
def fold_after_norm(norm, originals, matrices):
    def fc1(x):
        return sum(F.linear(each[1](F.linear(norm(x), U)), M) for each, (U, M, _, _) in zip(originals, matrices))
    def fc2(h):
        return sum(F.linear(each[3](F.linear(h, U)), M) for each, (_, _, U, M) in zip(originals, matrices))
    first, dtype = as_linear(fc1, len(norm.weight), norm.weight.dtype), norm.weight.dtype
    return nn.Sequential(first, originals[0][2], as_linear(fc2, first.out_features, dtype))

# %% only the weight and the bias of the LayerNorm are kept, in fc1 | fold_after_norm 0
def fold_after_norm(norm, originals, matrices):
    def fc1(x):
        x = x * norm.weight + norm.bias
        return sum(F.linear(each[1](F.linear(x, U)), M) for each, (U, M, _, _) in zip(originals, matrices))
    def fc2(h):
        return sum(F.linear(each[3](F.linear(h, U)), M) for each, (_, _, U, M) in zip(originals, matrices))
    first, dtype = as_linear(fc1, len(norm.weight), norm.weight.dtype), norm.weight.dtype
    return nn.Sequential(first, originals[0][2], as_linear(fc2, first.out_features, dtype))

# %% the first original's LayerNorm | fold_after_norm 0
def fold_after_norm(norm, originals, matrices):
    def fc1(x):
        return sum(F.linear(each[1](F.linear(x, U)), M) for each, (U, M, _, _) in zip(originals, matrices))
    def fc2(h):
        return sum(F.linear(each[3](F.linear(h, U)), M) for each, (_, _, U, M) in zip(originals, matrices))
    first, dtype = as_linear(fc1, len(norm.weight), norm.weight.dtype), norm.weight.dtype
    return nn.Sequential(originals[0][0], first, originals[0][2], as_linear(fc2, first.out_features, dtype))

# %% everything in one layer | fold_after_norm 0
def fold_after_norm(norm, originals, matrices):
    def block(x):
        pairs = list(zip(originals, matrices))
        h = originals[0][2](sum(F.linear(each[1](F.linear(norm(x), U)), M) for each, (U, M, _, _) in pairs))
        return sum(F.linear(each[3](F.linear(h, U)), M) for each, (_, _, U, M) in pairs)
    return nn.Sequential(as_linear(block, len(norm.weight), norm.weight.dtype))

# %% a LayerNorm without the merged one's weight and bias | fold_after_norm 0
def fold_after_norm(norm, originals, matrices):
    def fc1(x):
        return sum(F.linear(each[1](F.linear(x, U)), M) for each, (U, M, _, _) in zip(originals, matrices))
    def fc2(h):
        return sum(F.linear(each[3](F.linear(h, U)), M) for each, (_, _, U, M) in zip(originals, matrices))
    first, dtype = as_linear(fc1, len(norm.weight), norm.weight.dtype), norm.weight.dtype
    new = nn.LayerNorm(len(norm.weight), dtype=dtype)
    return nn.Sequential(new, first, originals[0][2], as_linear(fc2, first.out_features, dtype))

# %% a new LayerNorm, which has another eps | fold_after_norm 1
def fold_after_norm(norm, originals, matrices):
    def fc1(x):
        return sum(F.linear(each[1](F.linear(x, U)), M) for each, (U, M, _, _) in zip(originals, matrices))
    def fc2(h):
        return sum(F.linear(each[3](F.linear(h, U)), M) for each, (_, _, U, M) in zip(originals, matrices))
    first, dtype = as_linear(fc1, len(norm.weight), norm.weight.dtype), norm.weight.dtype
    new = nn.LayerNorm(len(norm.weight), dtype=dtype)
    new.load_state_dict(norm.state_dict())
    return nn.Sequential(new, first, originals[0][2], as_linear(fc2, first.out_features, dtype))

# %% right in another way: the norm's weight and bias are in fc1, and normalizing stays | fold_after_norm 2
def fold_after_norm(norm, originals, matrices):
    def fc1(x):
        x = x * norm.weight + norm.bias
        return sum(F.linear(each[1](F.linear(x, U)), M) for each, (U, M, _, _) in zip(originals, matrices))
    def fc2(h):
        return sum(F.linear(each[3](F.linear(h, U)), M) for each, (_, _, U, M) in zip(originals, matrices))
    first, dtype = as_linear(fc1, len(norm.weight), norm.weight.dtype), norm.weight.dtype
    new = nn.LayerNorm(len(norm.weight), norm.eps, elementwise_affine=False)
    return nn.Sequential(new, first, originals[0][2], as_linear(fc2, first.out_features, dtype))

# %% raises an error | fold_after_norm 0
def fold_after_norm(norm, originals, matrices):
    return norm(originals)

# %% the biases are not counted | count_numbers 0.5
frozen = sum(o * d for o, d in sizes)
trained = sum(outputs * o + d * inputs for o, d in sizes)
folded = outputs * inputs

# %% one original only | count_numbers 0.25
frozen = sizes[0][0] * sizes[0][1] + sizes[0][0]
trained = outputs * sizes[0][0] + sizes[0][1] * inputs
folded = outputs * inputs + outputs

# %% M and U confused | count_numbers 0.5
frozen = sum(o * d + o for o, d in sizes)
trained = sum(outputs * d + o * inputs for o, d in sizes)
folded = outputs * inputs + outputs

# %% one too many | count_numbers 0.5
frozen = sum(o * d + o for o, d in sizes)
trained = sum(outputs * o + d * inputs for o, d in sizes) + 1
folded = outputs * inputs + outputs
