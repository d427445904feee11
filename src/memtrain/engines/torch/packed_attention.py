"""Attention of a packed prefix forest, forward and backward, in a few large batched products.

The plan cuts the forest into tiles (``packed_plan.py``). Keys and values are never repeated, neither over siblings nor
over grouped heads, and their gradients are summed over all descendants by the product itself. A tile's scores (a few
MB, one buffer for all) are made, used and overwritten; what is kept for the backward pass is the output and one
log-sum-exp a row, from which the weights are made anew (FlashAttention, arXiv 2205.14135). The forward pass makes the
scores twice: the first time for the maximum only, so that the tiles of a row need no rescaling.

Row constants (the maximum, the log-sum-exp, the inner product of the softmax's derivative) are subtracted inside the
product, as two more columns of its operands: the constant and what rounding left of it, against ones. In bfloat16 the
scores are thus rounded *after* the subtraction, which keeps large weights as exact as float32 scores would, and a
pass over memory is saved.

Where a CPU has our own kernel (``native``), the forward pass is its single pass, and the tiles are the backward pass's.

Why not the stock kernel: on a CPU its products run at a sixth of the rate of large bfloat16 products. Elsewhere, and
with soft caps or sinks, attention runs segment by segment through the stock kernel and plain autograd.

Shapes: N packed tokens, H query heads, K key-value heads, R = H / K, D head size, E = D + 2, V value head size,
n rows (tokens) and m keys of a tile, T = N * R rows of one key head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from memtrain.engines.torch.head import row_max
from memtrain.engines.torch.native import packed as native
from memtrain.engines.torch.packed_plan import PackedPlan, Tile


def packed_attention(
    plan: PackedPlan,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention over a packed forest, differentiable: (1, H, N, D), (1, K, N, D), (1, K, N, V) -> (1, N, H, V).

    ``window``: tokens see only keys less than so many positions back; ``softcap`` and ``sinks`` (H,) as in Gemma 2 and
    gpt-oss. Statistics and sums over tiles are kept in float32 (float64 for float64 inputs).
    """
    if q.device.type == "cpu" and q.shape[0] == 1 and softcap is None and sinks is None:
        return _TiledAttention.apply(q, k, v, plan, scale, window)
    return _by_segment(plan, q, k, v, scale, window, softcap, sinks)


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: PackedPlan, scale: float, window: int | None
    ) -> torch.Tensor:
        if plan.sees_all(window) and native.usable(q, k, v):
            return _native_forward(ctx, q, k, v, plan, scale)
        heads, kv_heads, size = q.shape[1], k.shape[1], v.shape[3]
        exact = torch.float64 if q.dtype == torch.float64 else torch.float32
        tiles = plan.tiles(window, heads, q.dtype)
        q_KTE, k_KNE, v_KNE = _by_key_head(q[0], kv_heads), _columns(k[0], 1.0), _columns(v[0], 1.0)
        alpha = scale * math.log2(math.e)  # powers of two throughout: exp2 is the cheaper function

        top_KT = q_KTE.new_full(q_KTE.shape[:2], float("-inf"))
        for tile in tiles:
            rows = _rows(tile, heads // kv_heads)
            scores = _scores(plan, tile, q_KTE, k_KNE, 1.0)
            torch.maximum(top_KT[:, rows], row_max(scores), out=top_KT[:, rows])
        _set_constants(q_KTE, -top_KT.to(exact))

        total_KT = torch.empty(q_KTE.shape[:2], dtype=exact)
        out_KTV = torch.empty((*q_KTE.shape[:2], size), dtype=exact)
        for tile in tiles:
            rows, keys = _rows(tile, heads // kv_heads), slice(tile.key_from, tile.key_to)
            weights = _scores(plan, tile, q_KTE, k_KNE, alpha).exp2_()
            _put(total_KT[:, rows], weights.sum(-1, dtype=exact), tile.own)
            _put(out_KTV[:, rows], torch.bmm(weights, v_KNE[:, keys, :size]), tile.own)
        result = _by_token(out_KTV.div_(total_KT[..., None]), heads, q.dtype)
        _set_constants(q_KTE, -(top_KT.to(exact) + total_KT.log2_().div_(alpha)))
        ctx.save_for_backward(q_KTE, k_KNE, v_KNE, result)
        ctx.plan, ctx.tiles, ctx.scale = plan, tiles, scale
        return result

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q_KTE, k_KNE, v_KNE, result = ctx.saved_tensors
        heads, kv_heads = result.shape[2], len(k_KNE)
        exact = torch.float64 if result.dtype == torch.float64 else torch.float32
        size, size_v = k_KNE.shape[2] - 2, v_KNE.shape[2] - 2
        # d(score) = weight * (d(weight) - sum over keys of weight * d(weight)); that sum is <output, its gradient>.
        inner_NH = torch.linalg.vecdot(result[0].to(exact), grads[0][0].to(exact))
        g_KTE = _by_key_head(grads[0][0].transpose(0, 1), kv_heads)
        _set_constants(g_KTE, -inner_NH.unflatten(1, (kv_heads, -1)).transpose(0, 1).flatten(1))
        grad_q = torch.empty((*q_KTE.shape[:2], size), dtype=exact)
        grad_k = torch.zeros((*k_KNE.shape[:2], size), dtype=exact)
        grad_v = torch.zeros((*v_KNE.shape[:2], size_v), dtype=exact)
        for tile in ctx.tiles:
            rows, keys = _rows(tile, heads // kv_heads), slice(tile.key_from, tile.key_to)
            weights = _scores(ctx.plan, tile, q_KTE, k_KNE, ctx.scale * math.log2(math.e)).exp2_()
            grad_v[:, keys] += torch.bmm(weights.transpose(1, 2), g_KTE[:, rows, :size_v])
            slopes = ctx.plan.buffer(1, tuple(weights.shape), k_KNE)
            torch.bmm(g_KTE[:, rows], v_KNE[:, keys].transpose(1, 2), out=slopes)
            slopes.mul_(weights)
            grad_k[:, keys] += torch.bmm(slopes.transpose(1, 2), q_KTE[:, rows, :size])
            _put(grad_q[:, rows], torch.bmm(slopes, k_KNE[:, keys, :size]), tile.own)
        back_q = _by_token(grad_q.mul_(ctx.scale), heads, result.dtype).transpose(1, 2)
        back_k, back_v = grad_k.mul_(ctx.scale).to(result.dtype)[None], grad_v.to(result.dtype)[None]
        return back_q, back_k, back_v, None, None, None


def _native_forward(
    ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: PackedPlan, scale: float
) -> torch.Tensor:
    """Our own kernel's forward pass; what the backward pass needs is laid out only where there will be one."""
    result, lse_KT = native.packed_forward(plan, q, k, v, scale)
    if any(ctx.needs_input_grad):
        q_KTE, k_KNE, v_KNE = _by_key_head(q[0], k.shape[1]), _columns(k[0], 1.0), _columns(v[0], 1.0)
        _set_constants(q_KTE, lse_KT.div_(-scale))
        ctx.save_for_backward(q_KTE, k_KNE, v_KNE, result)
        ctx.plan, ctx.tiles, ctx.scale = plan, plan.tiles(None, q.shape[1], q.dtype), scale
    return result


def _columns(x: torch.Tensor, fill: float) -> torch.Tensor:
    """(…, D) -> (…, D + 2), the new columns filled."""
    wide = x.new_empty((*x.shape[:-1], x.shape[-1] + 2))
    wide[..., :-2] = x
    wide[..., -2:] = fill
    return wide


def _by_key_head(x: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """(H, N, D) -> (K, T, E): the query heads of a key head are rows of one product, token by token."""
    return _columns(x.unflatten(0, (kv_heads, -1)).transpose(1, 2), 0.0).flatten(1, 2)


def _by_token(x_KTD: torch.Tensor, heads: int, dtype: torch.dtype) -> torch.Tensor:
    """(K, T, D) -> (1, N, H, D), contiguous."""
    by_token = x_KTD.unflatten(1, (-1, heads // len(x_KTD))).transpose(0, 1)
    return by_token.to(dtype, memory_format=torch.contiguous_format).flatten(1, 2)[None]


def _rows(tile: Tile, repeats: int) -> slice:
    return slice(tile.row_from * repeats, tile.row_to * repeats)


def _set_constants(rows_KTE: torch.Tensor, value_KT: torch.Tensor) -> None:
    """Fill the last two columns: the value rounded to the compute type, and what rounding left of it."""
    rows_KTE[..., -2] = value_KT
    rows_KTE[..., -1] = value_KT - rows_KTE[..., -2]


def _scores(plan: PackedPlan, tile: Tile, q_KTE: torch.Tensor, k_KNE: torch.Tensor, alpha: float) -> torch.Tensor:
    """alpha * (q k^T + constants) of a tile, masked: (K, n * R, m) in the scratch buffer."""
    kv_heads, repeats = len(k_KNE), q_KTE.shape[1] // k_KNE.shape[1]
    n, m = tile.row_to - tile.row_from, tile.key_to - tile.key_from
    scores = plan.buffer(0, (kv_heads, n * repeats, m), k_KNE)
    q, k = q_KTE[:, _rows(tile, repeats)], k_KNE[:, tile.key_from : tile.key_to]
    torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=alpha, out=scores)
    if tile.bias is not None:
        scores.unflatten(1, (n, repeats))[..., -tile.bias.shape[1] :].add_(tile.bias[:, None])
    return scores


def _put(into: torch.Tensor, part: torch.Tensor, first: bool) -> None:
    """Write or add."""
    if first:
        into.copy_(part)
    else:
        into.add_(part)


def _by_segment(
    plan: PackedPlan,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One call of the stock kernel a segment; ``split`` keeps the backward pass to one concatenation."""
    queries, keys, values = (tensor.split(plan.lengths, dim=2) for tensor in (q, k, v))
    results = []
    for index, chain in enumerate(plan.ancestors()):
        full_k = torch.cat([*(keys[a] for a in chain), keys[index]], dim=2) if chain else keys[index]
        full_v = torch.cat([*(values[a] for a in chain), values[index]], dim=2) if chain else values[index]
        length, total = plan.lengths[index], full_k.shape[2]
        narrow = window if window is not None and window < total else None
        mask = None if length == total and narrow is None else plan.mask(length, total, narrow, q.device)
        # Repeating heads by hand: the masked kernels of some devices do not take grouped heads.
        full_k, full_v = _repeat(full_k, q.shape[1]), _repeat(full_v, q.shape[1])
        part = queries[index]
        if softcap is None and sinks is None:
            causal = mask is None
            results.append(
                F.scaled_dot_product_attention(part, full_k, full_v, attn_mask=mask, is_causal=causal, scale=scale)
            )
        else:
            mask = plan.mask(length, total, narrow, q.device)
            results.append(_plain(part, full_k, full_v, mask, scale, softcap, sinks))
    return torch.cat(results, dim=2).transpose(1, 2)


def _plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    scores = (q @ k.transpose(2, 3) * scale).float()
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        sink = sinks.float().reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat([scores, sink], dim=-1)
    return scores.softmax(-1)[..., : k.shape[2]].to(v.dtype) @ v


def _repeat(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(batch, K, L, D) -> (batch, heads, L, D)."""
    repeats = heads // x.shape[1]
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)
