"""The bodies of the dialect's functions for images, as `l4export.graph.dialect_bodies` has the others.

`l4export.graph.dialect` says what each one means.
"""

from __future__ import annotations

__all__ = [
    "APPEND_CLASS_TOKEN",
    "MERGE_IMAGES",
    "PATCHES",
    "PIXEL_SHUFFLE",
    "REQUIRE_FEATURES",
    "TILE_ANGLES",
    "TILE_ATTENTION",
]

PATCHES = """
Patches <grid, patch_size> (pixel_values) => (patches)
{
  first = Constant <value_ints = [0]> ()
  kept = Constant <value_ints = [0]> ()
  channels = Constant <value_ints = [3]> ()
  rest = Constant <value_ints = [-1]> ()
  grid_scalar = Constant <value_int: int = @grid> ()
  side_scalar = Constant <value_int: int = @patch_size> ()
  grid_1 = Unsqueeze (grid_scalar, first)
  side_1 = Unsqueeze (side_scalar, first)
  count_1 = Mul (grid_1, grid_1)
  cut_shape = Concat <axis = 0> (kept, channels, grid_1, side_1, grid_1, side_1)
  flat_shape = Concat <axis = 0> (kept, count_1, rest)
  cut = Reshape (pixel_values, cut_shape)
  by_patch = Transpose <perm = [0, 2, 4, 1, 3, 5]> (cut)
  patches = Reshape (by_patch, flat_shape)
}
"""

APPEND_CLASS_TOKEN = """
AppendClassToken (x, class_embedding) => (tokens)
{
  one = Constant <value_ints = [1]> ()
  tiles = Shape <start = 0, end = 1> (x)
  width = Shape (class_embedding)
  shape = Concat <axis = 0> (tiles, one, width)
  class_tokens = Expand (class_embedding, shape)
  tokens = Concat <axis = 1> (x, class_tokens)
}
"""

TILE_ANGLES = """
TileAngles (x, cos_table, sin_table) => (cos, sin)
{
  tiles = Shape <start = 0, end = 1> (x)
  table_shape = Shape (cos_table)
  shape = Concat <axis = 0> (tiles, table_shape)
  cos = Expand (cos_table, shape)
  sin = Expand (sin_table, shape)
}
"""

TILE_ATTENTION = """
TileAttention <num_heads> (q, k, v) => (y)
{
  y = Attention <q_num_heads: int = @num_heads, kv_num_heads: int = @num_heads> (q, k, v)
}
"""

PIXEL_SHUFFLE = """
PixelShuffle <grid, block> (x) => (y)
{
  first = Constant <value_ints = [0]> ()
  kept = Constant <value_ints = [0]> ()
  rest = Constant <value_ints = [-1]> ()
  grid_scalar = Constant <value_int: int = @grid> ()
  block_scalar = Constant <value_int: int = @block> ()
  grid_1 = Unsqueeze (grid_scalar, first)
  block_1 = Unsqueeze (block_scalar, first)
  blocks_1 = Div (grid_1, block_1)
  count_1 = Mul (blocks_1, blocks_1)
  cut_shape = Concat <axis = 0> (kept, blocks_1, block_1, blocks_1, block_1, rest)
  flat_shape = Concat <axis = 0> (kept, count_1, rest)
  cut = Reshape (x, cut_shape)
  by_block = Transpose <perm = [0, 1, 3, 2, 4, 5]> (cut)
  y = Reshape (by_block, flat_shape)
}
"""

MERGE_IMAGES = """
MergeImages <image_token> (embedded, token_ids, image_features) => (x)
{
  zero = Constant <value_int = 0> ()
  refusals = Constant <value_ints = [0]> ()
  first = Constant <value_ints = [0]> ()
  last = Constant <value_ints = [-1]> ()
  one = Constant <value_ints = [1]> ()
  image_token_id = Constant <value_int: int = @image_token> ()
  rows = Shape <start = 0, end = 1> (image_features)
  given = Min (rows, one)
  is_image = Equal (token_ids, image_token_id)
  is_image_int = Cast <to = 7> (is_image)
  flags_int = Mul (is_image_int, given)
  flags = Cast <to = 9> (flags_int)
  flat_flags = Reshape (flags_int, last)
  wanted = ReduceSum <keepdims = 1> (flat_flags, first)
  differ_signed = Sub (wanted, rows)
  differ = Abs (differ_signed)
  refused = Min (differ, one)
  [image_features_must_match_image_tokens] passed = Gather (refusals, refused)
  counted = CumSum (flat_flags, zero)
  flat_index = Mul (flat_flags, counted)
  ids_shape = Shape (token_ids)
  index_unchecked = Reshape (flat_index, ids_shape)
  index = Add (index_unchecked, passed)
  width = Shape <start = 1, end = 2> (image_features)
  row_shape = Concat <axis = 0> (one, width)
  zero_float = Constant <value_float = 0.0> ()
  zero_like = CastLike (zero_float, image_features)
  no_image = Expand (zero_like, row_shape)
  table = Concat <axis = 0> (no_image, image_features)
  features = Gather (table, index)
  columns = Unsqueeze (flags, last)
  x = Where (columns, features, embedded)
}
"""

REQUIRE_FEATURES = """
RequireFeatures <image_token> (token_ids, image_features) => (checked)
{
  refusals = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  image_token_id = Constant <value_int: int = @image_token> ()
  is_image = Equal (token_ids, image_token_id)
  is_image_int = Cast <to = 7> (is_image)
  image_tokens = ReduceSum <keepdims = 0> (is_image_int)
  new_tokens = Shape <start = 1, end = 2> (token_ids)
  rows = Shape <start = 0, end = 1> (image_features)
  given = Min (rows, one)
  lacking = Sub (one, given)
  others = Sub (new_tokens, one)
  lacking_of_several = Mul (lacking, others)
  unmatched = Mul (image_tokens, lacking_of_several)
  refused = Min (unmatched, one)
  [image_tokens_need_features] passed = Gather (refusals, refused)
  checked = Add (token_ids, passed)
}
"""
