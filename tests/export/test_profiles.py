"""Profiles: together they take every size once, for every kind of graph."""

import itertools

import pytest

from mimic_engine.encoding.buckets import ROWS, ROWS_PER_RUN, length_buckets
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.errors import InvalidInputError
from mimic_engine.export.profiles import PAIRS, profiles, shapes


def manifests(request):
    return [ModelManifest.read(request.getfixturevalue(f"{n}_folder")) for n in ("bert_vit", "masked_clip")]


@pytest.mark.parametrize("buckets", [ROWS, (1,), (3, 7), (2, 5, 13)])
def test_every_size_is_taken_by_one_profile(request, buckets):
    for manifest in manifests(request):
        longest = manifest.widths["length"]
        for name, by_precision in manifest.graphs.items():
            if name == "scorer":
                continue
            found = profiles(by_precision["fp32"], longest, buckets)
            axes = [[range(span[0], span[2] + 1) for span in profile.values()] for profile in found]
            taken = [sizes for profile in axes for sizes in itertools.product(*profile)]
            assert len(taken) == len(set(taken)), name
            free = name == "text_encoder" and len(found[0]) == 2
            assert len(taken) == buckets[-1] * (longest - 1 if free else 1), name
            assert all(low <= usual <= high for p in found for low, usual, high in p.values())


def test_the_scorer_gets_blocks_of_pairs(request):
    for manifest in manifests(request):
        found = profiles(manifest.graphs["scorer"]["fp32"], manifest.widths["length"])
        for mentions in range(1, ROWS_PER_RUN + 1):
            entities = PAIRS // mentions  # the longest block that the scan cuts for so many mentions
            assert any(
                p["batch"][0] <= mentions <= p["batch"][2] and p["rows"][0] <= entities <= p["rows"][2]
                for p in found
            ), mentions


def test_shapes_put_numbers_for_names(masked_clip_folder):
    manifest = ModelManifest.read(masked_clip_folder)
    entry = manifest.graphs["text_encoder"]["fp32"]
    last = shapes(entry, profiles(entry, 7)[-1])
    assert last == dict.fromkeys(entry.inputs, ((17, 2), (32, 7), (32, 7)))
    entry = manifest.graphs["image_encoder"]["fp32"]
    assert shapes(entry, profiles(entry, 7)[1]) == {
        "pixels": ((2, 3, 32, 32), (4, 3, 32, 32), (4, 3, 32, 32))
    }


@pytest.mark.parametrize("longest", [1, 2, 7, 8, 9, 17, 40, 41, 77])
def test_length_buckets_end_with_the_models_length(longest):
    found = length_buckets(longest)
    assert found[-1] == longest and list(found) == sorted(set(found)) and len(found) <= 3


@pytest.mark.parametrize("buckets", [(), (0, 1), (4, 1), (2, 2)])
def test_buckets_out_of_order_are_refused(bert_vit_folder, buckets):
    entry = ModelManifest.read(bert_vit_folder).graphs["text_encoder"]["fp32"]
    with pytest.raises(InvalidInputError, match="profiles"):
        profiles(entry, 9, buckets)
