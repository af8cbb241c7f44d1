"""Structured matrices against dense ones, and layers against the sums they stand for."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from models_for_tests import randomised
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fsmerge_lite.layers import SuperLinear
from fsmerge_lite.matrices import STRUCTURES, Merge, Structured, Unmerge


def by_hand(m: Structured, ones=None) -> torch.Tensor:
    """D + A B with loops and dense blocks; D at (j, j) or at the given pairs."""
    blocks, like = [], next(m.parameters())
    for b in range(m.blocks):
        dense = torch.zeros(m.out_features, m.in_features, dtype=like.dtype)
        if m.S is not None:
            dense += m.S[b]
        if m.D is not None:
            for j, (row, col) in enumerate(ones or [(j, j) for j in range(min(dense.shape))]):
                dense[row, col] += m.D[b, j]
        if m.A is not None:
            dense += m.A[b] @ m.B[b]
        blocks.append(dense)
    return torch.block_diag(*blocks)


@given(structure=st.sampled_from(STRUCTURES), out=st.integers(1, 7), in_=st.integers(1, 7), blocks=st.integers(1, 3),
       placed=st.booleans(), data=st.data())
def test_acts_as_its_dense_matrix(structure, out, in_, blocks, placed, data):
    rank, ones = data.draw(st.integers(1, min(out, in_))), None
    if placed:
        n = data.draw(st.integers(1, min(out, in_)))
        ones = list(zip(*(data.draw(st.permutations(range(size)))[:n] for size in (out, in_))))
    m = Structured(out, in_, structure, rank, blocks, ones and tuple(torch.tensor(ones).T)).double()
    m.set_random()
    dense = by_hand(m, ones)
    weight, x = torch.randn(blocks * in_, 5).double(), torch.randn(2, 3, blocks * in_).double()
    torch.testing.assert_close(m.dense(), dense)
    torch.testing.assert_close(m.left(weight), dense @ weight)
    torch.testing.assert_close(m(x), x @ dense.T)
    if blocks == 1:
        torch.testing.assert_close(m.right(weight.new_ones(4, out)), weight.new_ones(4, out) @ dense)


class ShapesMade(TorchDispatchMode):
    """Collects the name of every operation and the shape of every tensor that it makes."""

    def __init__(self):
        super().__init__()
        self.shapes, self.names = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.add(str(func))
        self.shapes |= {tuple(t.shape[-2:]) for t in (out if isinstance(out, tuple) else (out,))
                        if isinstance(t, torch.Tensor)}
        return out


@pytest.mark.parametrize("structure", ["diagonal", "low_rank", "diagonal_low_rank"])
def test_structured_forms_never_make_a_dense_matrix(structure):
    m = Structured(31, 37, structure, rank=3)
    m.set_random()
    with ShapesMade() as seen:
        m(torch.randn(5, 37)), m.left(torch.randn(37, 11)), m.right(torch.randn(11, 31))
    assert (31, 37) not in seen.shapes and (37, 31) not in seen.shapes
    with ShapesMade() as seen:
        m.dense()
    assert (31, 37) in seen.shapes  # the check can fail


def operations(m: Structured) -> str:
    with ShapesMade() as seen:
        m(torch.randn(5, 9)), m.left(torch.randn(9, 4)), m.right(torch.randn(4, m.out_features))
    return " ".join(sorted(seen.names))


@pytest.mark.parametrize("structure", ["diagonal", "diagonal_low_rank"])
def test_equal_widths_need_no_index(structure):
    found = operations(Structured(9, 9, structure, 2))
    assert not any(word in found for word in ("index", "pad", "zeros"))
    assert "index_copy" in operations(Structured(11, 9, structure, 2))  # the check can fail


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_identity_between_two_widths(structure):
    rows, cols = torch.tensor([4, 0, 6]), torch.tensor([1, 3, 0])
    expected = torch.zeros(2, 7, 5).double()
    expected[:, rows, cols] = 3
    m = Structured(7, 5, structure, 3, 2, (rows, cols)).double()
    m.set_random()  # what was there before
    m.set_identity(3.0)
    torch.testing.assert_close(m.dense(), torch.block_diag(*expected))


def test_a_low_rank_with_few_ones_keeps_the_rest_ready_to_learn():
    m = Merge(6, 6, "low_rank", 4, ones=(torch.tensor([0, 3]), torch.tensor([0, 2])))
    m.set_identity()
    assert m.dense().count_nonzero() == 2
    m(torch.randn(8, 6)).sum().backward()
    assert (m.A.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("out, in_", [(6, 6), (4, 6), (6, 4)])
@pytest.mark.parametrize("structure", ["diagonal", "diagonal_low_rank", "full"])
def test_inits(structure, out, in_):
    eye = torch.eye(out, in_)
    for k in (2, 3):
        for i in range(k):
            merge, unmerge = Merge(out, in_, structure, 2), Unmerge(out, in_, structure, 2)
            for how, m, u in (("first", eye * (i == 0), eye), ("average", eye / k, eye)):
                merge.init(how, i, k)
                unmerge.init(how, i, k)
                torch.testing.assert_close(merge.dense(), m)
                torch.testing.assert_close(unmerge.dense(), u)


def test_low_rank_alone_holds_the_first_rows_of_the_identity():
    m = Merge(6, 6, "low_rank", rank=4)
    m.init("first", 0, 2)
    torch.testing.assert_close(m.dense(), torch.diag(torch.tensor([1., 1, 1, 1, 0, 0])))
    m.init("first", 1, 2)
    assert not m.dense().any()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_random_init_keeps_the_size_of_features(structure):
    m = Merge(400, 400, structure, rank=40)
    m.init("random", 0, 4)
    y = m(torch.randn(200, 400))
    parts = 2 if structure == "diagonal_low_rank" else 1
    assert y.std().item() == pytest.approx((parts / 4) ** 0.5, rel=0.1)


@pytest.mark.parametrize("structure", ["diagonal", "diagonal_low_rank", "full"])
def test_a_zero_merge_can_be_left_again(structure):
    m = Merge(5, 5, structure, 2)
    m.init("first", 1, 2)
    m(torch.randn(8, 5)).sum().backward()
    assert sum(p.grad.abs().sum() for p in m.parameters() if p.grad is not None) > 0


def test_super_linear_is_the_sum_of_the_paper():
    layers = [randomised(nn.Linear(4, 6)), randomised(nn.Linear(5, 9), seed=1)]
    merges = nn.ModuleList([Merge(3, 2, "full", blocks=3), Merge(3, 3, "full", blocks=3)]).double()
    unmerges = nn.ModuleList([Unmerge(4, 7, "full"), Unmerge(5, 7, "full")]).double()
    for m in [*merges, *unmerges]:
        m.set_random()
    layer, x = SuperLinear(layers, merges, unmerges), torch.randn(2, 7).double()
    expected = sum((original((x @ u.S[0].T)) @ by_hand(m).T) for original, m, u in zip(layers, merges, unmerges))
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(F.linear(x, *layer.fold()), expected)


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_rank_outside_its_range(rank):
    with pytest.raises(ValueError, match=f"rank must be a whole number from 1 to 4, got {rank}"):
        Merge(4, 6, "low_rank", rank)


def test_unknown_structure():
    with pytest.raises(ValueError, match="diagonal_low_rank.*'dense'"):
        Merge(4, 4, "dense")
