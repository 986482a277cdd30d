"""Writes test/fixtures/tokenizers.json.gz: what Python's tokenizers 0.23.2 makes of the same strings with every part of a tokenizer.json.

    pip install tokenizers==0.23.2 sentencepiece==0.2.2
    python tools/tokenizer-fixtures.py                       # the golden file
    python tools/tokenizer-fixtures.py 2000 7 /tmp/more.json.gz # 2000 random compositions with the seed 7

Models for normalizers and pre-tokenizers have two tokens per character, one at the start of a piece and one inside it, so that the ids
show where pieces begin.
"""

import gzip
import itertools
import json
import random
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

white = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF and chr(c).isspace()]
white += list("\u180e\u200b\u2060\ufeff\u0085")

texts = [
    "", " ", "a", "Hello, world!", " ½ ² Ⅷ", "le café noir", "a!!", "a!!b!!!c??", "I'm you're it's we'LL O'ſ 'S",
    "x = 12345.678e-9 + 0x1F", "١٢٣ ௧௨ 〇一二 ㊿⑳ 𝟜𝟝 ⓪ ꘠ ٣½ Ⅷ2² 1½", "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪👍🏽☺️1️⃣😀", "e\u0301e\u0302a\u0315\u0334 n\u0303o", "ΟΔΟΣ Σ ΑΣ. ὈΔΥΣΣΕΎΣ",
    "İstanbul DIYARBAKIR ß ẞ ſ Ǆ ǅ ﬁ ﬀ ﬃ Å ℃", "漢字かなカナ한글ㅎㅏㄴ", "㐀䶵一龥\u9fff\u9ffd豈\U00020000\U0002a6df\U0002a700\U0002b73f\U0002b740\U0002b820\U0002b920\U0002ceb0\U00030000\U00031350\U0002ebf0",
    "ｶﾞｷﾞＡＢＣ１２３ ㈱ ㍿ ①", "ไทยภาษา हिन्दी नि क्षि বাংলা தமிழ்", "שלום עֲלֵיכֶם مرحبًا ﷺ ﻼ", "a\r\nb\rc\nd\n\n  e", "\t\ttab\x0b\x0c", "\ufeffbom\ufeff", "a\x00b\x01\x1f\x7f\x8f\x9f\xad",
    "a\ufffdb\ue000\U0010ffff\U000f0000", "<s>a</s>", " <s> a  </s>  b", "a[X]b [X] [X]c", "xx<m>yy <m> z", "_[W]_ a[W] [W]b é[W] [W]́ 1[W] ½[W] .[W].", "foo-bar_baz", "--..!!??", "… “q” ‘r’ «s» ‹t› ¡u! ¿v? §1 ¶ † ‡ ※ ‿ ⁀",
    "$€£+=<>^`|~ ∑√≠ ©®™°", "    four spaces    ", "a  b   c    d", "\u3000全角\u3000空白\u3000", "  ▁▁a▁b ▁", "the the the theatre", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "don't do not won ' t n't 'm 's 've 're", "a.b,c;d:e?f!g",
    "Zażółć gęślą jaźń", "Tiếng Việt", "Ελληνικά Русский Հայերեն ქართული", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝕬 𐐀𐐨 𞤀𞤢", "\u1e9b\u0323 \u0344 \u0958 \u2126 \u212b \ufb1d \uf900", "가각 각 각", "​zero​width‌non‍joiner⁠",
    "http://example.com/a?b=c&d=e#f", "def f(x):\n    return x**2  # sq\n", "{\"a\": [1, 2.5, null]}", "1,234,567.89 12345678901234567890", "ⓐⒷ🄰🅰 ªº ʰ ⁿ ₂", "\u1cf2\u1cf3 \u166d \U000111c9 \U00011145 \u1734 \U0001171e", "\u0890\u08e2\U000110cd\U00013430 \u061c\u200e\u202a",
    "\u0345a\u0345 ᾳ kK\u212a 's'S'ſ ʕʔ ⅰⅠ x\r\ny",
]
texts += ["a" + space + "b" + space + space + "c" + space for space in white]

