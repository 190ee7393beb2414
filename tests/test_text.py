"""Token ids equal those of Hugging Face's fast tokenizers; bad input is named."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import BertTokenizer, CLIPTokenizer

from mimic_engine.config import TextConfig
from mimic_engine.errors import InvalidInputError, ModelError
from mimic_engine.text import TextPreprocessor, entity_pair, mention_pair
from mimic_engine.types import Entity, Mention

PAIRS = [
    ("Java", "Java is an island of Indonesia."),
    ("", ""),
    ("", "the only text is the sentence"),
    ("the only text is the mention", ""),
    ("  odd \n\t white\u00a0space ", "David James\nDai James (David James"),
    ("naïve Ünïcödé", "東京 is 日本's capital; emoji 🇨🇭🧀, e\u0301 and \u200b"),
    ("a" * 300, "b " * 300),
    ("one two three four five six seven eight nine ten", "z"),
    ("z", "one two three four five six seven eight nine ten"),
    ("[SEP]", "<|endoftext|> [PAD] [CLS] it's we're"),
]
LENGTHS = [5, 8, 13, 40]


def clip_tokenizer() -> CLIPTokenizer:
    letters = sorted(ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e</w>"), ("i", "n</w>"), ("a", "n"), ("an", "d</w>"), ("i", "s</w>")]
    tokens = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def bert_tokenizer() -> BertTokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(33, 127)] + ["東", "京", "日", "é"]
    words = ["the", "java", "island", "one", "two", "three"]
    tokens = [*special, *letters, *("##" + c for c in letters), *words]
    return BertTokenizer(vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))})


FAMILIES = {"clip": (clip_tokenizer, "literal"), "bert": (bert_tokenizer, "tokenizer")}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request, tmp_path_factory):
    """Hugging Face's tokenizer, the tokenizer.json it saves, and how it pairs texts."""
    make, pairing = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = make()
    tokenizer.save_pretrained(folder)
    return tokenizer, folder / "tokenizer.json", pairing


def reference(tokenizer, pairing, pairs, length):
    """The ids as Hugging Face gives them, and whether the uncut text is longer than ``length``."""
    options = {"padding": "max_length", "truncation": "longest_first", "max_length": length}
    texts = [[f"{a} [SEP] {b}" for a, b in pairs]]
    if pairing == "tokenizer":
        texts = [[a for a, _ in pairs], [b for _, b in pairs]]
    out = tokenizer(*texts, return_token_type_ids=True, **options)
    whole = tokenizer(*texts, padding=False, truncation=False, verbose=False)
    return out, [len(ids) > length for ids in whole["input_ids"]]


def assert_equal(tokens, expected, length):
    out, truncated = expected
    np.testing.assert_array_equal(tokens.input_ids, out["input_ids"])
    np.testing.assert_array_equal(tokens.attention_mask, out["attention_mask"])
    np.testing.assert_array_equal(tokens.token_type_ids, out["token_type_ids"])
    assert tokens.truncated.tolist() == truncated
    for array in (tokens.input_ids, tokens.attention_mask, tokens.token_type_ids):
        assert array.dtype == np.int64
        assert array.shape == (len(truncated), length)


@pytest.mark.parametrize("length", LENGTHS)
def test_ids_equal_hugging_face(family, length):
    tokenizer, file, pairing = family
    preprocess = TextPreprocessor.open(file, TextConfig(max_length=length, pairing=pairing))
    assert_equal(preprocess(PAIRS), reference(tokenizer, pairing, PAIRS, length), length)


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=4))
def test_ids_equal_hugging_face_on_any_text(family, pairs):
    tokenizer, file, pairing = family
    preprocess = TextPreprocessor.open(file, TextConfig(max_length=11, pairing=pairing))
    assert_equal(preprocess(pairs), reference(tokenizer, pairing, pairs, 11), 11)


def test_a_batch_is_its_rows(family):
    _, file, pairing = family
    preprocess = TextPreprocessor.open(file, TextConfig(pairing=pairing))
    together = preprocess(PAIRS)
    for row, pair in enumerate(PAIRS):
        alone = preprocess([pair])
        np.testing.assert_array_equal(alone.input_ids[0], together.input_ids[row])
        np.testing.assert_array_equal(alone.truncated[0], together.truncated[row])


