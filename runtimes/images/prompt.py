"""Prompts with images: each placeholder in the ids becomes the tokens of its image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from l4export.errors import InputError
from l4export.runtimes.images.tiling import Grid

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["ImageTokens", "expand_images"]


@dataclass(frozen=True)
class ImageTokens:
    """The ids of the tokens of which images consist in a prompt.

    Attributes:
        image: `<|image|>`: a placeholder in a prompt as it is written, and what precedes an image's last tile.
        start: `<|image_start|>`.
        end: `<|image_end|>`.
        patch: `<|patch|>`, where the decoder takes a feature row; `image_token_index` of the model's config.
        column: `<|tile_x_separator|>`, between two tiles of a row.
        row: `<|tile_y_separator|>`, after every row of tiles.
        rows_of_a_tile: Feature rows of a tile, which is its number of patch tokens.
    """

    image: int
    start: int
    end: int
    patch: int
    column: int
    row: int
    rows_of_a_tile: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, rows_of_a_tile: int, image_token_index: int) -> ImageTokens:
        """Find the tokens in a tokenizer.

        Raises:
            InputError: one is not there, or the model takes features at another token than `<|patch|>`.
        """
        names = ("image", "image_start", "image_end", "patch", "tile_x_separator", "tile_y_separator")
        image, start, end, patch, column, row = (_id_of(tokenizer, f"<|{name}|>") for name in names)
        if patch != image_token_index:
            found = f"<|patch|> has the id {patch}, but image_token_index is {image_token_index}"
            raise InputError(f"tokenizer: {found}; copy both from one checkpoint")
        return cls(image, start, end, patch, column, row, rows_of_a_tile)

    def block(self, grid: Grid) -> list[int]:
        """The tokens of an image: tiles by rows where there are several, and the global or only tile."""
        rows, columns = grid
        tile = [self.patch] * self.rows_of_a_tile
        line = [*([*tile, self.column] * (columns - 1)), *tile, self.row]
        return [self.start, *(line * rows if rows * columns > 1 else []), self.image, *tile, self.end]


def _id_of(tokenizer: Tokenizer, name: str) -> int:
    token: int | None = tokenizer.token_to_id(name)
    if token is None:
        raise InputError(f"tokenizer: has no token {name}, which images need; copy it from the checkpoint")
    return token


def expand_images(ids: Sequence[int], grids: Sequence[Grid], tokens: ImageTokens) -> list[int]:
    """Replace each placeholder of a prompt by the tokens of its image, in their order, as `Llama4Processor` does.

    Raises:
        InputError: there are more or fewer placeholders than images, or the prompt has a token that only images have.
    """
    names = {
        tokens.start: "<|image_start|>",
        tokens.end: "<|image_end|>",
        tokens.patch: "<|patch|>",
        tokens.column: "<|tile_x_separator|>",
        tokens.row: "<|tile_y_separator|>",
    }
    if spelled := next((names[token] for token in ids if token in names), None):
        raise InputError(f"prompt: spells {spelled}, which stands within images alone; leave it out")
    if (count := list(ids).count(tokens.image)) != len(grids):
        raise InputError(f"prompt: has {count} placeholders <|image|> for {len(grids)} images; give as many of both")
    blocks = iter(grids)
    expanded: list[int] = []
    for token in ids:
        expanded += tokens.block(next(blocks)) if token == tokens.image else [token]
    return expanded
