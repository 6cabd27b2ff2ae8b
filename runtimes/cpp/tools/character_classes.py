"""Writes the classes of all characters, as the Python package `tokenizers` sees them, for src/text/characters.cpp.

    python character_classes.py > ../src/text/character_classes.inc

The package is asked, so that the table is of its version of Unicode: what its regular expressions call a letter, a
number, white space, and so on. A test compares the table with the installed package.
"""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

BITS = {
    1: r"\p{L}",
    2: r"\p{N}",
    4: r"\s",
    8: r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
    16: r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
}
"""Bits of a class, and what they say of a character. A sixth one, `WORD`, has no expression to be asked with."""

WORD = 32
"""Whether an added token that must be a single word may not stand beside the character."""

CHARACTERS = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]


def classes() -> dict[str, int]:
    """The class of every character that has a bit."""
    found = dict.fromkeys(CHARACTERS, 0)
    for bit, expression in BITS.items():
        kept = pre_tokenizers.Split(Regex(expression), "isolated")
        other = pre_tokenizers.Split(Regex(expression), "removed")
        for at in range(0, len(CHARACTERS), 20_000):
            part = "".join(CHARACTERS[at : at + 20_000])
            without = "".join(piece for piece, _ in other.pre_tokenize_str(part))
            assert "".join(piece for piece, _ in kept.pre_tokenize_str(part)) == part
            for character in set(part).difference(without):
                found[character] |= bit
    for character in word_characters():
        found[character] |= WORD
    return {character: bits for character, bits in found.items() if bits}


def word_characters() -> set[str]:
    """Characters that an added token with `single_word` may not touch."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_tokens([AddedToken("\0x", single_word=True, normalized=False)])
    texts = [character + "\0x" for character in CHARACTERS]
    encoded = tokenizer.encode_batch(texts)
    return {character for character, encoding in zip(CHARACTERS, encoded, strict=True) if not encoding.ids}


def ranges() -> list[tuple[int, int]]:
    """Where a class begins that holds up to the next one: code points and bits, rising."""
    found, classed = [(0, 0)], classes()
    for point in range(0x110000):
        bits = classed.get(chr(point), 0)
        if bits != found[-1][1]:
            found.append((point, bits))
    return found


def main() -> None:
    """Print the ranges: 256 x the first code point + the bits."""
    numbers = [f"{point << 8 | bits}," for point, bits in ranges()]
    print("// Made by tools/character_classes.py: 256 x the first code point of a range + the bits of its class.")
    line = ""
    for number in numbers:
        if len(line) + len(number) > 118:
            print(line.rstrip())
            line = ""
        line += f"{number} "
    print(line.rstrip())


if __name__ == "__main__":
    main()
