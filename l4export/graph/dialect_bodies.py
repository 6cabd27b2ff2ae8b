"""The bodies of the dialect's functions, in ONNX's textual syntax. `l4export.graph.dialect` says what each one means.

A value in square brackets names a node. Those whose names say what must be are Gathers of a single 0: index 1, the sign
that something is wrong, is out of bounds and stops the run.
"""

from __future__ import annotations

__all__ = [
    "APPEND_TO_CACHE",
    "ATTENTION",
    "CHECKED_TOKENS",
    "CHUNK_CAUSAL_MASK",
    "CHUNK_LENGTHS",
    "KEEP_LAST_POSITIONS",
    "MOE",
    "POSITIONS",
    "QK_NORM",
    "ROTARY_ANGLES",
    "SEQUENCE_LENGTHS",
    "SLOTS",
    "SPLIT_HEADS",
    "TEMPERATURE",
]

SEQUENCE_LENGTHS = """
SequenceLengths <max_context> (attention_mask, input_ids, mask_start, cache_start)
  => (past_length, new_length, total_length)
{
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  rows = Constant <value_ints = [1]> ()
  refusals = Constant <value_ints = [0]> ()
  masked = ReduceSum <keepdims = 0> (attention_mask, rows)
  masked_column = Unsqueeze (masked, rows)
  columns_1 = Shape <start = 1, end = 2> (attention_mask)
  columns = Squeeze (columns_1)
  mask_columns = Range (zero, columns, one)
  expected = Less (mask_columns, masked_column)
  expected_int = Cast <to = 7> (expected)
  difference = Sub (expected_int, attention_mask)
  wrong = Abs (difference)
  wrong_count = ReduceSum <keepdims = 0> (wrong)
  new_tokens = Shape <start = 1, end = 2> (input_ids)
  length = Add (masked, mask_start)
  past_signed = Sub (length, new_tokens)
  past_clipped = Max (past_signed, zero)
  empty_rows = Less (masked, one)
  padded_rows = Less (past_clipped, mask_start)
  lowest_start = Min (mask_start, cache_start)
  negative_rows = Less (lowest_start, zero)
  faulty_rows = Or (empty_rows, padded_rows)
  all_faulty_rows = Or (faulty_rows, negative_rows)
  faulty_int = Cast <to = 7> (all_faulty_rows)
  faulty_count = ReduceSum <keepdims = 0> (faulty_int)
  faults = Add (wrong_count, faulty_count)
  refused = Min (faults, one)
  [rows_must_be_padded_on_the_right] passed = Gather (refusals, refused)
  past_length = Add (past_clipped, passed)
  new_length = Sub (length, past_length)
  longest = ReduceMax <keepdims = 0> (length)
  total_unchecked = Max (longest, new_tokens)
  ends = Add (length, cache_start)
  farthest = ReduceMax <keepdims = 0> (ends)
  reach = Max (farthest, total_unchecked)
  limit = Constant <value_int: int = @max_context> ()
  too_long = Greater (reach, limit)
  too_long_int = Cast <to = 7> (too_long)
  [sequence_must_fit_max_context] fits = Gather (refusals, too_long_int)
  total_length = Add (total_unchecked, fits)
}
"""

CHECKED_TOKENS = """
CheckedTokens <vocab_size> (input_ids) => (token_ids)
{
  zero = Constant <value_int = 0> ()
  refusals = Constant <value_ints = [0]> ()
  limit = Constant <value_int: int = @vocab_size> ()
  below = Less (input_ids, zero)
  above = GreaterOrEqual (input_ids, limit)
  outside = Or (below, above)
  outside_int = Cast <to = 7> (outside)
  refused = ReduceMax <keepdims = 0> (outside_int)
  [token_ids_must_be_in_the_vocabulary] passed = Gather (refusals, refused)
  token_ids = Add (input_ids, passed)
}
"""

CHUNK_LENGTHS = """
ChunkLengths <chunk_size> (past_length, new_length, input_ids, cache_start)
  => (chunk_past, chunk_new, chunk_total)
{
  refusals = Constant <value_ints = [0]> ()
  chunk = Constant <value_int: int = @chunk_size> ()
  new_tokens = Shape <start = 1, end = 2> (input_ids)
  position = Add (past_length, cache_start)
  offset = Mod (position, chunk)
  ends = Add (offset, new_length)
  farthest = ReduceMax <keepdims = 0> (ends)
  reach = Max (farthest, new_tokens)
  straddles = Greater (reach, chunk)
  straddles_int = Cast <to = 7> (straddles)
  [new_tokens_must_stay_in_one_chunk] passed = Gather (refusals, straddles_int)
  slot = Min (offset, past_length)
  chunk_past = Add (slot, passed)
  chunk_new = Add (new_length, passed)
  chunk_ends = Add (chunk_past, chunk_new)
  longest = ReduceMax <keepdims = 0> (chunk_ends)
  chunk_total = Max (longest, new_tokens)
}
"""

