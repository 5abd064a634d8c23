"""Which steps to compute so that gaps grow: the first steps decide what a picture is, the last ones change little."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate, pairwise

__all__ = ["evenly_growing_mask", "growing_mask", "shared_mask"]

_UNCORRECTED = 2
"""Skips that may follow the last computed step: nothing corrects them."""
_SMALL_SHARE = 0.45
_BOLD, _CAREFUL = (3, 1.2), (5, 1.3)
_REMEMBERED = 64
"""Masks: each step of a request asks for its own, and works it out in a hundredth of a small model's step."""


def growing_mask(steps: int, computed: int, warmup: int, growth: float, last: int | None = None) -> tuple[bool, ...]:
    """The first `warmup` steps, then gaps that grow: the i-th further step lies at a share (i / n) ** growth of what is left.

    computed: steps in all, at most `steps`. growth: 1 gives even gaps. last: the last of them; None: one gap before the end.
    """
    first = min(warmup, computed, steps)
    left = computed - first
    end, parts = (steps, left + 1) if last is None else (last, left)
    places = [first - 1]
    for i in range(1, left + 1):
        place = first - 1 + round((end - first + 1) * (i / parts) ** growth)
        places.append(min(max(place, places[-1] + 1), min(end, steps - 1) - (left - i)))  # room for those that follow
    stops = [*places, steps] if last is None else places
    gaps = sorted(after - before for before, after in pairwise(stops))  # rounding may have swapped neighbours
    chosen = {*range(first), *accumulate(gaps[:left], initial=first - 1)}
    return tuple(step in chosen for step in range(steps))


@lru_cache(_REMEMBERED)
def shared_mask(steps: int, share: float) -> tuple[bool, ...]:
    """About `share` of the steps, with gaps that grow, the last but one among them: nothing corrects a skip after the last one.

    share: from 0 to 1. How many steps come first and how fast the gaps grow was chosen on pictures of the sample; docs/caching.md
    has what it gives on others.
    """
    warmup, growth = _BOLD if share < _SMALL_SHARE else _CAREFUL
    computed = max(round(share * steps), 2)
    if computed >= steps - 1:
        return (True,) * steps
    return growing_mask(steps, computed, min(warmup, (computed + 1) // 2), growth, steps - 2)


@lru_cache(_REMEMBERED)
def evenly_growing_mask(steps: int, repeats: int) -> tuple[bool, ...]:
    """Gaps of 1, then of 2, 3 and so on, each `repeats` times; the last but one step too where more than two skips would end it.

    With 2, the i-th computed step is ⌊(i + 1)² / 4⌋: about 2 · √steps of them, whatever the number of steps.
    """
    chosen, gap, times = [0], 1, 0
    while chosen[-1] + gap <= steps - 2:
        chosen.append(chosen[-1] + gap)
        times += 1
        if times == repeats:
            gap, times = gap + 1, 0
    if steps - 1 - chosen[-1] > _UNCORRECTED:
        chosen.append(steps - 2)
    return tuple(step in chosen for step in range(steps))
