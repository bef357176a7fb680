"""Writes tokenizer_strings.json: 2,000 strings and the tokens that Hugging Face's tokenizer gives them.

The tokenizer is built from the vocabulary and merges inside the GGUF file, with the pre-tokenizer that the SmolLM
models are published with. Strings come from a fixed seed.

    python tests/reference/tokenizer_strings.py MODEL.gguf     needs: gguf, tokenizers
"""

import json
import random
import sys
import unicodedata
from pathlib import Path

from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

NUM_STRINGS = 2000

# Letters that all Unicode versions in use agree on: first and last code point of some blocks.
SCRIPTS = {
    "latin": (0x61, 0x7A), "latin-1": (0xC0, 0xFF), "latin-extended": (0x100, 0x17F), "greek": (0x391, 0x3C9),
    "cyrillic": (0x410, 0x44F), "armenian": (0x531, 0x556), "hebrew": (0x5D0, 0x5EA), "arabic": (0x620, 0x64A),
    "syriac": (0x710, 0x72F), "devanagari": (0x904, 0x94D), "bengali": (0x985, 0x9B9), "tamil": (0xB85, 0xBCD),
    "telugu": (0xC05, 0xC4D), "thai": (0xE01, 0xE3A), "lao": (0xE81, 0xEBD), "tibetan": (0xF40, 0xF6C),
    "georgian": (0x10D0, 0x10FF), "hangul-jamo": (0x1100, 0x11FF), "ethiopic": (0x1200, 0x135A),
    "cherokee": (0x13A0, 0x13F4), "khmer": (0x1780, 0x17B3), "mongolian": (0x1820, 0x1877),
    "hiragana": (0x3041, 0x3096), "katakana": (0x30A1, 0x30FA), "han": (0x4E00, 0x9FA5), "hangul": (0xAC00, 0xD7A3),
    "han-extension-b": (0x20000, 0x2A6D6), "gothic": (0x10330, 0x1034A), "math": (0x1D400, 0x1D454),
}
DIGITS = "0123456789٠١٢٣४५६๗๘²³¼½ⅣⅨ①⑳㊿一二三零𝟘𝟙"
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\u2028", "\v", "\f", "\x85"]
EMOJI = ["😀", "🦀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷", "❤️", "1️⃣", "🫠", "✨", "☃", "©", "™"]
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + ["…", "—", "«", "»", "„", "、", "。", "؟", "€", "→", "≠", "∑"]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>", "<|im_", "|>", "<empty_output>"]
CONTRACTIONS = ["I'm", "don't", "we'll", "they've", "it's", "you're", "he'd", "I'M", "DON'T", "it’s", "'tis", "rock'n'roll"]
WORDS = (
    "the of and to in is that it was for on are with as his they be at one have this from or had by hot word but what "
    "some we can out other were all there when up use your how said an each she which do their time if will way about "
    "many then them write would like so these her long make thing see him two has look more day could go come did "
    "number sound no most people my over know water than call first who may down side been now find any new work part "
    "take get place made live where after back little only round man year came show every good me give our under name"
).split()
CODE = [
    "fn main() {\n    println!(\"{}\", 1 + 2);\n}\n", "def f(x):\n\treturn x ** 2  # square\n", "for (int i = 0; i < n; ++i) a[i] += b[i];",
    "SELECT * FROM t WHERE a = 'b''c' -- comment\n", "<div class=\"x\">&nbsp;</div>\r\n", "{\"k\": [1, 2.5e-3, null, true]}",
    "let x: Vec<u8> = vec![0; 16];\n\n\n        x.iter()", "if (a&&b||!c) { return a?b:c; }", "#include <stdio.h>\n", "$ ls -la /usr/bin | grep '^d'",
    "https://example.org/a/b?c=d&e=f#g", "0xDEADBEEF 1_000_000 3.14159 1e10", "camelCaseIdentifier snake_case_identifier SCREAMING_CASE",
]


def letters(rng):
    first, last = SCRIPTS[rng.choice(list(SCRIPTS))]
    found = []
    while len(found) < rng.randint(1, 8):
        c = chr(rng.randint(first, last))
        if unicodedata.category(c) != "Cn":
            found.append(c)
    return "".join(found)


def any_character(rng):
    while True:
        c = chr(rng.choice([rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x20000)]))
        # Unassigned today may be a letter in another library's Unicode.
        if unicodedata.category(c) not in ("Cn", "Cs", "Co"):
            return c


def piece(rng):
    kind = rng.randrange(12)
    if kind < 3:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 12)))
    if kind == 3:
        return letters(rng)
    if kind == 4:
        return "".join(rng.choice(DIGITS) for _ in range(rng.randint(1, 6)))
    if kind == 5:
        return "".join(rng.choice(SPACES) for _ in range(rng.randint(1, 4)))
    if kind == 6:
        return rng.choice(EMOJI) * rng.randint(1, 2)
    if kind == 7:
        return "".join(rng.choice(PUNCTUATION) for _ in range(rng.randint(1, 4)))
    if kind == 8:
        return rng.choice(SPECIALS)
    if kind == 9:
        return rng.choice(CONTRACTIONS)
    if kind == 10:
        return rng.choice(CODE)
    return "".join(any_character(rng) for _ in range(rng.randint(1, 5)))


def string(rng, i):
    if i == 0:
        return ""
    if i <= 16:  # long runs, and a letter after them
        return " " * 2**(i // 2) + ("x" if i % 2 else "")
    if i <= 48:  # every control character
        return "a" + chr(i - 17) + "b" + chr(i - 17) * 3
    if i <= 80:  # the lead bytes of UTF-8 that a small vocabulary may lack
        return "é" + chr(0x10000 + (i - 49) * 0x8000) + "z"
    if i <= 90:
        return rng.choice(["\n", "\t", " \n", "a", "=", "-", "ab", "哈", "0", "🦀"]) * rng.randint(20, 200)
    separator = rng.choice(["", " ", " ", "\n", "  "])
    return separator.join(piece(rng) for _ in range(rng.randint(1, 8)))


def reference_tokenizer(path):
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [token for token, kind in zip(tokens, types) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def main():
    tokenizer = reference_tokenizer(sys.argv[1])
    rng = random.Random(135)
    rows = []
    for i in range(NUM_STRINGS):
        text = string(rng, i)
        tokenizer.encode_special_tokens = False
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        row = {"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)}
        # Stored only where they say something new.
        if row["decoded"] == text:
            del row["decoded"]
        if plain != ids:
            row["plain_ids"] = plain
        rows.append(row)
    target = Path(__file__).with_name("tokenizer_strings.json")
    lines = ",\n".join(json.dumps(row, ensure_ascii=True, separators=(",", ":")) for row in rows)
    target.write_text("[\n" + lines + "\n]\n")
    print(target, target.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