pool = [c for text in texts for c in text] + list("  abcdeABC012..,'!?-\n") * 40
draw = random.Random(14)
texts += ["".join(draw.choice(pool) for _ in range(draw.randint(1, 24))) for _ in range(60)]

# A character map with its own rules: a to b, a cluster, an expansion, a removal
charsmap = None


def character_map():
    """The map of a SentencePiece model with a few rules: characters, a grapheme cluster, expansions, removals."""
    import io

    import sentencepiece

    rules = {"a": "b", "e\u0301": "E", "é": "E", "½": "1/2", "㈱": "(株)", "\u3000": " ", "\t": " ", "ﬁ": "fi", "\u00ad": "", "\r\n": "\n", "A": "a", "が": "ga", "漢字": "kanji", "1️": "1", "☺": ":)", "Å": "A"}
    table = Path("/tmp/rules.tsv")
    table.write_text("".join(f"{' '.join(f'{ord(c):X}' for c in a)}\t{' '.join(f'{ord(c):X}' for c in b)}\n" for a, b in rules.items()))
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab cd ef gh"] * 50), model_writer=out, vocab_size=14, normalization_rule_tsv=str(table), hard_vocab_limit=False, minloglevel=2,
    )
    import base64

    # ModelProto.normalizer_spec is field 3, NormalizerSpec.precompiled_charsmap field 2
    return base64.b64encode(field(field(out.getvalue(), 3), 2)).decode()


def field(message, number):
    """The bytes of a length-delimited field of a protobuf message."""

    def varint(at):
        value = shift = 0
        while True:
            value |= (message[at] & 0x7F) << shift
            shift += 7
            at += 1
            if message[at - 1] < 0x80:
                return value, at

    at = 0
    while at < len(message):
        tag, at = varint(at)
        if tag & 7 == 0:
            _, at = varint(at)
        elif tag & 7 == 5:
            at += 4
        else:
            length, at = varint(at)
            if tag >> 3 == number:
                return message[at : at + length]
            at += length
    raise ValueError(f"no field {number}")


behaviors = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
regexes = [
    gpt2,
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"[一-龥぀-ゟ゠-ヿ]+", r"[0-9][0-9][0-9]", r"(?=(\d{3})+(?!\d))", r"\p{N}{1,3}", r"\d", r"\w+", r"\W", r"[^\w\s]+", r"[\w]+", r"[\w.]+", r"[^\w]+", r"[\W]+", r"[\w&&[^a]]+", r"(?i)\w+", r"\p{Word}+", r"\b", r"\B", r"\s", r"\S+", r"[\s\S]", r".", r"(?m).", r"^", r"$", r"\A.", r".\z", r"\h+", r"[[:punct:]]", r"[[:alpha:]]+",
    r"[[:word:]]+", r"\p{Alnum}+", r"(?<=a)b|(?<!b)c", r"(?>a+)b?", r"a{2,3}", r"\x{1F600}|\u0301", r"\R", r"(?:)", r"a|", r"\p{P}", r"\p{S}", r"\p{M}+", r"\p{Z}", r"\p{C}", r"[^\p{L}]", r"\p{^L}", r"\P{L}", r"\p{Greek}+", r"\p{Script=Latin}+|x", r"(?i)CAFÉ|ΣΑ", r"(a)\1", r"(?<l>.)\k<l>",
    r"\u{200D}", r"[a-z&&[^aeiou]]+", r"\N", r"\O", r"\X",
    r"(?:\S+\W\t*)+\n", r"(?i:'s|k|[xy])+", r"(?i)'s|\s", r"\p{Ll}+", r"\p{Lo}+", r"[[:print:]]+", r"[[:graph:]]+", r"[[:lower:]]|[[:upper:]]+", r"\p{Latin}+(?i:e)?", r"(?:a|b+)+c?", r"(?m:a.b)",
]


