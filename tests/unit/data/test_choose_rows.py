from collections import Counter

import datasets
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trainer_loop import UserError
from trainer_loop.data.choose_rows import (
    choose_stratified,
    cut_validation,
    deal_groups,
    deal_rows,
    find_classes,
    limit_rows,
)
from trainer_loop.data.origins import Origins
from trainer_loop.data.split import Split

CLASSES = st.lists(st.integers(0, 4), min_size=2, max_size=60).map(np.array)


def make_split(labels: list[object], feature: object = None) -> Split:
    features = None
    if feature is not None:
        features = datasets.Features({"row": datasets.Value("int64"), "label": feature})
    rows = datasets.Dataset.from_dict({"row": list(range(len(labels))), "label": labels}, features=features)
    return Split("train", rows, Origins.of("some.csv row", len(labels)), "abc")


def rows_of(split: Split) -> list[int]:
    return list(split.rows["row"])


@given(classes=CLASSES, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_shares_of_classes_are_kept_and_no_class_is_taken_whole(classes: np.ndarray, fraction: float, seed: int):
    keys = np.random.default_rng(seed).integers(0, 2**63, len(classes), dtype=np.uint64)
    chosen = choose_stratified(classes, fraction=fraction, keys=keys)
    sizes = Counter(classes.tolist())
    taken = Counter(classes[chosen].tolist())
    if max(sizes.values()) > 1:
        assert all(taken[kind] < size for kind, size in sizes.items())
        total = min(max(round(len(classes) * fraction), 1), len(classes) - 1)
        assert sum(taken.values()) == min(total, len(classes) - len(sizes))
        for kind, size in sizes.items():
            # A class may be given more than its share only where others have no rows left to give.
            assert taken[kind] >= min(np.floor(size * total / len(classes)), size - 1)
    else:
        assert 0 < chosen.sum() < len(classes)


@given(classes=CLASSES, seed=st.integers(0, 2**32))
def test_which_rows_are_chosen_within_a_class_is_for_the_keys_to_say(classes: np.ndarray, seed: int):
    assume(max(Counter(classes.tolist()).values()) > 1)
    keys = np.random.default_rng(seed).permutation(len(classes)).astype(np.uint64)
    chosen = choose_stratified(classes, fraction=0.4, keys=keys)
    for kind in set(classes.tolist()):
        mine = classes == kind
        if (chosen & mine).any():
            assert keys[chosen & mine].max() < keys[~chosen & mine].min()


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        (["a", "b"] * 50, None),
        ([0, 1] * 50, None),
        ([True, False] * 50, None),
        ([0, 1] * 50, datasets.ClassLabel(names=["a", "b"])),
    ],
)
def test_validation_is_cut_by_class_whatever_the_labels_are(labels: list[object], feature: object):
    train, validation = cut_validation(make_split(labels, feature), fraction=0.2, label="label", seed=1)
    assert (train.name, validation.name) == ("train", "validation")
    assert sorted(rows_of(train) + rows_of(validation)) == list(range(100))
    assert rows_of(train) == sorted(rows_of(train))
    assert rows_of(validation) == sorted(rows_of(validation))
    assert list(Counter(validation.rows["label"]).values()) == [10, 10]
    assert [validation.origins.place(row) for row in range(20)] == [
        f"some.csv row {n + 1}" for n in rows_of(validation)
    ]


def test_a_class_of_one_row_stays_in_train():
    train, validation = cut_validation(make_split(["a"] * 9 + ["b"]), fraction=0.3, label="label", seed=1)
    assert "b" in train.rows["label"]
    assert len(validation.rows) == 3


def test_labels_that_name_no_classes_do_not_matter():
    assert set(find_classes(make_split([0.5, 1.5]).rows, "label")) == {0}
    assert set(find_classes(make_split([[1], [2]]).rows, "label")) == {0}
    assert set(find_classes(make_split(["a", "b"]).rows, None)) == {0}
    assert set(find_classes(make_split(["a", "b"]).rows, "no such column")) == {0}


def test_null_labels_are_a_class_of_their_own():
    assert len(set(find_classes(make_split(["a", None, "b", None]).rows, "label"))) == 3


def test_the_cut_follows_from_the_seed_alone():
    cuts = [rows_of(cut_validation(make_split([0, 1] * 50), fraction=0.1, label="label", seed=s)[1]) for s in (1, 1, 2)]
    assert cuts[0] == cuts[1] != cuts[2]
    # As it was when this was written: another version of numpy must not cut otherwise.
    assert cuts[0] == [4, 36, 43, 48, 51, 55, 73, 88, 94, 97]


