"""The timer's arithmetic: whose turn it is, what belongs to which call, what medians and ratios say."""

from __future__ import annotations

from collections import Counter

import pytest

from vitrify.bench.measure import Clock, Timing, interleave, ratios, summarise, timed, turns


def test_a_round_goes_forward_and_back() -> None:
    assert [peer for _, peer in turns("ABC", 1)] == list("ABCCBA")


def test_each_round_starts_one_peer_further_on() -> None:
    order = "".join(peer for _, peer in turns("AB", 3))
    assert order == "ABBA" + "BAAB" + "ABBA"
    assert [number for number, _ in turns("AB", 2)] == [0] * 4 + [1] * 4


def test_a_steady_drift_falls_on_all_peers_alike() -> None:
    visits = list(turns("ABCD", 8))
    places: Counter[str] = Counter()
    for place, (_, peer) in enumerate(visits):
        places[peer] += place
    assert len(set(places.values())) == 1


def test_interleave_keeps_rounds_apart_and_rests_before_every_visit() -> None:
    events: list[str] = []

    def visit(peer: str) -> str:
        events.append(peer)
        return f"{peer}{len(events)}"

    found = interleave(("a", "b"), 2, visit, settle=lambda: events.append("."))
    assert events == [".", "a", ".", "b", ".", "b", ".", "a", ".", "b", ".", "a", ".", "a", ".", "b"]
    assert found == {"a": [["a2", "a8"], ["a12", "a14"]], "b": [["b4", "b6"], ["b10", "b16"]]}


def test_timed_gives_each_call_its_own_parts() -> None:
    clock = Clock()
    clock.add("left over", 9.0)

    def call(index: int) -> None:
        clock.add("first", index + 1.0)
        clock.add("first", 0.5)
        if index == 1:
            clock.add("second", 7.0)

    timing = timed(call, 3, clock)
    assert timing.parts == {"first": (1.5, 2.5, 3.5), "second": (0.0, 7.0, 0.0)}
    assert len(timing.seconds) == 3
    assert all(seconds >= 0 for seconds in timing.seconds)


def test_timed_measures_the_call() -> None:
    slow = timed(lambda _: sum(range(200_000)), 3).seconds
    quick = timed(lambda _: None, 3).seconds
    assert min(slow) > 10 * min(quick)


def test_timings_add_up_in_order() -> None:
    both = Timing((1.0,), {"a": (0.1,)}) + Timing((2.0, 3.0), {"a": (0.2, 0.3)})
    assert both == Timing((1.0, 2.0, 3.0), {"a": (0.1, 0.2, 0.3)})


def test_summary_of_equal_values_has_no_width() -> None:
    summary = summarise([2.0] * 7)
    assert (summary.median, summary.low, summary.high, summary.count) == (2.0, 2.0, 2.0, 7)


def test_summary_is_a_median_and_its_interval_lies_around_it() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 100.0]
    summary = summarise(values)
    assert summary.median == 3.0
    assert 1.0 <= summary.low < 3.0 < summary.high <= 100.0
    assert summary == summarise(values)


def test_interval_narrows_with_more_values() -> None:
    few, many = summarise([1.0, 2.0, 3.0] * 2), summarise([1.0, 2.0, 3.0] * 200)
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_summary_refuses_what_is_no_number(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one and all finite"):
        summarise(values)


def test_ratios_pair_rounds_before_anything_is_averaged() -> None:
    # Both slow down tenfold half way: the ratio of medians would be 10 or 0.1, the rounds say 0.5.
    assert summarise(ratios([1.0, 1.0, 10.0], [2.0, 2.0, 20.0])).median == 0.5
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])
