"""Writes tokenizer_families/: a small vocabulary of each family's exact pipeline, and the tokens of 2,000 strings.

Vocabularies are trained with Hugging Face's tokenizers, one with SentencePiece, on text from a fixed seed. NAME.json
holds `tokenizer` (a tokenizer.json, or pieces with scores and types), and for each string of strings.json `ids`, and
`plain_ids` (control tokens as plain text) and `decoded` where they differ from `ids` and the string.

    python tests/reference/tokenizer_families.py                needs: tokenizers, sentencepiece, gguf
    python tests/reference/tokenizer_families.py NAME=FILE.json  to compare a published tokenizer.json: writes NAME.json
                                                                 into the current folder, without the vocabulary
"""

import json
import random
import re
import sys
import tempfile
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, Split

import tokenizer_strings

NUM_STRINGS = 2000
VOCAB_SIZE = 1400
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FLAGGED = ["<mask>", "<left>", "<right>", "solo", "<pad>", "<o\u0306>", "<\u014f>"]

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA_3 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL
QWEN_2 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL
QWEN_35 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + TAIL
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + TAIL
)
UNNAMED = [r"[\p{P}\$\+<=>\^~\|]+", GPT_2, r"\p{N}+", "[0-9][0-9][0-9]"]


def split(*expressions):
    steps = [Split(Regex(expression), "isolated") for expression in expressions]
    return pre_tokenizers.Sequence(steps + [ByteLevel(add_prefix_space=False, use_regex=False)])


BYTE_LEVEL = {
    "gpt-2": (None, ByteLevel(add_prefix_space=False, use_regex=True)),
    "gpt-2-prefix": (None, ByteLevel(add_prefix_space=True, use_regex=True)),
    "smollm": (None, pre_tokenizers.Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])),
    "llama-bpe": (None, split(LLAMA_3)),
    "qwen2": (normalizers.NFC(), split(QWEN_2)),
    "qwen2-flags": (normalizers.NFC(), split(QWEN_2)),
    "qwen35": (normalizers.NFC(), split(QWEN_35)),
    "tekken": (None, split(TEKKEN)),
    "default": (None, split(*UNNAMED)),
}
PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
STRIP = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
KEEP = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
SPACED = {
    "llama-prepend": (PREPEND, None, STRIP),
    "llama-prepend-flags": (PREPEND, None, STRIP),
    "metaspace-first": (None, Metaspace(prepend_scheme="first", split=False), STRIP),
    "metaspace-always": (None, Metaspace(prepend_scheme="always", split=True), decoders.Metaspace(prepend_scheme="always")),
    "replace-only": (normalizers.Replace(" ", "▁"), Split(" ", "merged_with_previous"), KEEP),
}


def corpus():
    rng = random.Random(2718)
    return [tokenizer_strings.string(rng, 100) for _ in range(8000)]