def test_no_pairs_give_empty_arrays(family):
    _, file, pairing = family
    tokens = TextPreprocessor.open(file, TextConfig(max_length=7, pairing=pairing))([])
    assert tokens.input_ids.shape == tokens.token_type_ids.shape == (0, 7)
    assert tokens.truncated.shape == (0,)


def test_truncation_starts_one_token_past_the_limit():
    preprocess = TextPreprocessor(bert_tokenizer().backend_tokenizer, TextConfig(max_length=8))
    fits, over = preprocess([("one two", "three one two"), ("one two", "three one two three")]).truncated
    assert not fits
    assert over


def test_pairs_of_mentions_and_entities():
    assert mention_pair(Mention("Java", "A sentence.", "x.jpg")) == ("Java", "A sentence.")
    assert entity_pair(Entity("Q1", "Java", "island")) == ("Java", "island")


def test_padding_token_rule():
    clip = clip_tokenizer()
    literal = TextConfig(max_length=20, pairing="literal")

    def last_id(tokenizer, config):
        tokens = TextPreprocessor(tokenizer, config)([("a", "b")])
        assert tokens.attention_mask[0, -1] == 0
        return tokens.input_ids[0, -1]

    end, mark = clip.convert_tokens_to_ids(["<|endoftext|>", "!"])
    assert last_id(clip.backend_tokenizer, literal) == end
    assert last_id(clip.backend_tokenizer, replace(literal, pad_token="!")) == mark
    clip.backend_tokenizer.enable_padding(pad_id=3, pad_token="$")
    assert last_id(clip.backend_tokenizer, literal) == 3
    assert last_id(clip.backend_tokenizer, replace(literal, pad_token="!")) == mark