SLOTS = """
Slots (past_length, input_ids) => (slots)
{
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  columns = Constant <value_ints = [1]> ()
  new_tokens_1 = Shape <start = 1, end = 2> (input_ids)
  new_tokens = Squeeze (new_tokens_1)
  offsets = Range (zero, new_tokens, one)
  past_column = Unsqueeze (past_length, columns)
  slots = Add (past_column, offsets)
}
"""

POSITIONS = """
Positions (slots, cache_start) => (positions)
{
  columns = Constant <value_ints = [1]> ()
  start_column = Unsqueeze (cache_start, columns)
  positions = Add (slots, start_column)
}
"""

ROTARY_ANGLES = """
RotaryAngles (slots, inv_freq) => (cos, sin)
{
  last = Constant <value_ints = [-1]> ()
  slots_float = Cast <to = 1> (slots)
  column = Unsqueeze (slots_float, last)
  angles = Mul (column, inv_freq)
  cos = Cos (angles)
  sin = Sin (angles)
}
"""

QK_NORM = """
QKNorm <num_heads, head_dim, epsilon> (x) => (y)
{
  keep = Constant <value_ints = [0, 0]> ()
  minus_one = Constant <value_ints = [-1]> ()
  axis = Constant <value_ints = [0]> ()
  heads_scalar = Constant <value_int: int = @num_heads> ()
  width_scalar = Constant <value_int: int = @head_dim> ()
  heads_count = Unsqueeze (heads_scalar, axis)
  width = Unsqueeze (width_scalar, axis)
  split_shape = Concat <axis = 0> (keep, heads_count, width)
  heads = Reshape (x, split_shape)
  ones_float = ConstantOfShape <value: tensor = float[1] {1.0}> (width)
  ones = CastLike (ones_float, x)
  normalized = RMSNormalization <axis = -1, epsilon: float = @epsilon> (heads, ones)
  joined_shape = Concat <axis = 0> (keep, minus_one)
  y = Reshape (normalized, joined_shape)
}
"""

TEMPERATURE = """
Temperature <floor_scale, attn_scale> (q, positions) => (y)
{
  last = Constant <value_ints = [-1]> ()
  one = Constant <value_float = 1.0> ()
  floor_scale_value = Constant <value_float: float = @floor_scale> ()
  attn_scale_value = Constant <value_float: float = @attn_scale> ()
  positions_float = Cast <to = 1> (positions)
  tokens = Add (positions_float, one)
  scaled = Div (tokens, floor_scale_value)
  steps = Floor (scaled)
  steps_plus_one = Add (steps, one)
  logarithm = Log (steps_plus_one)
  growth = Mul (logarithm, attn_scale_value)
  temperature = Add (growth, one)
  column = Unsqueeze (temperature, last)
  factor = CastLike (column, q)
  y = Mul (q, factor)
}
"""

SPLIT_HEADS = """
SplitHeads <num_heads> (x) => (y)
{
  keep = Constant <value_ints = [0, 0]> ()
  minus_one = Constant <value_ints = [-1]> ()
  axis = Constant <value_ints = [0]> ()
  heads_scalar = Constant <value_int: int = @num_heads> ()
  heads_count = Unsqueeze (heads_scalar, axis)
  split_shape = Concat <axis = 0> (keep, heads_count, minus_one)
  heads = Reshape (x, split_shape)
  y = Transpose <perm = [0, 2, 1, 3]> (heads)
}
"""

APPEND_TO_CACHE = """
AppendToCache <num_heads> (past, x, past_length, total_length) => (present)
{
  none = Constant <value_ints = [0]> ()
  zero = Constant <value_float = 0.0> ()
  update = l4.SplitHeads <num_heads: int = @num_heads> (x)
  slots = Shape <start = 2, end = 3> (past)
  missing_signed = Sub (total_length, slots)
  missing = Max (missing_signed, none)
  outer = Shape <start = 0, end = 2> (past)
  width = Shape <start = 3, end = 4> (past)
  growth_shape = Concat <axis = 0> (outer, missing, width)
  zero_like = CastLike (zero, past)
  growth = Expand (zero_like, growth_shape)
  grown = Concat <axis = 2> (past, growth)
  present = TensorScatter <axis = 2, mode = "linear"> (grown, update, past_length)
}
"""