def strings():
    rng = random.Random(3141)
    mixed = ["I'M", "we'LL", "'\u017f", "e\u0301", "o\u0302\u0323", "\u1100\u1161\u11a8", "\u212b", "हिन्दी", "HelloWorld", "ABCdef", "▁", "a▁b"]
    mixed += FLAGGED + [" " + text + " \n" for text in FLAGGED] + ["<s>", "</s>", "<unk>", "<0x0A>", "12345678"]
    found = []
    for i in range(NUM_STRINGS):
        text = tokenizer_strings.string(rng, i)
        if i > 90 and i % 3 == 0:
            text = rng.choice(["", " "]).join([text[: len(text) // 2], *rng.choices(mixed, k=2), text[len(text) // 2 :]])
        found.append(text[:120])
    return found


def byte_level(name, texts):
    normalizer, pre_tokenizer = BYTE_LEVEL[name]
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    if name in ("llama-bpe", "tekken"):
        tokenizer = ignoring_merges(tokenizer)
    return tokenizer


def ignoring_merges(tokenizer):
    """Without some merges, whose results are tokens all the same."""
    state = json.loads(tokenizer.to_str())
    state["model"]["ignore_merges"] = True
    merges = state["model"]["merges"]
    state["model"]["merges"] = [merge for i, merge in enumerate(merges) if i < 100 or i % 5]
    return Tokenizer.from_str(json.dumps(state))


def spaced(name, texts):
    normalizer, pre_tokenizer, decoder = SPACED[name]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - 259, limit_alphabet=120, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += sorted(model["vocab"], key=model["vocab"].get)
    merges = [tuple(merge) for merge in model["merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def add_flagged(tokenizer):
    tokenizer.add_tokens([
        AddedToken("<mask>", lstrip=True, special=True, normalized=False), AddedToken("<left>", lstrip=True, normalized=False),
        AddedToken("<right>", rstrip=True, normalized=False), AddedToken("solo", single_word=True, normalized=False),
        AddedToken("<pad>", special=True, normalized=True), AddedToken("<o\u0306>", normalized=True),
    ])


def rows_of(tokenizer, texts):
    rows = []
    for text in texts:
        tokenizer.encode_special_tokens = False
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        rows.append(row(text, ids, plain, tokenizer.decode(ids, skip_special_tokens=False)))
    return rows


def row(text, ids, plain, decoded):
    found = {"ids": ids}
    if plain != ids:
        found["plain_ids"] = plain
    if decoded != text:
        found["decoded"] = decoded
    return found


def sentence_pieces(texts, inputs):
    with tempfile.TemporaryDirectory() as folder:
        corpus_file = Path(folder, "corpus.txt")
        corpus_file.write_text("\n".join(text.replace("\n", " ") for text in texts if text.strip()))
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus_file), model_prefix=f"{folder}/m", model_type="bpe", vocab_size=VOCAB_SIZE, byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True, split_digits=True,
            allow_whitespace_only_pieces=True, character_coverage=0.98, num_threads=1, minloglevel=2,
        )
        processor = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/m.model")
    ids = range(processor.get_piece_size())
    types = [2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 1 for i in ids]
    vocabulary = {
        "tokens": [processor.id_to_piece(i) for i in ids],
        "scores": [processor.get_score(i) for i in ids],
        "types": types,
    }
    return vocabulary, [sentence_row(processor, text) for text in inputs]


def sentence_row(processor, text):
    """Each text between control tokens is a text of its own."""
    found = []
    for part in re.split("(<s>|</s>|<unk>)", text):
        is_control = part in ("<s>", "</s>", "<unk>")
        found += [processor.piece_to_id(part)] if is_control else processor.encode(part)
    plain = processor.encode(text)
    return row(text, found, plain, processor.decode(plain))


def write(path, head, rows):
    lines = ",\n".join(json.dumps(row, ensure_ascii=True, separators=(",", ":")) for row in rows)
    path.write_text('{"tokenizer":' + json.dumps(head, ensure_ascii=True, separators=(",", ":")) + ',\n"rows":[\n' + lines + "\n]}\n")
    print(path, path.stat().st_size, "bytes")


def compare_published(argument):
    name, file = argument.split("=", 1)
    write(Path(f"{name}.json"), None, rows_of(Tokenizer.from_file(file), strings()))


def main():
    if len(sys.argv) > 1:
        for argument in sys.argv[1:]:
            compare_published(argument)
        return
    target = Path(__file__).with_name("tokenizer_families")
    target.mkdir(exist_ok=True)
    texts, inputs = corpus(), strings()
    (target / "strings.json").write_text("[\n" + ",\n".join(json.dumps(text) for text in inputs) + "\n]\n")
    for name in [*BYTE_LEVEL, *SPACED]:
        tokenizer = byte_level(name, texts) if name in BYTE_LEVEL else spaced(name, texts)
        if name.endswith("-flags"):
            add_flagged(tokenizer)
        write(target / f"{name}.json", json.loads(tokenizer.to_str()), rows_of(tokenizer, inputs))
    write(target / "sentencepiece.json", *sentence_pieces(texts, inputs))


if __name__ == "__main__":
    main()
