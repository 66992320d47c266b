"""Attention by segments against attention under the dense mask, in float64."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from small_models import packed_group
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trees import visible

from tandem.rl.models.attention.block_table import CAUSAL_TOKENS, Block, block_table, blocks_of, restrict
from tandem.rl.models.attention.masks import dense_mask
from tandem.rl.models.attention.segment_attention import segment_attention
from tandem.rl.packing import PackedSequence

HEAD_DIM = 8


def row(*segments: tuple[int, int, int]) -> PackedSequence:
    """Return a row of segments (tokens, parent, position of the first); only its segments matter here."""
    lengths = torch.tensor([length for length, _, _ in segments])
    ids = torch.arange(len(segments)).repeat_interleave(lengths)
    parents = torch.tensor([parent for _, parent, _ in segments]).repeat_interleave(lengths)
    positions = torch.cat([torch.arange(first, first + length) for length, _, first in segments])
    zeros = torch.zeros(len(ids))
    return PackedSequence(ids, positions, ids, parents, zeros.bool(), zeros, zeros, zeros)


def pairs(table: torch.Tensor, num_queries: int, num_keys: int) -> torch.Tensor:
    """Return how often each query meets each key."""
    seen = torch.zeros(num_queries, num_keys, dtype=torch.int64)
    for block in blocks_of(table):
        sizes = block.query_stop - block.query_start, block.key_stop - block.key_start
        met = torch.ones(sizes, dtype=torch.int64)
        if block.window:
            met = (~block.hidden()).long()
            assert met.any(1).all(), "a softmax over nothing has no value"
        seen[block.queries, block.keys] += met.tril() if block.is_causal else met
    return seen


@cache
def visible_in(name: str) -> torch.Tensor:
    return visible(ROWS[name])


def visible_within(name: str, window: int | None) -> torch.Tensor:
    """Return which query sees which key, worked out from each token's path."""
    positions = ROWS[name].positions
    return visible_in(name) & (positions[:, None] < positions + (window or len(positions)))


ROWS = {
    "one segment": row((7, 0, 0)),
    "one token": row((1, 0, 0)),
    "a group": row((5, 0, 0), (3, 0, 5), (1, 0, 5), (4, 0, 5)),
    "two groups and a sequence alone": row((5, 0, 0), (3, 0, 5), (2, 0, 5), (4, 3, 0), (6, 4, 0), (3, 4, 6), (2, 4, 6)),
    "branches that leave in the middle": row((9, 0, 0), (3, 0, 7), (4, 0, 7), (2, 0, 4), (3, 0, 1)),
    "branches of branches": row(
        (8, 0, 0), (6, 0, 6), (3, 1, 10), (2, 2, 12), (4, 1, 7), (3, 0, 6), (5, 0, 2), (2, 6, 5)
    ),
    "long segments": row((2 * CAUSAL_TOKENS + 3, 0, 0), (CAUSAL_TOKENS + 1, 0, 300), (40, 0, 7)),
    "a packed group": packed_group(11, [9, 14, 7]),
}


WINDOWS = [None, 1, 3, 6, 250]


