"""The timer's arithmetic: whose turn it is, what belongs to which call, what medians and ratios say."""

from __future__ import annotations

from collections import Counter

import pytest

from vitrify.bench.measure import Clock, Pace, Timing, interleave, ratio_change, ratios, summarise, timed, turns


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

    def visit(peer: str, _round: int) -> str:
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


def test_rounds_go_on_counting_where_they_stopped() -> None:
    seen: list[tuple[str, int]] = []
    interleave(("a", "b"), 1, lambda peer, number: seen.append((peer, number)), first=3, settle=lambda: None)
    assert seen == [("b", 3), ("a", 3), ("a", 3), ("b", 3)]


def test_the_clock_counts_what_it_hears() -> None:
    clock = Clock()
    for _ in range(3):
        clock.add("rest", 0.5)
    clock.add("first", 0.5)
    assert clock.take_counts() == {"rest": 3, "first": 1}
    assert clock.take_counts() == clock.take() == {}


def test_a_change_is_that_of_the_ratio_whatever_the_machine_does_meanwhile() -> None:
    base = ([1.0, 1.1, 0.9], [2.0, 2.2, 1.8])
    slower_machine = ([10.0, 11.0, 9.0], [20.0, 22.0, 18.0])
    slower_ours = ([1.1, 1.21, 0.99], [2.0, 2.2, 1.8])
    assert ratio_change(base, slower_machine).median == pytest.approx(1.0)
    assert ratio_change(base, slower_ours).median == pytest.approx(1.1)
    wide = ratio_change(([1.0, 2.0, 1.0, 2.0], [1.0] * 4), ([1.0, 2.0, 1.0, 2.0], [1.0] * 4))
    assert wide.low < 1 < wide.high


def test_a_pace_measures_until_the_ratio_is_known() -> None:
    pace = Pace(4, spread=0.01, most=9)
    assert pace.more([], []) == 4
    assert pace.more([1.0] * 4, [2.0] * 4) == 0
    noisy = [1.0, 1.5, 1.0, 1.5]
    assert pace.more(noisy, [1.0] * 4) == 2
    assert pace.more(noisy * 2, [1.0] * 8) == 1
    assert pace.more(noisy * 3, [1.0] * 12) == 0
    assert Pace(4).more(noisy, [1.0] * 4) == 0
    assert pace.more([], [1.0] * 4) == 0  # nothing of ours to be known