def pre_tokenizer_parts():
    yield {"type": "BertPreTokenizer"}
    for first, regex in itertools.product([True, False], [True, False]):
        yield {"type": "ByteLevel", "add_prefix_space": first, "trim_offsets": True, "use_regex": regex}
    for delimiter in ["-", " ", "漢", "😀"]:
        yield {"type": "CharDelimiterSplit", "delimiter": delimiter}
    for individual in [True, False]:
        yield {"type": "Digits", "individual_digits": individual}
    for length in [1, 3, 5]:
        yield {"type": "FixedLength", "length": length}
    for scheme, cut in itertools.product(["first", "never", "always"], [True, False]):
        yield {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}
    yield {"type": "Metaspace", "replacement": "▁"}
    yield {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}
    for behavior in behaviors:
        yield {"type": "Punctuation", "behavior": behavior}
    yield {"type": "Punctuation"}
    yield {"type": "Whitespace"}
    yield {"type": "WhitespaceSplit"}
    for pattern, behavior, invert in itertools.product([{"String": "a"}, {"String": "!!"}, {"Regex": r"\s+|\d"}], behaviors, [True, False]):
        yield {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}
    for string in [" ", "", ".", "\r\n", "👩‍👩", "a b"]:
        yield {"type": "Split", "pattern": {"String": string}, "behavior": "Isolated", "invert": False}
    for regex in regexes:
        yield {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    yield {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]}
    yield {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}]}
    yield {"type": "Sequence", "pretokenizers": []}
    yield {"type": "UnicodeScripts"}


