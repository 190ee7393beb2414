"""What is remembered is what would be computed, and never more of it than allowed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_engine import Linker, Mention
from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.encoding.cache import EncodingCache, FoldedMention, image_key, mention_key
from mimic_engine.errors import ImageError, InvalidInputError
from mimic_engine.types import MentionArrays, TokenBatch


@pytest.fixture
def linker(tiny_model, tiny_index):
    linker = Linker.open(tiny_model, tiny_index, threads=1, cache_bytes=1_000_000)
    yield linker
    linker.close()


@pytest.fixture(scope="module")
def plain(tiny_model, tiny_index):
    linker = Linker.open(tiny_model, tiny_index, threads=1)
    yield linker
    linker.close()


@pytest.fixture
def image(tiny_picture):
    return tiny_picture.read_bytes()


def summary(results):
    return [([c.id for c in r.candidates], r.text_truncated, r.has_image) for r in results]


def test_answers_are_those_without_a_cache(linker, plain, image):
    long = "a b c d e f g h i j a b"
    mentions = [
        Mention("a", "a b"),
        Mention("a", "a b", image),
        Mention("c", long),
        Mention("c", long, image),
    ]
    expected = plain.link(mentions, 13)
    for batch in (mentions, mentions[:1], mentions[1:], mentions[::-1], [*mentions, *mentions]):
        wanted = {id(m): e for m, e in zip(mentions, summary(expected), strict=True)}
        assert summary(linker.link(batch, 13)) == [wanted[id(m)] for m in batch]
    assert linker.cache.asked["mention", "hit"] > 0
    scores = [[c.score for c in r.candidates] for r in expected]
    np.testing.assert_allclose(
        [[c.score for c in r.candidates] for r in linker.link(mentions, 13)], scores, atol=1e-5
    )


def test_a_mention_that_comes_again_is_not_encoded_again(linker, image, monkeypatch):
    mention = Mention("a b", "c d", image)
    [first] = linker.link([mention], 13)
    for name in ("encode_text", "encode_image", "fold_mentions"):
        monkeypatch.setattr(linker.featurizer._session, name, None)  # calling it would raise
    monkeypatch.setattr(linker.featurizer, "images", None)
    [second] = linker.link([Mention("a b", "c d", bytes(image))], 13)
    assert second == first
    assert linker.cache.asked == {("mention", "miss"): 1, ("mention", "hit"): 1, ("image", "miss"): 1}


def test_an_image_that_comes_with_another_text_is_not_decoded_again(linker, plain, image, monkeypatch):
    linker.link([Mention("a b", "c d", image)])
    monkeypatch.setattr(linker.featurizer, "images", None)
    monkeypatch.setattr(linker.featurizer._session, "encode_image", None)
    other = Mention("e", "f g", image)
    assert summary(linker.link([other], 13)) == summary(plain.link([other], 13))
    assert linker.cache.asked["image", "hit"] == 1


def test_explanations_know_their_tokens_also_from_the_cache(linker, plain):
    mention = Mention("a b", "c d a")
    linker.link([mention])
    [found], [expected] = linker.link([mention], 3, explain=True), plain.link([mention], 3, explain=True)
    assert found.tokens == expected.tokens
    for one, other in zip(found.candidates, expected.candidates, strict=True):
        assert one.explanation.attention == pytest.approx(other.explanation.attention, abs=1e-5)


def test_errors_are_not_remembered(linker, image):
    for _ in range(2):
        with pytest.raises(ImageError):
            linker.link([Mention("a", "b", image[:60])])
        with pytest.raises(InvalidInputError, match="surrogate"):
            linker.link([Mention("a", "\ud800")])
    assert ("mention", "hit") not in linker.cache.asked
    assert linker.cache.bytes == 0


def test_paths_are_read_every_time(linker, plain, tmp_path, tiny_picture, tiny_kb):
    file = tmp_path / "image.png"
    for source in (tiny_picture, tiny_kb.parent / "1.png"):
        file.write_bytes(source.read_bytes())
        mention = Mention("a", "b", file)
        assert summary(linker.link([mention], 13)) == summary(plain.link([mention], 13))
    assert linker.cache.bytes == 0


def test_without_bytes_there_is_no_cache(plain, tiny_model):
    assert plain.cache is None
    assert not hasattr(open_featurizer(tiny_model, threads=1), "cache")


def test_reopening_keeps_what_is_remembered(linker, monkeypatch):
    assert linker.reopened().cache is linker.cache


def test_keys_tell_every_part_apart():
    mentions = [
        Mention("a", "b"), Mention("ab", ""), Mention("", "ab"), Mention("b", "a"), Mention("a", "b", b"x"),
        Mention("a", "b", b"y"), Mention("a", "bx"), Mention("a", "\ud800"), Mention("a", "?"),
    ]  # fmt: skip
    assert len({mention_key(m) for m in mentions}) == len(mentions)
    assert mention_key(Mention("a", "b", "file.png")) is None
    assert image_key(b"x") != image_key(b"y")


def folded(size):
    ids = np.zeros((1, 0), np.int64)
    return FoldedMention(
        TokenBatch(ids, ids, ids, np.zeros(0, bool)), MentionArrays(cmfu=np.zeros((1, size), np.float32))
    )


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60), st.booleans()), max_size=60))
def test_the_cache_is_an_lru_of_bounded_size(steps):
    cache, model = EncodingCache(400), {}  # the model: keys in order of use, with sizes
    asked = Counter()
    for name, size, put in steps:
        key = ("mention", bytes([name]))
        if put:
            cache.put_mention(key, folded(size))
            if key not in model:
                model[key] = 4 * size
            while sum(model.values()) > 400:
                del model[next(iter(model))]
        else:
            found = cache.mention(key)
            assert (found is not None) == (key in model)
            asked["mention", "hit" if found else "miss"] += 1
            if found:
                assert found.nbytes == model[key]
                model[key] = model.pop(key)
        assert cache.bytes == sum(model.values()) <= 400
    assert cache.asked == asked


def test_what_is_larger_than_all_is_not_kept():
    cache = EncodingCache(100)
    cache.put_mention(("mention", b"a"), folded(3))
    cache.put_mention(("mention", b"b"), folded(30))
    assert cache.mention(("mention", b"a")) is not None
    assert cache.mention(("mention", b"b")) is None
