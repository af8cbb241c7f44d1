"""Exercises of lesson 14: token ids, a folded table of embeddings, moments without padding, a norm over two models."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .testing import Exercise

# ---------------------------------------------------------------- token ids

WORDS = ("wien", "rio", "oslo", "bern", "a")


def _texts(generator: torch.Generator) -> tuple[list[str], str, int]:
    """Texts, an alphabet that lacks some of their letters, and a length that the longest one just fits into."""
    chosen = ["łódź", *(WORDS[i] for i in torch.randperm(len(WORDS), generator=generator)[:3].tolist())]
    alphabet = "".join(sorted(set("".join(WORDS)) | set("ód")))
    return chosen, alphabet, 1 + max(map(len, chosen))


def _ids(texts: Sequence[str], alphabet: str, length: int, unknown: int = 2, first: int = 3, start: bool = True
         ) -> Tensor:
    rows = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in zip(rows, texts):
        row[0] = 1
        for place, letter in enumerate(text, int(start)):
            row[place] = first + alphabet.index(letter) if letter in alphabet else unknown
    return rows


# ---------------------------------------------------------------- a folded table

def _tables(generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """M_i (6, d_i) and E_i (9, d_i) of two originals."""
    sizes = (4, 5)
    return ([torch.randn(6, d, generator=generator, dtype=torch.float64) for d in sizes],
            [torch.randn(9, d, generator=generator, dtype=torch.float64) for d in sizes])


def _row_by_row(merges: Sequence[Tensor], tables: Sequence[Tensor]) -> Tensor:
    """Every token in turn through its embedding and M."""
    return torch.stack([sum(m.mv(e[token]) for m, e in zip(merges, tables)) for token in range(len(tables[0]))])


# ---------------------------------------------------------------- moments without padding

def _padded(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What a layer reads (5, 7, 3), and the token ids (5, 7) of these texts, with 0 for padding."""
    ids = torch.randint(1, 20, (5, 7), generator=generator)
    lengths = torch.randint(2, 7, (5, 1), generator=generator)
    return torch.randn(5, 7, 3, generator=generator, dtype=torch.float64) + 1, ids * (torch.arange(7) < lengths)


def _moment(x: Tensor, ids: Tensor) -> Tensor:
    rows = [x[n, t] for n, t in (ids != 0).nonzero().tolist()]
    return sum(torch.outer(row, row) for row in rows) / len(rows)


# ---------------------------------------------------------------- a norm over two models

def _streams(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The streams of two models, (6, 8) and (6, 4), each token with mean 0, one much louder than the other."""
    a, b = (torch.randn(6, d, generator=generator, dtype=torch.float64) for d in (8, 4))
    loud = torch.rand(6, 1, generator=generator, dtype=torch.float64) * 5 + 0.2
    return a - a.mean(1, keepdim=True), (b - b.mean(1, keepdim=True)) * loud


def _judge_factors(result: object, a: Tensor, b: Tensor) -> str | None:
    """LN of both side by side, the second scaled, must be LN of the first alone."""
    if not isinstance(result, Tensor) or result.shape != (len(a),):
        return f"return one factor for each of the {len(a)} tokens, a tensor ({len(a)},)"
    if not (result > 0).all():
        return "the factors must be above 0"
    both = F.layer_norm(torch.cat([a, result[:, None] * b], 1), (12,), eps=0)
    alone = F.layer_norm(a, (8,), eps=0)
    if torch.allclose(both[:, :8], alone, atol=1e-8):
        return None
    if torch.allclose(result.std(), torch.zeros(()).to(result), atol=1e-9):
        return "one factor for all tokens is not enough: the second model is louder on some tokens than on others"
    return ("the first 8 channels of LN([a, c b]) are not LN(a); when does the standard deviation over all 12 channels "
            "equal that over the first 8?")


EXERCISES = {
    "token_ids": Exercise(_texts, _ids, {
        "a letter that is not in the alphabet has id 2, it is not left out":
            lambda texts, alphabet, length: _ids(["".join(c for c in text if c in alphabet) for text in texts],
                                                 alphabet, length),
        "the letters' ids begin at 3: 0 is padding, 1 the start, 2 unknown":
            lambda texts, alphabet, length: _ids(texts, alphabet, length, first=2),
        "every text begins with the start token, 1": lambda texts, alphabet, length: F.pad(
            _ids(texts, alphabet, length)[:, 1:], (0, 1)),
    }),
    "folded_table": Exercise(_tables, _row_by_row, {
        "the originals' tables are added, not averaged": lambda m, e: _row_by_row(m, e) / 2,
        "a table holds one token a row, so the result is (9, 6): transpose it": lambda m, e: _row_by_row(m, e).T,
    }),
    "moment_without_padding": Exercise(_padded, _moment, {
        "padding is counted: leave out the tokens whose id is 0":
            lambda x, ids: _moment(x, torch.ones_like(ids)),
        "divide by the number of tokens that count, not by all":
            lambda x, ids: _moment(x, ids) * (ids != 0).sum() / ids.numel(),
        "divide by the number of tokens, not of texts": lambda x, ids: _moment(x, ids) * (ids != 0).sum() / len(ids),
    }),
    "factors": Exercise(_streams, judge=_judge_factors),
}
