# ruff: noqa: D103  (the name of a check is its sentence)
"""What it means to be a tokenizer: run these checks on any class with `Tokenizer`'s contract.

`for check in TOKENIZER_CHECKS: check(MyTokenizer, my_small_config)`. The config must fit
`tiny_vectors`: at most 24 codes a level.

Shapes:  N items, D width, L levels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sidrec.errors import DataError
from sidrec.types import ItemVectors, as_ids


def tiny_vectors(num_items: int = 200, dim: int = 8, seed: int = 0) -> ItemVectors:
    """Items in 4 tight, well-separated clusters: any sane tokenizer keeps clusters together."""
    random = np.random.default_rng(seed)
    centres = 10 * np.random.default_rng(0).standard_normal((4, dim))
    noise = 0.1 * random.standard_normal((num_items, dim))
    vectors = centres[np.arange(num_items) % 4] + noise
    ids = as_ids(f"item {seed}.{row}" for row in range(num_items))
    return ItemVectors(ids, vectors.astype(np.float32))


def check_same_seed_gives_the_same_codes(tokenizer_class: Any, config: Any) -> None:
    vectors = tiny_vectors()
    first, second = (tokenizer_class.fit(vectors, config).encode(vectors) for _ in range(2))
    np.testing.assert_array_equal(first.codes, second.codes)


def check_input_is_not_touched(tokenizer_class: Any, config: Any) -> None:
    vectors = tiny_vectors()
    before = vectors.vectors.copy()
    tokenizer_class.fit(vectors, config).encode(vectors)
    np.testing.assert_array_equal(vectors.vectors, before)


def check_ids_are_valid_and_in_step(tokenizer_class: Any, config: Any) -> None:
    vectors = tiny_vectors()
    tokenizer = tokenizer_class.fit(vectors, config)
    ids = tokenizer.encode(vectors)
    np.testing.assert_array_equal(ids.item_ids, vectors.item_ids)
    assert ids.codes.dtype == np.int64 and len(ids.codes) == len(vectors)
    assert ids.num_codes == tuple(tokenizer.num_codes)


def check_items_far_apart_get_different_ids(tokenizer_class: Any, config: Any) -> None:
    vectors = tiny_vectors()
    codes = tokenizer_class.fit(vectors, config).encode(vectors).codes
    held = [set(map(tuple, codes[cluster::4].tolist())) for cluster in range(4)]
    for cluster in range(4):
        for other in range(cluster):
            assert not held[cluster] & held[other], "two clusters share a semantic ID"


def check_order_of_items_does_not_matter_to_encode(tokenizer_class: Any, config: Any) -> None:
    vectors = tiny_vectors()
    order = np.random.default_rng(1).permutation(len(vectors))
    shuffled = ItemVectors(vectors.item_ids[order], vectors.vectors[order])
    fitted = tokenizer_class.fit(vectors, config)
    np.testing.assert_array_equal(
        fitted.encode(vectors).codes[order], fitted.encode(shuffled).codes
    )


def check_an_item_alone_gets_the_code_it_has_in_a_batch(tokenizer_class: Any, config: Any) -> None:
    vectors = tiny_vectors()
    fitted = tokenizer_class.fit(vectors, config)
    codes = fitted.encode(vectors).codes
    for row in range(3):
        alone = ItemVectors(vectors.item_ids[[row]], vectors.vectors[[row]])
        np.testing.assert_array_equal(fitted.encode(alone).codes[0], codes[row])


def check_unseen_items_are_welcome(tokenizer_class: Any, config: Any) -> None:
    fitted = tokenizer_class.fit(tiny_vectors(), config)
    assert len(fitted.encode(tiny_vectors(3, seed=9))) == 3
    none = ItemVectors(as_ids([]), np.zeros((0, 8), dtype=np.float32))
    assert len(fitted.encode(none)) == 0


def check_other_widths_are_refused(tokenizer_class: Any, config: Any) -> None:
    fitted = tokenizer_class.fit(tiny_vectors(), config)
    try:
        fitted.encode(tiny_vectors(3, dim=5))
    except DataError as error:
        assert "5" in str(error) and "8" in str(error), "the message names both widths"
    else:
        raise AssertionError("vectors of another width were accepted")


def check_too_few_items_are_refused(tokenizer_class: Any, config: Any) -> None:
    try:
        tokenizer_class.fit(tiny_vectors(1), config)
    except DataError as error:
        assert "1" in str(error)
    else:
        raise AssertionError("one item was enough to fit")


def check_saved_and_loaded_is_equal(tokenizer_class: Any, config: Any) -> None:
    import json

    vectors, unseen = tiny_vectors(), tiny_vectors(5, seed=3)
    fitted = tokenizer_class.fit(vectors, config)
    arrays = {name: np.array(array) for name, array in fitted.arrays().items()}
    state = json.loads(json.dumps(fitted.state()))
    again = tokenizer_class.from_arrays(config, arrays, state)
    for items in (vectors, unseen):
        codes = fitted.encode(items).codes
        np.testing.assert_array_equal(again.encode(items).codes, codes)
        if hasattr(fitted, "decode"):
            np.testing.assert_array_equal(again.decode(codes), fitted.decode(codes))


def check_decode_gives_vectors_of_the_input_width_at_every_depth(
    tokenizer_class: Any, config: Any
) -> None:
    vectors = tiny_vectors()
    fitted = tokenizer_class.fit(vectors, config)
    if not hasattr(fitted, "decode"):
        return
    codes = fitted.encode(vectors).codes
    for depth in range(1, codes.shape[1] + 1):
        rebuilt = fitted.decode(codes[:, :depth])
        assert rebuilt.shape == vectors.vectors.shape and np.isfinite(rebuilt).all()


TOKENIZER_CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