def test_a_limit_samples_rows_in_order_and_follows_the_seed():
    split = make_split(list(range(100)))
    samples = [limit_rows(split, limit=10, seed=seed) for seed in (1, 1, 2)]
    rows = [rows_of(sample) for sample in samples]
    assert rows[0] == sorted(set(rows[0]))
    assert len(rows[0]) == 10
    assert rows[0] == rows[1] != rows[2]
    assert samples[0].origins.place(3) == f"some.csv row {rows[0][3] + 1}"
    assert samples[0].fingerprint == samples[1].fingerprint != samples[2].fingerprint


def test_every_row_is_sampled_equally_often():
    split = make_split([0] * 20)
    counts = Counter(row for seed in range(400) for row in rows_of(limit_rows(split, limit=5, seed=seed)))
    # 100 expected, standard deviation 8.7.
    assert all(60 < counts[row] < 140 for row in range(20))


def test_a_limit_that_is_not_reached_changes_nothing():
    split = make_split([0, 1])
    assert limit_rows(split, limit=2, seed=1) is split


@given(classes=CLASSES, parts=st.integers(2, 7), seed=st.integers(0, 2**32))
def test_each_row_is_in_one_fold_and_folds_have_equal_shares_of_each_class(classes, parts: int, seed: int):
    keys = np.random.default_rng(seed).integers(0, 2**63, len(classes), dtype=np.uint64)
    dealt = deal_rows(classes, parts, keys)
    assert set(dealt.tolist()) <= set(range(parts))
    for rows in (np.ones(len(classes), dtype=bool), *(classes == kind for kind in set(classes.tolist()))):
        counts = np.bincount(dealt[rows], minlength=parts)
        assert counts.max() - counts.min() <= 1


@given(groups=st.lists(st.integers(0, 9), min_size=1, max_size=60), parts=st.integers(2, 5), seed=st.integers(0, 2**32))
def test_folds_by_group_keep_groups_whole_and_are_as_even_as_these_allow(groups, parts: int, seed: int):
    numbers = np.unique(groups, return_inverse=True)[1]
    keys = np.random.default_rng(seed).integers(0, 2**63, len(numbers), dtype=np.uint64)
    dealt = deal_groups(numbers, parts, keys)
    assert all(len(set(dealt[numbers == group].tolist())) == 1 for group in set(numbers.tolist()))
    counts = np.bincount(dealt, minlength=parts)
    assert counts.max() - counts.min() <= np.bincount(numbers).max()
    if numbers.max() + 1 >= parts:
        assert counts.min() > 0


@pytest.mark.parametrize("group", [None, "row"])
def test_folds_share_the_training_rows_among_themselves(group: str | None):
    split = make_split(["a", "b", "b"] * 10)
    cuts = [
        cut_validation(split, fraction=None, fold=f"{part}/4", label="label", group=group, seed=3)
        for part in (1, 2, 3, 4)
    ]
    assert sorted(row for _, validation in cuts for row in rows_of(validation)) == list(range(30))
    for train, validation in cuts:
        assert sorted(rows_of(train) + rows_of(validation)) == list(range(30))
        assert (train.name, validation.name) == ("train", "validation")
    assert len({validation.fingerprint for _, validation in cuts}) == 4
    again = cut_validation(split, fraction=None, fold="2/4", label="label", group=group, seed=3)[1]
    other = cut_validation(split, fraction=None, fold="2/4", label="label", group=group, seed=4)[1]
    assert rows_of(again) == rows_of(cuts[1][1]) != rows_of(other)
    if group is None:  # as it was when this was written
        assert rows_of(again) == [4, 5, 6, 7, 18, 22, 24, 26]


def test_more_folds_than_rows_or_groups_are_refused():
    with pytest.raises(UserError, match=r"data\.fold=1/4: data\.train has 3 rows; ask for at most so many parts"):
        cut_validation(make_split(["a", "b", "b"]), fraction=None, fold="1/4", label="label", seed=3)
    with pytest.raises(UserError, match=r"data\.fold=1/3: data\.train has 2 groups by data\.split_by"):
        cut_validation(make_split(["a", "b"] * 9), fraction=None, fold="1/3", label=None, group="label", seed=3)