CHUNK_CAUSAL_MASK = """
ChunkCausalMask <chunk_size> (slots, cache_start, present_key) => (mask)
{
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  query_axes = Constant <value_ints = [1, 3]> ()
  start_axes = Constant <value_ints = [1, 2, 3]> ()
  chunk = Constant <value_int: int = @chunk_size> ()
  key_slots_1 = Shape <start = 2, end = 3> (present_key)
  key_slots = Squeeze (key_slots_1)
  keys = Range (zero, key_slots, one)
  queries = Unsqueeze (slots, query_axes)
  causal = LessOrEqual (keys, queries)
  start = Unsqueeze (cache_start, start_axes)
  key_positions = Add (keys, start)
  query_positions = Add (queries, start)
  key_chunk = Div (key_positions, chunk)
  query_chunk = Div (query_positions, chunk)
  same_chunk = Equal (key_chunk, query_chunk)
  mask = And (causal, same_chunk)
}
"""

ATTENTION = """
Attention <num_heads, kv_num_heads, chunk_size>
  (q, k, v, past_key, past_value, slots, past_length, total_length, cache_start) => (y, present_key, present_value)
{
  joined_shape = Constant <value_ints = [0, 0, -1]> ()
  present_key = l4.AppendToCache <num_heads: int = @kv_num_heads> (past_key, k, past_length, total_length)
  present_value = l4.AppendToCache <num_heads: int = @kv_num_heads> (past_value, v, past_length, total_length)
  mask = l4.ChunkCausalMask <chunk_size: int = @chunk_size> (slots, cache_start, present_key)
  queries = l4.SplitHeads <num_heads: int = @num_heads> (q)
  heads = Attention (queries, present_key, present_value, mask)
  tokens = Transpose <perm = [0, 2, 1, 3]> (heads)
  y = Reshape (tokens, joined_shape)
}
"""

MOE = """
MoE <k> (x, router_logits, gate_up, down) => (y)
{
  first = Constant <value_ints = [0]> ()
  last = Constant <value_ints = [-1]> ()
  zero = Constant <value_float = 0.0> ()
  k_scalar = Constant <value_int: int = @k> ()
  k_1 = Unsqueeze (k_scalar, first)
  width = Shape <start = -1> (x)
  experts = Shape <start = -1> (router_logits)
  token_shape = Concat <axis = 0> (last, width)
  logit_shape = Concat <axis = 0> (last, experts)
  tokens = Reshape (x, token_shape)
  logits = Reshape (router_logits, logit_shape)
  top_logits, chosen = TopK <axis = -1> (logits, k_1)
  top_float = Cast <to = 1> (top_logits)
  top_sigmoid = Sigmoid (top_float)
  top_scores = CastLike (top_sigmoid, x)
  zero_like = CastLike (zero, x)
  all_shape = Shape (logits)
  no_scores = Expand (zero_like, all_shape)
  scores = ScatterElements <axis = 1> (no_scores, chosen, top_scores)
  scores_by_expert = Transpose <perm = [1, 0]> (scores)
  score_column = Unsqueeze (scores_by_expert, last)
  scaled = Mul (tokens, score_column)
  gate_and_up = MatMul (scaled, gate_up)
  gate, up = Split <axis = -1, num_outputs = 2> (gate_and_up)
  activated = Swish (gate)
  gated = Mul (activated, up)
  outputs = MatMul (gated, down)
  summed = ReduceSum <keepdims = 0> (outputs, first)
  x_shape = Shape (x)
  y = Reshape (summed, x_shape)
}
"""

KEEP_LAST_POSITIONS = """
KeepLastPositions (hidden, new_length, logits_to_keep) => (kept)
{
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  columns = Constant <value_ints = [1]> ()
  last = Constant <value_ints = [-1]> ()
  tokens_1 = Shape <start = 1, end = 2> (hidden)
  tokens = Squeeze (tokens_1)
  keep_all = LessOrEqual (logits_to_keep, zero)
  at_most = Min (logits_to_keep, tokens)
  count = Where (keep_all, tokens, at_most)
  start_signed = Sub (new_length, count)
  start_clipped = Max (start_signed, zero)
  start = Where (keep_all, zero, start_clipped)
  offsets = Range (zero, count, one)
  start_column = Unsqueeze (start, columns)
  positions = Add (start_column, offsets)
  indices = Unsqueeze (positions, last)
  kept = GatherND <batch_dims = 1> (hidden, indices)
}
"""