def normalizer_parts():
    for clean, han, accents, lower in itertools.product([True, False], [True, False], [None, True, False], [True, False]):
        yield {"type": "BertNormalizer", "clean_text": clean, "handle_chinese_chars": han, "strip_accents": accents, "lowercase": lower}
    for name in ["ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "StripAccents"]:
        yield {"type": name}
    yield {"type": "Precompiled", "precompiled_charsmap": charsmap}
    for text in ["▁", "", "<p>", "é"]:
        yield {"type": "Prepend", "prepend": text}
    for pattern, content in [({"String": " "}, "▁"), ({"String": "a"}, ""), ({"String": "aa"}, "a"), ({"String": ""}, "-"), ({"Regex": " {2,}"}, "▁"), ({"Regex": r"\d"}, "<d>"), ({"Regex": r"(?<=a)|x*"}, "·"), ({"Regex": r"(\w)"}, r"\1$1$&")]:
        yield {"type": "Replace", "pattern": pattern, "content": content}
    for left, right in itertools.product([True, False], [True, False]):
        yield {"type": "Strip", "strip_left": left, "strip_right": right}
    yield {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}]}
    yield {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    yield {"type": "Sequence", "normalizers": []}


def decoder_parts():
    yield None
    for suffix in ["</w>", "", "b"]:
        yield {"type": "BPEDecoder", "suffix": suffix}
    yield {"type": "ByteFallback"}
    yield {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    for cleanup in [True, False]:
        yield {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": cleanup}
    yield {"type": "Fuse"}
    for scheme in ["first", "never", "always"]:
        yield {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
    for pattern in [{"String": "▁"}, {"String": ""}, {"Regex": "[ab]+|▁"}, {"Regex": "x*"}]:
        yield {"type": "Replace", "pattern": pattern, "content": " "}
    for start, stop in [(1, 0), (3, 0), (0, 1), (1, 1)]:
        yield {"type": "Strip", "content": " ", "start": start, "stop": stop}
    for prefix, cleanup in itertools.product(["##", ""], [True, False]):
        yield {"type": "WordPiece", "prefix": prefix, "cleanup": cleanup}
    yield {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    yield {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}]}
    yield {"type": "Sequence", "decoders": []}


# Special tokens are 0 to 3, so that every model below may name them
special = ["<unk>", "<s>", "</s>", "<pad>"]


def added(content, **flags):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False, **flags}


def added_token_sets():
    yield [added("<s>", special=True), added("</s>", special=True), added("[X]"), added("<m>")]
    yield [added("<s>", special=True, lstrip=True, rstrip=True), added("</s>", special=True, rstrip=True), added("[X]", lstrip=True), added("  ", rstrip=True)]
    yield [added("[W]", single_word=True), added("the", single_word=True), added("a", single_word=True), added("!!", single_word=True), added("½", single_word=True)]
    yield [added("[X]", normalized=True), added("ISTANBUL", normalized=True), added("Café", normalized=True), added("a  b", normalized=True), added("The", normalized=True, single_word=True), added("É", normalized=True, special=True)]
    yield [added("a"), added("aa"), added("aaa"), added("aab"), added("\n"), added("\r\n"), added("👩"), added("‍")]
    yield [added("<m>", lstrip=True, rstrip=True, single_word=True, normalized=True), added("b", lstrip=True), added(" ", rstrip=True), added("c ", rstrip=True)]


def processor_parts():
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    pair = single + [{"Sequence": {"id": "B", "type_id": 1}}]
    tokens = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [2, 3], "tokens": ["</s>", "<pad>"]}}
    template = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}
    yield template
    yield {**template, "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2}
    yield {**template, "single": single[:1]}
    yield {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}
    yield {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": True, "add_prefix_space": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    yield byte_level
    yield {"type": "Sequence", "processors": [byte_level, template]}
    yield {"type": "Sequence", "processors": [{"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}, template]}
    yield {"type": "Sequence", "processors": [template, {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}]}


def whole(model, **parts):
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model}
    return {**tokenizer, **parts}


def load(tokenizer):
    """The tokenizer as Python loads it, or None when it refuses it. Added tokens get the ids that it gives them."""
    for token in tokenizer["added_tokens"]:
        token.setdefault("id", 0)  # any; Python does not read it
    try:
        loaded = Tokenizer.from_str(json.dumps(tokenizer))
    except BaseException as error:  # a panic is none of Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        print("refused:", str(error)[:200], json.dumps({**tokenizer, "model": None})[:600], file=sys.stderr)
        return None
    for token in tokenizer["added_tokens"]:
        token["id"] = loaded.token_to_id(token["content"])
    return loaded


def characters_model():
    """Two tokens for each character that any normalizer makes of the texts."""
    seen = set()
    for part in itertools.chain([None], normalizer_parts(), [{"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "Lowercase"}]}]):
        loaded = load(whole({"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}, normalizer=part))
        for text in texts:
            seen.update(loaded.normalizer.normalize_str(text) if part else text)
    seen.update(pre_tokenizers.ByteLevel.alphabet())
    seen.update("▁_<>pd")
    tokens = special + sorted(seen) + ["##" + character for character in sorted(seen)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": "##", "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": []}


def trained(model, trainer, pre_tokenizer=None, normalizer=None):
    tokenizer = Tokenizer(model)
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(texts[:60], trainer)
    return json.loads(tokenizer.to_str())


def model_cases():
    """Tokenizers that were trained, and every option of their models."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    size = {"vocab_size": 400, "special_tokens": special, "show_progress": False}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    gpt = trained(models.BPE(), trainers.BpeTrainer(**size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()), byte_level)
    yield "BPE", gpt
    yield "BPE", {**gpt, "model": {**gpt["model"], "ignore_merges": True}}
    plain = trained(models.BPE(unk_token="<unk>"), trainers.BpeTrainer(**size, limit_alphabet=40), pre_tokenizers.WhitespaceSplit())
    for fuse in [True, False]:
        yield "BPE", {**plain, "model": {**plain["model"], "fuse_unk": fuse}}
    yield "BPE", {**plain, "model": {**plain["model"], "unk_token": None}}
    yield "BPE", {**plain, "model": {**plain["model"], "ignore_merges": True}, "pre_tokenizer": None}
    yield "BPE", {**plain, "model": {**plain["model"], "merges": [" ".join(pair) for pair in plain["model"]["merges"]]}}
    yield "BPE", {**plain, "model": {**plain["model"], "merges": plain["model"]["merges"][::-1] + plain["model"]["merges"][:5]}}
    words = trained(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"), trainers.BpeTrainer(**size, end_of_word_suffix="</w>", limit_alphabet=60), pre_tokenizers.BertPreTokenizer())
    yield "BPE", words
    prefixed = trained(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"), trainers.BpeTrainer(**size, continuing_subword_prefix="##", limit_alphabet=60), pre_tokenizers.Whitespace())
    yield "BPE", prefixed
    llama = trained(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True), trainers.BpeTrainer(**{**size, "special_tokens": special + bytes_, "vocab_size": 600}, limit_alphabet=40), None, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]))
    yield "BPE", llama
    yield "BPE", {**llama, "normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}}
    lacking = json.loads(json.dumps(llama).replace("<0xC3>", "<0xYY>"))
    yield "BPE", {**lacking, "model": {**lacking["model"], "fuse_unk": False}}
    yield "BPE", lacking

    piece = trained(models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer(**size, limit_alphabet=80), pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer())
    yield "WordPiece", piece
    for longest in [0, 5, 1000]:
        yield "WordPiece", {**piece, "model": {**piece["model"], "max_input_chars_per_word": longest}}
    yield "WordPiece", {**piece, "model": {**piece["model"], "continuing_subword_prefix": ""}, "pre_tokenizer": {"type": "FixedLength", "length": 4}}

    level = trained(models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer(**size), pre_tokenizers.Whitespace())
    yield "WordLevel", level
    yield "WordLevel", {**level, "pre_tokenizer": None}

    unigram = trained(models.Unigram(), trainers.UnigramTrainer(vocab_size=700, special_tokens=special, unk_token="<unk>", show_progress=False), pre_tokenizers.Metaspace())
    yield "Unigram", unigram
    yield "Unigram", {**unigram, "pre_tokenizer": None}
    few = [entry for entry in unigram["model"]["vocab"] if len(entry[0]) != 1 or entry[0] in "▁abcdefghij"]
    yield "Unigram", {**unigram, "model": {**unigram["model"], "vocab": few}}
    fallback = few + [[token, -20.0] for token in bytes_]
    yield "Unigram", {**unigram, "model": {**unigram["model"], "vocab": fallback, "byte_fallback": True}}
    yield "Unigram", {**unigram, "model": {**unigram["model"], "vocab": [entry for entry in fallback if entry[0] != "<0xE6>"], "byte_fallback": True}}
    yield "Unigram", {**unigram, "model": {**unigram["model"], "vocab": few + [["xyz", -1.0], ["yz", -1.0], ["x", -1.0], ["a", -3.0]]}}


def golden(name, part, tokenizer, special_tokens=True):
    loaded = load(tokenizer)
    if loaded is None:
        return None
    ids = []
    for text in texts:
        try:
            ids.append(loaded.encode(text, add_special_tokens=special_tokens).ids)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            ids.append(None)
    return {"part": part, "type": name, "tokenizer": tokenizer, "addSpecialTokens": special_tokens, "ids": ids}


def long_texts(tokenizer):
    """Hashes of the ids of long texts: one letter, words, every text one behind the other."""
    import zlib

    loaded = load(tokenizer)
    made = []
    for text in ["a" * 20_000, "ab " * 7_000, "the theatre " * 2_000, "".join(texts) * 3, "漢é😀" * 2_000]:
        try:
            ids = loaded.encode(text).ids
            made.append([len(ids), zlib.crc32(",".join(map(str, ids)).encode())])
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            made.append(None)
    return made


decoded_tokens = special + [
    "a", "b", "▁", "▁a", "▁the", "##b", "##", "a</w>", "b</w>", "é", "漢", "😀", " ", "  ", " a", "a ", "|", ".", ",", "!", "?", "'", "n't", "'m", "'s", "do", "not", " do not", "Ġ", "Ġa", "Ã", "©", "Â", "ð", "Ł", "ĺ", "Ģ", "ab▁", "x",
    "<0x61>", "<0xC3>", "<0xA9>", "<0xE6>", "<0xBC>", "<0xA2>", "<0xF0>", "<0x20>", "<0xc3>", "<0xZZ>", "<0x+A>", "\ufffd", "\ufeff", "▁▁", "b▁▁", "É",
]


def decoder_golden(part):
    vocab = {token: i for i, token in enumerate(decoded_tokens)}
    tokens = [{**added(content, special=True), "id": i} for i, content in enumerate(special)] + [{**added("É", normalized=True), "id": vocab["É"]}]
    tokenizer = whole({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}, decoder=part, added_tokens=tokens, normalizer={"type": "Lowercase"})
    loaded = load(tokenizer)
    choice = random.Random(5)
    rows = [[i] for i in range(len(vocab))] + [[choice.randrange(len(vocab) + 3) for _ in range(choice.randint(2, 9))] for _ in range(80)]
    bytes_ = [vocab[token] for token in decoded_tokens if token.startswith("<0x")]
    rows += [[choice.choice(bytes_) for _ in range(choice.randint(2, 6))] for _ in range(40)]
    made = []
    for row, skip in itertools.product(rows, [False, True]):
        try:
            made.append([row, skip, loaded.decode(row, skip_special_tokens=skip)])
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
    return {"part": "decoder", "type": part["type"] if part else "none", "tokenizer": tokenizer, "texts": made}


def random_part(choice, parts, field, depth=0):
    """One of the parts, or a sequence of them."""
    if depth < 2 and choice.random() < 0.4:
        return {"type": "Sequence", field: [random_part(choice, parts, field, depth + 1) for _ in range(choice.randint(1, 3))]}
    return choice.choice(parts)


def random_cases(count, seed, model):
    choice = random.Random(seed)
    normal, splitting, processing, sets = list(normalizer_parts()), list(pre_tokenizer_parts())[:-1], list(processor_parts())[:4], list(added_token_sets())
    for _ in range(count):
        parts = {
            "normalizer": random_part(choice, normal, "normalizers") if choice.random() < 0.7 else None,
            "pre_tokenizer": random_part(choice, splitting, "pretokenizers") if choice.random() < 0.8 else None,
            "post_processor": choice.choice(processing) if choice.random() < 0.2 else None,
            "added_tokens": [dict(token) for token in choice.choice(sets)] if choice.random() < 0.6 else [],
        }
        yield golden("random", "composition", whole(model, **parts), choice.random() < 0.7)


def systematic_cases(model):
    for part in pre_tokenizer_parts():
        yield golden(part["type"], "pre_tokenizer", whole(model, pre_tokenizer=part))
    for part in normalizer_parts():
        yield golden(part["type"], "normalizer", whole(model, normalizer=part))
    for part, special_tokens in itertools.product(processor_parts(), [True, False]):
        yield golden(part["type"], "post_processor", whole(model, post_processor=part), special_tokens)
    for tokens, normalizer in itertools.product(added_token_sets(), [None, {"type": "Lowercase"}, {"type": "Prepend", "prepend": "▁"}, {"type": "Strip", "strip_left": True, "strip_right": True}]):
        yield golden("added tokens", "added_tokens", whole(model, added_tokens=[dict(token) for token in tokens], normalizer=normalizer, pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}))
    for name, tokenizer in model_cases():
        yield {**golden(name, "model", tokenizer), "long": long_texts(tokenizer)}
    for part in decoder_parts():
        yield decoder_golden(part)


# Every row of 256 characters in which some are assigned, and some of the others
rows = [*range(0, 0x40000, 256), 0x50000, *range(0xE0000, 0xE1000, 256), 0xF0000, 0xFFF00, 0x100000, 0x10FF00]


def character_classes():
    """Ranges of code points over all of Unicode: which characters a part takes for what."""
    points = [c for row in rows for c in range(row, row + 256) if not 0xD800 <= c <= 0xDFFF]

    def ranges(chosen):
        made = []
        for c in chosen:
            if made and made[-1][1] == c - 1:
                made[-1][1] = c
            else:
                made.append([c, c])
        return " ".join(f"{a:x}" if a == b else f"{a:x}-{b:x}" for a, b in made)

    def cut(part):
        """Those that are cut off from the letters beside them."""
        loaded = load(whole({"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}, pre_tokenizer=part)).pre_tokenizer
        return ranges(c for c in points if len(loaded.pre_tokenize_str(f"a{chr(c)}a")) > 1)

    def removed(part):
        loaded = load(whole({"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}, normalizer=part)).normalizer
        return ranges(c for c in points if loaded.normalize_str(chr(c)) == "")

    def regex(pattern):
        return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}

    def bert(field):
        return {"type": "BertNormalizer", "clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False, field: True}

    parts = [{"type": "WhitespaceSplit"}, {"type": "Digits", "individual_digits": True}, {"type": "Punctuation", "behavior": "Isolated"}, {"type": "Whitespace"}]
    parts += [regex(pattern) for pattern in [r"\s", r"\W", r"\d", r"\p{N}", r"\p{P}", r"\p{S}", r"\p{M}", r"\p{Lu}", r"\p{Han}", r"[[:punct:]]", r"\P{L}"]]
    made = [{"part": part, "cut": cut(part)} for part in parts]
    for part in [bert("clean_text"), bert("strip_accents"), {"type": "StripAccents"}, {"type": "Nmt"}]:
        made.append({"normalizer": part, "removed": removed(part)})
    return made


def normal_forms():
    """Hashes of each normal form over all of Unicode, 256 characters each, by themselves and between a letter and a mark."""
    import zlib

    made = {}
    for name in ["NFC", "NFD", "NFKC", "NFKD", "Lowercase"]:
        loaded = load(whole({"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}, normalizer={"type": name})).normalizer
        sums = []
        for start in rows:
            row = [c for c in range(start, start + 256) if not 0xD800 <= c <= 0xDFFF]
            text = "".join(f"{chr(c)} a{chr(c)}\u0334\u0301 " for c in row)
            sums.append(zlib.crc32(loaded.normalize_str(text).encode()))
        made[name] = sums
    return made


def main():
    global charsmap
    charsmap = character_map()
    model = characters_model()
    if len(sys.argv) > 1:
        cases = random_cases(int(sys.argv[1]), int(sys.argv[2]), model)
        path = Path(sys.argv[3])
        classes, forms = [], {}
    else:
        cases = itertools.chain(systematic_cases(model), random_cases(40, 1, model))
        path = Path(__file__).parent.parent / "test/fixtures/tokenizers.json.gz"
        classes, forms = character_classes(), normal_forms()
    made = [case for case in cases if case is not None]
    for case in made:  # the characters' model is written once
        if case["tokenizer"]["model"] == model:
            case["tokenizer"]["model"] = "characters"
    lines = ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in made)
    head = {"characters": model, "texts": texts, "rows": rows, "classes": classes, "forms": forms}
    text = json.dumps(head, ensure_ascii=True, separators=(",", ":"))[:-1] + ',"cases":[\n' + lines + "\n]}\n"
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(path, len(made), "cases", path.stat().st_size, "bytes")


main()
