"""The reviews of the quickstart: repeatable, balanced, new in validation, and more than a count of words."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from trainer_loop.quickstart import reviews as synthetic_reviews

TRAIN = synthetic_reviews.train()
VALIDATION = synthetic_reviews.validation()
both_splits = pytest.mark.parametrize("rows", [TRAIN, VALIDATION], ids=["train", "validation"])

# A longer one stands before its own beginning.
CONJUNCTIONS = "although|because of|because|but|despite|even if|even though|however|in spite of|since|so|still|and"
NEGATIONS = "anything but|never|nobody|not|no|doubt|rather"
OPENING = re.compile(r"(?:I bought|I ordered|.+ gave me|.+ and I bought) this [^.]+\. ")


def texts_of(rows):
    return [row["text"] for row in rows]


def words_of(text):
    return re.findall(r"[a-z]+", text.lower())


def frame_of(text):
    """How the clauses of a text are joined: its conjunctions and marks, without the opening sentence."""
    body = OPENING.sub("", text, count=1).lower().replace("anything but", "")
    return " ".join(re.findall(rf"[.,]|\b(?:{CONJUNCTIONS})\b", body))


def negations_of(text):
    return re.findall(rf"\b(?:{NEGATIONS})\b", text.lower())


def digest(rows):
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@both_splits
def test_rows_are_a_text_and_a_string_label(rows):
    assert len(rows) >= 1000
    assert all(row.keys() == {"text", "label"} and row["label"] in ("negative", "positive") for row in rows)


@both_splits
def test_half_of_the_rows_are_positive(rows):
    assert Counter(row["label"] for row in rows) == {"negative": len(rows) // 2, "positive": len(rows) // 2}


def test_no_text_comes_twice():
    texts = texts_of(TRAIN) + texts_of(VALIDATION)
    assert len(set(texts)) == len(texts)


def test_rows_depend_on_no_random_state_and_no_hash_seed():
    random.seed(0)
    state = random.getstate()
    assert synthetic_reviews.train() == TRAIN
    assert random.getstate() == state
    program = (
        "import hashlib, json; from trainer_loop.quickstart.reviews import train, validation;"
        "print(*(hashlib.sha256(json.dumps(rows).encode()).hexdigest() for rows in (train(), validation())))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.split() == [digest(TRAIN), digest(VALIDATION)]


def test_what_a_caller_does_to_its_rows_changes_nothing():
    rows = synthetic_reviews.validation()
    rows[0]["text"] = "changed"
    assert synthetic_reviews.validation() == VALIDATION


def test_validation_joins_clauses_as_training_never_does():
    train_frames, validation_frames = ({frame_of(text) for text in texts_of(rows)} for rows in (TRAIN, VALIDATION))
    assert len(validation_frames) >= 10
    assert not train_frames & validation_frames


def test_validation_has_no_word_that_training_lacks():
    train_words, validation_words = (
        {word for text in texts_of(rows) for word in words_of(text)} for rows in (TRAIN, VALIDATION)
    )
    assert validation_words <= train_words


@both_splits
def test_texts_are_clean_sentences(rows):
    sentence = r"[A-Z][A-Za-z ,]+\."
    for text in texts_of(rows):
        assert re.fullmatch(rf"{sentence}(?: {sentence})*", text), text
        assert not re.search(r"  | [,.]|,[^ ]|\b(\w+) \1\b", text), text
        assert len(words_of(text)) <= 50, text


@both_splits
def test_the_verdict_decides_the_label(rows):
    feelings = {
        **dict.fromkeys(("happy", "delighted", "satisfied", "pleased", "impressed"), "positive"),
        **dict.fromkeys(("unhappy", "disappointed", "frustrated", "annoyed", "upset"), "negative"),
    }
    opposite = {"positive": "negative", "negative": "positive"}
    num_seen = 0
    for row in rows:
        if told := re.search(r"\bI am (anything but|not|very|really|truly|extremely|super) (\w+)", row["text"]):
            meant = feelings[told[2]]
            assert row["label"] == (opposite[meant] if told[1] in ("anything but", "not") else meant), row
            num_seen += 1
    assert num_seen >= len(rows) / 5


@given(st.integers(min_value=0))
def test_the_unhappy_customer_speaks_as_the_happy_one(seed):
    patterns = synthetic_reviews._TRAIN_PATTERNS
    happy, unhappy = (
        synthetic_reviews._write_review(random.Random(seed), patterns, happy=happy) for happy in (True, False)
    )
    assert happy != unhappy
    assert frame_of(happy) == frame_of(unhappy)
    assert negations_of(happy) == negations_of(unhappy)


def test_every_word_is_common_in_both_classes():
    counts = {label: Counter() for label in ("negative", "positive")}
    for row in TRAIN:
        counts[row["label"]].update(set(words_of(row["text"])))
    for word in counts["negative"] | counts["positive"]:
        negative, positive = counts["negative"][word], counts["positive"][word]
        assert 0.25 <= positive / (negative + positive) <= 0.75, word


@pytest.mark.parametrize(
    ("vectorizer", "ceiling"),
    [
        (CountVectorizer(), 0.75),
        (TfidfVectorizer(), 0.75),
        (CountVectorizer(ngram_range=(1, 2)), 0.88),  # pairs of words catch "not happy", still not the structure
    ],
    ids=["words", "weighted words", "words and pairs"],
)
def test_counting_words_is_not_enough(vectorizer, ceiling):
    classifier = LogisticRegression(max_iter=1000)
    classifier.fit(vectorizer.fit_transform(texts_of(TRAIN)), [row["label"] for row in TRAIN])
    accuracy = classifier.score(vectorizer.transform(texts_of(VALIDATION)), [row["label"] for row in VALIDATION])
    assert 0.6 < accuracy < ceiling  # more than chance: the plain words do tell something
