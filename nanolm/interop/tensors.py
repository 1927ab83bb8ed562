"""Translate weights between nanolm's transformer and architectures of the Hugging Face transformers library.

nanolm stacks the matrices of queries, keys and values, and those of a gated feed-forward; others store them separately.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch

from nanolm.config.model import TransformerConfig
from nanolm.config.run import Config
from nanolm.errors import RunError

Tensors = dict[str, torch.Tensor]
# Returns a tensor by name; reading a file lazily keeps one tensor at a time in memory.
TensorSource = Callable[[str], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Part:
    """A tensor of the other architecture, which is some rows of one of nanolm's.

    Attributes:
        name: its name there.
        n_rows: of nanolm's tensor.
        heads: for NanoChat's queries and keys: their number of heads; the halves of each head are swapped, because it
            rotates in the other direction.
    """

    name: str
    n_rows: int
    heads: int = 0


@dataclasses.dataclass(frozen=True)
class Entry:
    """How one tensor of nanolm is stored elsewhere.

    Attributes:
        name: nanolm's name.
        shape: nanolm's shape.
        parts: tensors whose rows it stacks, in this order.
        is_transposed: whether they are stored with inputs as rows (GPT-2's Conv1D).
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    is_transposed: bool = False

    def shape_of(self, part: Part) -> tuple[int, ...]:
        """The shape in which a part is stored."""
        shape = (part.n_rows, *self.shape[1:])
        return shape[::-1] if self.is_transposed else shape


def export_tensors(entries: list[Entry], weights: Mapping[str, torch.Tensor]) -> Tensors:
    """Translate nanolm's weights; most of the result are views of them."""
    exported = {}
    for entry in entries:
        rows = weights[entry.name].split([part.n_rows for part in entry.parts])
        for part, matrix in zip(entry.parts, rows, strict=True):
            matrix = _swap_halves(matrix, part.heads) if part.heads else matrix
            exported[part.name] = matrix.T if entry.is_transposed else matrix
    return exported


def import_tensors(entries: list[Entry], source: TensorSource) -> Iterator[tuple[str, torch.Tensor]]:
    """Translate weights to nanolm's, one tensor at a time; they may share memory with those of the source."""
    for entry in entries:
        rows = []
        for part in entry.parts:
            matrix = source(part.name)
            matrix = matrix.T if entry.is_transposed else matrix
            rows.append(_swap_halves(matrix, part.heads) if part.heads else matrix)
        yield entry.name, torch.cat(rows) if len(rows) > 1 else rows[0]


def require_tensors(entries: list[Entry], shapes: Mapping[str, tuple[int, ...]], ignored: set[str], where: str) -> None:
    """Require that a file has exactly the tensors of an architecture.

    Args:
        shapes: of the tensors in the file.
        ignored: names of tensors that are not weights.

    Raises:
        RunError: with all tensors that are missing, unknown or of another shape.
    """
    expected = {part.name: entry.shape_of(part) for entry in entries for part in entry.parts}
    found = {name: tuple(shape) for name, shape in shapes.items() if name not in ignored}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name[:100]} is unknown" for name in found if name not in expected]
    problems += [
        f"{name} has the shape {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        shown, more = problems[:20], len(problems) - 20
        raise RunError(
            "the weights do not fit config.json: " + "; ".join(shown) + (f"; and {more} more" if more > 0 else ""),
            where=where,
            hint="check that config.json and the weights belong to the same model",
        )


def gpt2_entries(config: Config, vocab_size: int) -> list[Entry]:
    """The tensors of GPT2LMHeadModel."""
    size = config.size
    width, hidden = size.d_model, size.hidden_width(has_gate=False)
    names = [
        _entry("token_embedding.weight", (vocab_size, width), "transformer.wte.weight"),
        _entry("position_embedding.weight", (size.context_length, width), "transformer.wpe.weight"),
    ]
    for layer in range(size.n_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        for norm, their_norm in (("attention_norm", "ln_1"), ("feed_forward_norm", "ln_2")):
            names += _norm(f"{ours}.{norm}", f"{theirs}.{their_norm}", width, has_bias=True)
        for linear, their_linear, rows, columns in (
            ("attention.query_key_value", "attn.c_attn", 3 * width, width),
            ("attention.projection", "attn.c_proj", width, width),
            ("feed_forward.expansion", "mlp.c_fc", hidden, width),
            ("feed_forward.projection", "mlp.c_proj", width, hidden),
        ):
            weight = _entry(f"{ours}.{linear}.weight", (rows, columns), f"{theirs}.{their_linear}.weight")
            names.append(dataclasses.replace(weight, is_transposed=True))
            names.append(_entry(f"{ours}.{linear}.bias", (rows,), f"{theirs}.{their_linear}.bias"))
    names += _norm("final_norm", "transformer.ln_f", width, has_bias=True)
    return names + _head(config, vocab_size)


def llama_entries(config: Config, vocab_size: int) -> list[Entry]:
    """The tensors of LlamaForCausalLM."""
    model, size = _transformer(config), config.size
    hidden = size.hidden_width(has_gate=True)
    entries = [_entry("token_embedding.weight", (vocab_size, size.d_model), "model.embed_tokens.weight")]
    for layer in range(size.n_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        entries += _norm(f"{ours}.attention_norm", f"{theirs}.input_layernorm", size.d_model)
        entries += _attention(config, layer, swaps_halves=False)
        entries += _norm(f"{ours}.feed_forward_norm", f"{theirs}.post_attention_layernorm", size.d_model)
        gate_and_value = [(f"{theirs}.mlp.gate_proj", hidden), (f"{theirs}.mlp.up_proj", hidden)]
        entries += _linear(f"{ours}.feed_forward.expansion", size.d_model, gate_and_value, model.bias)
        down = [(f"{theirs}.mlp.down_proj", size.d_model)]
        entries += _linear(f"{ours}.feed_forward.projection", hidden, down, model.bias)
    entries += _norm("final_norm", "model.norm", size.d_model)
    return entries + _head(config, vocab_size)


def nanochat_entries(config: Config, vocab_size: int) -> list[Entry]:
    """The tensors of NanoChatForCausalLM, which has no weights in its norms."""
    size = config.size
    hidden = size.hidden_width(has_gate=False)
    entries = [_entry("token_embedding.weight", (vocab_size, size.d_model), "model.embed_tokens.weight")]
    for layer in range(size.n_layers):
        ours, theirs = f"blocks.{layer}.feed_forward", f"model.layers.{layer}.mlp"
        entries += _attention(config, layer, swaps_halves=True)
        entries += _linear(f"{ours}.expansion", size.d_model, [(f"{theirs}.fc1", hidden)], has_bias=False)
        entries += _linear(f"{ours}.projection", hidden, [(f"{theirs}.fc2", size.d_model)], has_bias=False)
    return entries + _head(config, vocab_size)


# By the name of the architecture.
ENTRIES: dict[str, Callable[[Config, int], list[Entry]]] = {
    "GPT2LMHeadModel": gpt2_entries,
    "LlamaForCausalLM": llama_entries,
    "NanoChatForCausalLM": nanochat_entries,
}


def _attention(config: Config, layer: int, swaps_halves: bool) -> list[Entry]:
    model, size = _transformer(config), config.size
    ours, theirs = f"blocks.{layer}.attention", f"model.layers.{layer}.self_attn"
    queries, keys = size.n_heads * size.key_width, size.key_value_heads * size.key_width
    stacked = [(f"{theirs}.q_proj", queries), (f"{theirs}.k_proj", keys), (f"{theirs}.v_proj", keys)]
    heads = (size.n_heads, size.key_value_heads, 0) if swaps_halves else (0, 0, 0)
    bias = model.has_attention_bias
    return [
        *_linear(f"{ours}.query_key_value", size.d_model, stacked, bias, heads),
        *_linear(f"{ours}.projection", queries, [(f"{theirs}.o_proj", size.d_model)], bias),
    ]


def _linear(
    ours: str, n_columns: int, parts: list[tuple[str, int]], has_bias: bool, heads: tuple[int, ...] = (0, 0, 0)
) -> list[Entry]:
    """The weight and the bias of a linear layer that stacks linear layers of the given names and numbers of rows."""
    n_rows = sum(rows for _, rows in parts)
    shapes = {"weight": (n_rows, n_columns), "bias": (n_rows,)}
    return [
        Entry(
            f"{ours}.{kind}",
            shapes[kind],
            tuple(Part(f"{name}.{kind}", rows, n) for (name, rows), n in zip(parts, heads, strict=False)),
        )
        for kind in ("weight", "bias")[: 1 + has_bias]
    ]


def _norm(ours: str, theirs: str, width: int, has_bias: bool = False) -> list[Entry]:
    return [_entry(f"{ours}.{kind}", (width,), f"{theirs}.{kind}") for kind in ("weight", "bias")[: 1 + has_bias]]


def _head(config: Config, vocab_size: int) -> list[Entry]:
    if _transformer(config).tie_embeddings:
        return []
    return [_entry("head.weight", (vocab_size, config.size.d_model), "lm_head.weight")]


def _entry(ours: str, shape: tuple[int, ...], theirs: str) -> Entry:
    return Entry(ours, shape, (Part(theirs, shape[0]),))


def _swap_halves(rows: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Swap the two halves of the rows of each head; twice is the identity."""
    return rows.unflatten(0, (n_heads, 2, -1)).flip(1).flatten(0, 2)


def _transformer(config: Config) -> TransformerConfig:
    assert isinstance(config.model, TransformerConfig)
    return config.model