@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (4, 4), (4, 1)], ids=str)
@pytest.mark.parametrize("window", [None, 4, 280], ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_output_and_gradients_are_those_under_the_dense_mask(
    name: str, window: int | None, heads: tuple[int, int]
) -> None:
    packed = ROWS[name]
    generator = torch.Generator().manual_seed(len(name))

    def tensor(num_heads: int) -> torch.Tensor:
        made = torch.randn(packed.num_tokens, num_heads, HEAD_DIM, generator=generator, dtype=torch.float64)
        return made.transpose(0, 1).requires_grad_()

    query, key, value = tensor(heads[0]), tensor(heads[1]), tensor(heads[1])
    grad = tensor(heads[0]).detach()
    repeat = heads[0] // heads[1]
    mask = dense_mask(packed, window)[0]
    expected = F.scaled_dot_product_attention(
        query, key.repeat_interleave(repeat, 0), value.repeat_interleave(repeat, 0), attn_mask=mask, scale=0.3
    )
    found = segment_attention(query, key, value, blocks_of(block_table(packed, window)), scale=0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    inputs = (query, key, value)
    for given in (grad, torch.ones(()).double().expand(grad.shape)):  # the second as in sum().backward()
        ours = torch.autograd.grad(found, inputs, given, retain_graph=True)
        for own, reference in zip(ours, torch.autograd.grad(expected, inputs, given, retain_graph=True), strict=True):
            torch.testing.assert_close(own, reference, rtol=0, atol=1e-11)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_blocks_cover_each_visible_pair_once_and_no_other(name: str, window: int | None) -> None:
    packed = ROWS[name]
    seen = visible_within(name, window)
    assert torch.equal(pairs(block_table(packed, window), packed.num_tokens, packed.num_tokens), seen.long())
    assert torch.equal(dense_mask(packed, window)[0, 0], seen)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("seed", range(2))
def test_a_restricted_table_has_the_pairs_of_its_rows(name: str, seed: int, window: int | None) -> None:
    packed = ROWS[name]
    chosen = torch.rand(packed.num_tokens // 3 + 1, generator=torch.Generator().manual_seed(seed)) < 0.6
    rows = chosen.repeat_interleave(3)[: packed.num_tokens].nonzero().squeeze(1)
    table = restrict(block_table(packed, window), rows) if len(rows) else torch.empty(1, 1, 0, 7)
    assert torch.equal(pairs(table, len(rows), packed.num_tokens), visible_within(name, window)[rows].long())
    # A query's causal block comes before the others, which are merged into its result.
    order = [block.is_causal for block in blocks_of(table)]
    assert order == sorted(order, reverse=True)


def test_a_window_leaves_out_what_it_hides() -> None:
    tokens = 8 * CAUSAL_TOKENS
    table = block_table(row((tokens, 0, 0)), window=CAUSAL_TOKENS)
    computed = sum((b.query_stop - b.query_start) * (b.key_stop - b.key_start) for b in blocks_of(table))
    assert computed < 2.2 * CAUSAL_TOKENS * tokens  # under a dense mask: 8 * CAUSAL_TOKENS * tokens


def test_a_window_that_reaches_everything_changes_no_block() -> None:
    for packed in ROWS.values():
        longest = int(packed.positions.max()) + 1
        assert torch.equal(block_table(packed, longest), block_table(packed))


@pytest.mark.parametrize("window", [None, 4], ids=str)
def test_a_sink_takes_its_share_of_each_head(window: int | None) -> None:
    """Of three heads: a sink is one more key with a score of its own, and a value of 0."""
    packed = ROWS["branches of branches"]
    generator = torch.Generator().manual_seed(5)
    query, key, value, grad = torch.randn(4, 3, packed.num_tokens, HEAD_DIM, generator=generator).double()
    query, key, value = (tensor.requires_grad_() for tensor in (query, key, value))
    sinks = torch.tensor([-2.0, 0.5, 3.0]).double()
    scores = (query @ key.mT * 0.3).masked_fill(~dense_mask(packed, window)[0], -torch.inf)
    with_sinks = torch.cat([scores, sinks[:, None, None].expand(-1, packed.num_tokens, 1)], dim=-1)
    expected = with_sinks.softmax(-1)[..., :-1] @ value
    found = segment_attention(query, key, value, blocks_of(block_table(packed, window)), 0.3, sinks)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    ours = torch.autograd.grad(found, (query, key, value), grad)
    for own, reference in zip(ours, torch.autograd.grad(expected, (query, key, value), grad), strict=True):
        torch.testing.assert_close(own, reference, rtol=0, atol=1e-11)


@pytest.mark.parametrize("sizes", [(5, 13), (14, 13), (13, 12)], ids=str)
def test_blocks_of_another_row_are_refused(sizes: tuple[int, int]) -> None:
    """The kernel would end the process, as with layers that take keys and values from others (Gemma 3n and 4)."""
    query, key = torch.zeros(1, sizes[0], HEAD_DIM), torch.zeros(1, sizes[1], HEAD_DIM)
    with pytest.raises(ValueError, match="13 queries and 13 keys"):
        segment_attention(query, key, key, blocks_of(block_table(ROWS["a group"])), scale=1.0)


def test_what_a_layer_asks_for_is_not_ignored() -> None:
    packed = ROWS["a group"]
    query = torch.zeros(1, 2, packed.num_tokens, HEAD_DIM)
    attention = ALL_ATTENTION_FUNCTIONS["segments"]
    attention(nn.Identity(), query, query, query, block_table(packed), sliding_window=4, softcap=None)
    for keyword in ("softcap", "position_bias", "of_tomorrow"):
        with pytest.raises(NotImplementedError, match=f"Identity asks for {keyword}"):
            attention(nn.Identity(), query, query, query, block_table(packed), **{keyword: 30.0})


def test_neighbours_on_one_prompt_share_a_block() -> None:
    full = [block for block in blocks_of(block_table(ROWS["a group"])) if not block.is_causal]
    assert full == [Block(5, 13, 0, 5, is_causal=0)]


def test_a_branch_and_all_that_continue_it_share_a_block() -> None:
    full = [block for block in blocks_of(block_table(ROWS["branches of branches"])) if not block.is_causal]
    # Segments 1 to 5 (tokens 8 to 26) see six tokens of the trunk, since segment 5 leaves it where segment 1 does.
    assert full[0] == Block(8, 26, 0, 6, is_causal=0)
    assert len(full) == 6


@pytest.mark.parametrize(
    "segments",
    [((4, 0, 0), (3, 0, 2), (3, 0, 3)), ((4, 0, 0), (3, 0, 4), (5, 2, 0), (2, 0, 4)), ((2, 1, 2), (2, 1, 0))],
    ids=["an early branch first", "a branch of another tree", "a branch before its parent"],
)
def test_rows_out_of_order_are_refused(segments: tuple[tuple[int, int, int], ...]) -> None:
    with pytest.raises(ValueError, match="isn't in depth-first order"):
        block_table(row(*segments))


def test_scores_that_differ_by_hundreds_do_not_overflow() -> None:
    packed = ROWS["a group"]
    query = torch.full((1, packed.num_tokens, HEAD_DIM), 30.0)
    key = torch.linspace(-30, 30, packed.num_tokens)[None, :, None].expand(1, -1, HEAD_DIM)
    value = torch.arange(float(packed.num_tokens))[None, :, None].expand(1, -1, HEAD_DIM)
    out = segment_attention(query, key, value, blocks_of(block_table(packed)), scale=1.0)[0, :, 0]
    # Each token attends to the latest visible one, itself: its score is the highest by far.
    torch.testing.assert_close(out, torch.arange(float(packed.num_tokens)))


def test_compiled_layers_call_it_between_their_graphs() -> None:
    """Inductor can't compile its calls of the flash kernel."""
    packed = ROWS["a packed group"]
    blocks = blocks_of(block_table(packed))
    query, key = (torch.randn(num_heads, packed.num_tokens, 8) for num_heads in (4, 2))
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def layer(query: torch.Tensor) -> torch.Tensor:
        return segment_attention(query * 2, key, key, blocks, 1.0) + 1

    found, expected = (function(query) for function in (torch.compile(layer, backend=backend), layer))
    assert found.equal(expected)
    before, after = ([node.target for node in graph.graph.nodes if node.op == "call_function"] for graph in graphs)
    assert len(before) == len(after) == 1
