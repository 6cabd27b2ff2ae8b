"""The `l4` dialect: what Llama 4 needs and ONNX has no operator for.

Every operator is a model-local function whose body in standard operators is its definition, so a graph that uses
the dialect is an executable ONNX model. Passes match one dialect node instead of a cloud of primitives.

Letters in shapes: B batch, S new tokens, P cache slots passed in, T cache slots handed out, H query heads,
K key/value heads, d head width, D hidden width, I expert width, E experts, V vocabulary. Of images: t tiles, T pixels
along a side of a tile, g patches along it, P pixels along a side of a patch.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from l4export.graph import dialect_bodies as bodies
from l4export.graph import vision_bodies

__all__ = [
    "DOMAIN",
    "NO_LIMIT",
    "OPSET_VERSION",
    "REFUSALS",
    "dialect_functions",
    "is_dialect",
]

DOMAIN = "l4"
OPSET_VERSION = 24
NO_LIMIT = 2**62
"""A number that no position reaches. As a chunk size it means plain causal attention."""

REFUSALS = frozenset(
    {
        "image_features_must_match_image_tokens",
        "image_tokens_need_features",
        "new_tokens_must_stay_in_one_chunk",
        "rows_must_be_padded_on_the_right",
        "sequence_must_fit_max_context",
        "token_ids_must_be_in_the_vocabulary",
    }
)
"""Nodes that stop a run on bad input with a Gather out of bounds, by the last part of their names; else they give 0."""

_SOURCES: dict[str, tuple[str, str]] = {
    "SequenceLengths": (
        bodies.SEQUENCE_LENGTHS,
        "attention_mask int64 [B, columns] (ones, then zeros: rows are padded on the right), input_ids int64 [B, S], "
        "mask_start int64 [B] or [1] (tokens in the cache before the mask's first column), cache_start int64 [B] or "
        "[1] (position of the token in slot 0) -> past_length int64 [B] = max(mask_start + sum(mask) - S, 0), "
        "new_length int64 [B] real tokens of this call, total_length int64 [1] = max(longest row, S). A mask of "
        "another form, an empty row, padding after mask_start, or a negative start stops the run in the node "
        "rows_must_be_padded_on_the_right (a Gather out of bounds), a position from max_context on in "
        "sequence_must_fit_max_context: a wrong answer would be silent.",
    ),
    "CheckedTokens": (
        bodies.CHECKED_TOKENS,
        "input_ids int64 [B, S] as they are. An id below 0 or from vocab_size on stops the run in the node "
        "token_ids_must_be_in_the_vocabulary: a lookup would wrap around or read zeros.",
    ),
    "ChunkLengths": (
        bodies.CHUNK_LENGTHS,
        "past_length, new_length int64 [B], cache_start int64 [B] or [1] -> the same lengths within a cache that holds "
        "one chunk of chunk_size tokens: chunk_past int64 [B] = min((cache_start + past_length) mod chunk_size, "
        "past_length), chunk_new = new_length, chunk_total int64 [1] = max(longest chunk_past + chunk_new, S). New "
        "tokens of two chunks stop the run in the node new_tokens_must_stay_in_one_chunk.",
    ),
    "Slots": (
        bodies.SLOTS,
        "past_length int64 [B] -> cache slots int64 [B, S] of the new tokens = past_length + 0 .. S-1.",
    ),
    "Positions": (
        bodies.POSITIONS,
        "slots int64 [B, S], cache_start int64 [B] or [1] -> positions = slots + cache_start.",
    ),
    "RotaryAngles": (
        bodies.ROTARY_ANGLES,
        "slots int64 [B, S], inv_freq float32 [d/2] -> cos, sin float32 [B, S, d/2] of slot * inv_freq, the product "
        "taken in float32 as transformers does. Scores depend on differences of angles alone, so a cache may count "
        "its slots from any position.",
    ),
    "QKNorm": (
        bodies.QK_NORM,
        "x [B, S, heads*d] -> x / sqrt(mean(x^2 over each head) + epsilon), no weight (Llama4TextL2Norm).",
    ),
    "Temperature": (
        bodies.TEMPERATURE,
        "q [B, S, H*d] * (1 + attn_scale * log(floor((position + 1) / floor_scale) + 1)), the factor in float32.",
    ),
    "SplitHeads": (bodies.SPLIT_HEADS, "x [B, S, heads*d] -> [B, heads, S, d]."),
    "AppendToCache": (
        bodies.APPEND_TO_CACHE,
        "past [B, K, P, d], x [B, S, K*d] -> present [B, K, T, d], T = max(P, total_length): x written at slots "
        "past_length .. past_length + S - 1 of each row. With P = 0, 1, 2, ... this is a cache that grows (layout "
        "concat), with P = capacity one that stays in place (layout static).",
    ),
    "ChunkCausalMask": (
        bodies.CHUNK_CAUSAL_MASK,
        "slots int64 [B, S] -> bool [B, 1, S, T]: key <= query and floor((cache_start + key) / chunk_size) = "
        "floor((cache_start + query) / chunk_size). A chunk_size of NO_LIMIT is a plain causal mask.",
    ),
    "Attention": (
        bodies.ATTENTION,
        "q [B, S, H*d], k, v [B, S, K*d] (rotated, normalised, scaled), past_key, past_value [B, K, P, d] -> y [B, S, "
        "H*d] = softmax(q k' / sqrt(d) + mask) v with key head j serving query heads j*H/K .. (j+1)*H/K - 1, and the "
        "caches with k and v appended.",
    ),
    "MoE": (
        bodies.MOE,
        "x [B, S, D], router_logits [B, S, E], gate_up [E, D, 2I], down [E, I, D] -> y [B, S, D] = sum over the k "
        "experts e with the largest logits of (silu(g) * u) down_e, [g | u] = (sigmoid(logit_e) x) gate_up_e. The "
        "score multiplies the expert's input (Llama4TextMoe). All experts are evaluated, unchosen ones on zeros.",
    ),
    "KeepLastPositions": (
        bodies.KEEP_LAST_POSITIONS,
        "hidden [B, S, D], logits_to_keep int64 [] n -> the n last real positions of each row [B, n, D]; all S of "
        "them where n = 0. A row with fewer than n real tokens gives them first, padding after.",
    ),
    "MergeImages": (
        vision_bodies.MERGE_IMAGES,
        "embedded [B, S, D], token_ids int64 [B, S], image_features [rows, D] -> embedded with the rows of features in "
        "the places of the tokens image_token, in row-major order; as it is where there are no rows. Another number of "
        "such tokens than of rows stops the run in the node image_features_must_match_image_tokens.",
    ),
    "RequireFeatures": (
        vision_bodies.REQUIRE_FEATURES,
        "token_ids int64 [B, S], image_features [rows, D] -> token_ids as they are. Several new tokens with "
        "image_token among them and no rows stop the run in the node image_tokens_need_features. One token alone may "
        "be it: a model may generate it.",
    ),
    "Patches": (
        vision_bodies.PATCHES,
        "pixel_values [t, 3, T, T] -> [t, g*g, 3*P*P]: patches in row-major order, in each first channel, then row, "
        "then column.",
    ),
    "AppendClassToken": (
        vision_bodies.APPEND_CLASS_TOKEN,
        "x [t, N, D], class_embedding [D] -> [t, N + 1, D] with the class embedding last.",
    ),
    "TileAngles": (
        vision_bodies.TILE_ANGLES,
        "x [t, M, D], cos and sin [M, d/2] -> the same angles for every tile: cos, sin [t, M, d/2].",
    ),
    "TileAttention": (
        vision_bodies.TILE_ATTENTION,
        "q, k, v [t, M, H*d] -> softmax(q k' / sqrt(d)) v within each tile [t, M, H*d]; every token sees all.",
    ),
    "PixelShuffle": (
        vision_bodies.PIXEL_SHUFFLE,
        "x [t, g*g, D] -> [t, (g/block)^2, block*block*D]: blocks of patches in row-major order, in each the channels "
        "of its first patch, of the next, row by row.",
    ),
}


def dialect_functions() -> list[ir.Function]:
    """Fresh copies of every function of the dialect, each with its definition in words as `doc_string`."""
    functions = []
    for body, doc in _SOURCES.values():
        header = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET_VERSION}, "{DOMAIN}" : 1]>'
        function = ir.serde.deserialize_function(onnx.parser.parse_function(header + body))
        function.doc_string = doc
        functions.append(function)
    return functions


def is_dialect(node: ir.Node, op_type: str | None = None) -> bool:
    """Whether `node` calls a function of the dialect (the one named `op_type`, when given)."""
    return node.domain == DOMAIN and (op_type is None or node.op_type == op_type)
