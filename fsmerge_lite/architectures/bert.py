"""Hugging Face's `BertModel`, of which nothing is changed: transformers' own forward runs, on token ids alone.

BERT is post-norm: after each attention and each MLP, the stream itself passes through a norm, x <- LN(x + f(x)). So it
has a fitted start of its own, `start.PostNormStart`. Queries, keys and values are layers of their own. Positions and
token types are added to the stream; the M of the word embeddings takes them.
"""
import torch
from torch import Tensor, nn

from ..engine import given
from .graph import Architecture, Graph, Layer, Segment, Space, Vector

STREAM, POOLED = "stream", "pooled"
TOKENS = ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight")
OPTIONS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
           "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id")  # of its configuration


class Berts(Architecture):
    """The architecture of `BertModel`: features are what the pooler gives or, without one, the first token.

    A text is one row of token ids, with `pad_token_id` for padding, all of token type 0. The mask is made from the ids.
    """

    kind = "bert"

    def owns(self, model: nn.Module) -> bool:
        """By name, because transformers is an extra."""
        kind = type(model)
        return (kind.__module__, kind.__name__) == ("transformers.models.bert.modeling_bert", "BertModel")

    def describe(self, model: nn.Module) -> dict:
        """The entries of its configuration that the function depends on."""
        config = model.config
        for name in ("is_decoder", "add_cross_attention", "chunk_size_feed_forward"):
            if getattr(config, name, False):
                raise ValueError(f"this BertModel has {name} = {getattr(config, name)}, a variant that SuperNet does "
                                 "not support")
        if not isinstance(config.pad_token_id, int) or not isinstance(config.hidden_act, str):
            raise ValueError("this BertModel needs a pad_token_id and the name of an activation as hidden_act, got "
                             f"{config.pad_token_id!r} and {config.hidden_act!r}")
        if any(getattr(part, "gradient_checkpointing", False) for part in model.modules()):
            raise ValueError("this BertModel has gradient checkpointing on, which would leave out M and U; call "
                             "gradient_checkpointing_disable() on it")
        described = {"kind": "bert", **{name: getattr(config, name) for name in OPTIONS},
                     "pooler": model.pooler is not None}
        ours = [(name, type(part).__name__) for name, part in self.build(described).named_modules()]
        theirs = [(name, type(part).__name__) for name, part in model.named_modules()]
        if ours != theirs:
            raise ValueError("this BertModel has other parts than transformers gives it: "
                             f"{sorted(set(theirs) ^ set(ours))[:4]}")
        return described

    def build(self, config: dict) -> nn.Module:
        from transformers import BertConfig, BertModel  # an extra, which takes a while to import
        return BertModel(BertConfig(**{name: config[name] for name in OPTIONS}), add_pooling_layer=config["pooler"])

    def graph(self, model: nn.Module) -> Graph:
        config, pooled = model.config, model.pooler is not None
        names = [f"encoder.layer.{b}" for b in range(config.num_hidden_layers)]
        dim, heads = config.hidden_size, config.num_attention_heads
        seen = (*names, "pooler") if pooled else tuple(names)
        spaces = {STREAM: Space(STREAM, "residual", dim, 1, "", seen, 0.5)}
        layers = [Layer("embeddings.word_embeddings", None, (STREAM,), "embedding", norm="embeddings.LayerNorm")]
        for name in names:
            qk, v, hidden, attention = f"{name}.qk", f"{name}.v", f"{name}.hidden", f"{name}.attention"
            spaces[qk] = Space(qk, "heads", dim, heads, group=attention, growth=0.25)
            spaces[v] = Space(v, "heads", dim, heads, group=attention, seen=(f"{attention}.output.dense",))
            spaces[hidden] = Space(hidden, "hidden", config.intermediate_size, seen=(f"{name}.output.dense",))
            written = {"query": qk, "key": qk, "value": v}
            layers += [Layer(f"{attention}.self.{part}", STREAM, (space,)) for part, space in written.items()]
            layers += [Layer(f"{attention}.output.dense", v, (STREAM,), adds_to=attention,
                             norm=f"{attention}.output.LayerNorm"),
                       Layer(f"{name}.intermediate.dense", STREAM, (hidden,)),
                       Layer(f"{name}.output.dense", hidden, (STREAM,), adds_to=f"{name}.intermediate",
                             norm=f"{name}.output.LayerNorm")]
        if pooled:
            spaces[POOLED] = Space(POOLED, "hidden", dim, seen=("",))
            layers.append(Layer("pooler.dense", STREAM, (POOLED,)))
        vectors = [Vector(name, STREAM, "token") for name in TOKENS]
        vectors += [Vector(f"{norm}.{part}", STREAM, "on_stream") for norm in (layer.norm for layer in layers)
                    if norm for part in ("weight", "bias")]
        return Graph(spaces, tuple(layers), tuple(vectors), POOLED if pooled else STREAM,
                     {b: f"{name}.attention.self.query" for b, name in enumerate(names)})

    def input_shape(self, model: nn.Module) -> tuple[int, ...]:
        return (model.config.max_position_embeddings,)

    def check_inputs(self, model: nn.Module, x: Tensor) -> None:
        config = model.config
        given.token_ids(x, config.vocab_size, config.max_position_embeddings, config.pad_token_id)

    def counted(self, model: nn.Module, x: Tensor) -> Tensor:
        return x != model.config.pad_token_id

    def segments(self, model: nn.Module) -> dict[str, Segment]:
        """From ids to tokens; the blocks; from tokens to features."""
        blocks = {f"encoder.layer.{b}": lambda x, counted, block=block: block(x, seen_by_all(x, counted))
                  for b, block in enumerate(model.encoder.layer)}
        last = {"": lambda x, _: x[:, 0]} if model.pooler is None else {"pooler": lambda x, _: model.pooler(x)}
        return {"embeddings": lambda ids, _: model.embeddings(ids), **blocks, **last}

    def run(self, model: nn.Module, x: Tensor) -> Tensor:
        found = model(input_ids=x, attention_mask=self.counted(model, x).long())
        return found.last_hidden_state[:, 0] if model.pooler is None else found.pooler_output


def seen_by_all(x: Tensor, counted: Tensor) -> Tensor:
    """What is added to the scores of attention, (B, 1, 1, T): nothing for tokens that count, (B, T)."""
    return x.new_zeros(counted.shape).masked_fill(~counted, torch.finfo(x.dtype).min)[:, None, None]