def test_padding_token_that_is_not_there():
    tokenizer = clip_tokenizer().backend_tokenizer
    with pytest.raises(ModelError, match=r"pad_token.*\[NOPE\]"):
        TextPreprocessor(tokenizer, TextConfig(pairing="literal", pad_token="[NOPE]"))
    tokens = json.loads(bert_tokenizer().backend_tokenizer.to_str())
    tokens["model"]["vocab"] = {"a": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    tokens["added_tokens"] = []
    with pytest.raises(ModelError, match=r"pad_token: none of \['\[PAD\]'"):
        TextPreprocessor(Tokenizer.from_str(json.dumps(tokens)), TextConfig())


def test_the_given_tokenizer_is_not_changed():
    tokenizer = bert_tokenizer().backend_tokenizer
    before = tokenizer.to_str()
    TextPreprocessor(tokenizer, TextConfig(max_length=8))([("a", "b")])
    assert tokenizer.to_str() == before


@pytest.mark.parametrize("bad", ["\ud800", "ok \udfff", None, 3, b"bytes"])
def test_text_that_is_no_text(bad):
    preprocess = TextPreprocessor(bert_tokenizer().backend_tokenizer, TextConfig(max_length=8))
    with pytest.raises(InvalidInputError, match="second text of pair 1: ") as caught:
        preprocess([("a", "b"), ("a", bad)])
    assert caught.value.field == "text"


@pytest.mark.parametrize(("length", "pairing"), [(3, "tokenizer"), (0, "tokenizer"), (2, "literal")])
def test_length_without_room(length, pairing):
    with pytest.raises(ModelError, match=f"max_length: {length} leaves no room"):
        TextPreprocessor(bert_tokenizer().backend_tokenizer, TextConfig(max_length=length, pairing=pairing))


def test_unknown_pairing():
    with pytest.raises(ModelError, match="pairing: 'both'"):
        TextPreprocessor(bert_tokenizer().backend_tokenizer, TextConfig(pairing="both"))


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"version": "1.0", "model"', b"\xff\xfe\x00"])
def test_damaged_tokenizer_file(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        TextPreprocessor.open(file, TextConfig())


def test_missing_tokenizer_file(tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        TextPreprocessor.open(tmp_path / "tokenizer.json", TextConfig())
    with pytest.raises(ModelError, match="cannot be read"):
        TextPreprocessor.open(Path(tmp_path), TextConfig())


@settings(max_examples=40, deadline=None)
@given(pair=st.sampled_from(PAIRS) | st.tuples(st.text(max_size=20), st.text(max_size=20)))
def test_spans_are_the_real_tokens_and_point_at_their_characters(family, pair):
    _, file, pairing = family
    preprocess = TextPreprocessor.open(file, TextConfig(max_length=11, pairing=pairing))
    spans = preprocess.spans(Mention(*pair))
    assert len(spans) == preprocess([pair]).attention_mask.sum()
    parts = dict(zip(("mention", "sentence"), pair, strict=True))
    for span in spans:
        assert span.text == ("" if span.part == "special" else parts[span.part][span.start : span.stop])
    for part in parts:
        starts = [span.start for span in spans if span.part == part]
        assert starts == sorted(starts)


def test_spans_name_what_the_model_reads(family):
    _, file, pairing = family
    spans = TextPreprocessor.open(file, TextConfig(pairing=pairing)).spans(Mention("the", "one, the"))
    found = ["".join(s.text for s in spans if s.part == part) for part in ("mention", "sentence")]
    assert found == ["the", "one,the"]
    assert spans[0].part == spans[-1].part == "special"


LONG = "one two three four five six seven eight nine ten the island java is one two three four five six"


def sentence_read(preprocess, mention):
    """Characters of the sentence between its first and its last token."""
    spans = [s for s in preprocess.spans(mention) if s.part == "sentence"]
    return mention.sentence[spans[0].start : spans[-1].stop] if spans else ""


def test_window_keeps_what_stands_around_the_mention(family):
    _, file, pairing = family
    config = TextConfig(max_length=26, pairing=pairing, window="mention")
    read = sentence_read(TextPreprocessor.open(file, config), Mention("java", LONG))
    assert "java" in read.split()
    before, after = read.split("java")
    assert before and after and abs(len(before) - len(after)) < 16  # even to a word on each side
    assert set(read.split()) <= set(LONG.split())  # no word is cut
    start = replace(config, window="start")
    assert "java" not in sentence_read(TextPreprocessor.open(file, start), Mention("java", LONG))


@pytest.mark.parametrize("at_end", [True, False])
def test_window_at_an_end_fills_the_room(family, at_end):
    words = LONG.replace("java ", "")
    mention = Mention("java", f"{words} java" if at_end else f"java {words}")
    _, file, pairing = family
    preprocess = TextPreprocessor.open(file, TextConfig(max_length=24, pairing=pairing, window="mention"))
    tokens = preprocess.mentions([mention])
    assert tokens.truncated.all()
    assert tokens.attention_mask.sum() >= 24 - 5  # but for a word that would be cut
    assert mention.mention in sentence_read(preprocess, mention).split()


def test_window_prefers_words_of_their_own_and_takes_any_case(family):
    _, file, pairing = family
    preprocess = TextPreprocessor.open(file, TextConfig(max_length=20, pairing=pairing, window="mention"))
    late = "javas one two three four five six seven eight nine ten one two three JAVA is the island"
    assert "JAVA" in sentence_read(preprocess, Mention("Java", late))


@pytest.mark.parametrize("surface", ["zzz", "", "one two three four five six seven eight nine ten one two"])
def test_window_without_a_place_or_room_is_the_start(family, surface):
    _, file, pairing = family
    config = TextConfig(max_length=16, pairing=pairing, window="mention")
    mentions = [Mention(surface, LONG)]
    plain = TextPreprocessor.open(file, replace(config, window="start"))
    ours = TextPreprocessor.open(file, config).mentions(mentions)
    np.testing.assert_array_equal(ours.input_ids, plain.mentions(mentions).input_ids)


@settings(max_examples=60, deadline=None)
@given(
    pair=st.sampled_from(PAIRS) | st.tuples(st.text(max_size=4), st.text(max_size=60)),
    window=st.sampled_from(["start", "mention"]),
    length=st.integers(6, 30),
)
def test_mentions_are_their_spans_in_any_window(family, pair, window, length):
    _, file, pairing = family
    preprocess = TextPreprocessor.open(file, TextConfig(length, pairing, window=window))
    mention = Mention(*pair)
    tokens, plain = preprocess.mentions([mention]), preprocess([pair])
    spans = preprocess.spans(mention)
    assert len(spans) == tokens.attention_mask.sum()
    for span in spans:
        part = {"mention": pair[0], "sentence": pair[1], "special": ""}[span.part]
        assert span.text == part[span.start : span.stop]
    np.testing.assert_array_equal(tokens.truncated, plain.truncated)
    if window == "start" or not plain.truncated[0]:
        np.testing.assert_array_equal(tokens.input_ids, plain.input_ids)


def test_unknown_window():
    with pytest.raises(ModelError, match="window: 'end'"):
        TextPreprocessor(bert_tokenizer().backend_tokenizer, TextConfig(window="end"))
