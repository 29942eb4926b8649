"""The order of windows: true permutations, random enough, that no later version may change."""

import numpy as np
import pytest

from adaptive_lm.train.data.windows.order import Mixture, mix, permuted, shuffled


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16, 17, 100, 1000])
def test_every_index_comes_once(length):
    assert sorted(permuted(i, length, key=7) for i in range(length)) == list(range(length))
    assert sorted(shuffled(length, key=7).tolist()) == list(range(length))


def test_other_keys_give_other_orders():
    orders = {tuple(permuted(i, 20, key) for i in range(20)) for key in range(50)}
    assert len(orders) == 50
    assert len({tuple(shuffled(20, key).tolist()) for key in range(50)}) == 50


@pytest.mark.parametrize("order", [permuted, lambda i, n, key: int(shuffled(n, key)[i])], ids=["permuted", "shuffled"])
def test_each_place_gets_each_index_about_equally_often(order):
    n, keys = 10, 3000
    counts = np.zeros((n, n))
    for key in range(keys):
        for i in range(n):
            counts[i, order(i, n, mix(key))] += 1
    # Chi-squared with 81 degrees of freedom stays below 130 in all but 0.05 % of fair draws.
    assert ((counts - keys / n) ** 2 / (keys / n)).sum() < 130


def test_neighbours_are_torn_apart():
    order = [permuted(i, 10_000, key=3) for i in range(1000)]
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.1


def test_the_order_is_that_of_every_earlier_release():
    # A run that is resumed after an update must see the same windows: these numbers may not change without a new
    # PIPELINE_VERSION. Remade by printing the left sides.
    assert [permuted(i, 10, 1) for i in range(10)] == [6, 2, 1, 7, 3, 4, 8, 9, 5, 0]
    assert shuffled(10, 1).tolist() == [9, 0, 5, 4, 8, 1, 2, 6, 7, 3]
    assert mix(1, 2, 3) == 7702586659592502839


def test_a_large_index_is_permuted_at_once():
    assert 0 <= permuted(10**12, 10**12 + 1, key=1) <= 10**12


@pytest.mark.parametrize(
    "weights", [[1.0], [0.5, 0.5], [0.3, 0.7], [0.1, 0.2, 0.7], [0.25] * 4, [0.001, 0.999], [1 / 3] * 3]
)
def test_each_source_has_its_share_at_any_moment(weights):
    mixture = Mixture(weights)
    counts = [0] * len(weights)
    for number in range(5000):
        source, place = mixture.deal(number)
        assert place == counts[source]  # no window of a source is left out or given twice
        counts[source] += 1
        for weight, count in zip(weights, counts, strict=True):
            assert abs(count - weight * (number + 1)) < 2
