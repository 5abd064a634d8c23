"""A lane's step made of the denoiser's segments: what runs when a step is computed, and what when something stands in.

Computed: embed, first, rest, finish. A first-block skip: embed, first, add, finish. A static skip that holds the residual of
all blocks: embed, add, finish. A predicted output: none. A first-block decision puts its probe between first and rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vitrify.engine.errors import SpecError
from vitrify.runtime.caching.predictors import add_predicted, landing, record
from vitrify.runtime.caching.step import probed

if TYPE_CHECKING:
    from vitrify.engine.denoiser import DenoiserPlan
    from vitrify.runtime.caching.probe import Probe
    from vitrify.runtime.caching.state import DenoisingCacheState

__all__ = ["computed", "skipped"]

Array = npt.NDArray[Any]


def computed(state: DenoisingCacheState, plan: DenoiserPlan, index: int, probe: Probe | None) -> tuple[Array, ...]:
    """`run_transformer` of a compiled pipeline: step `index` of this lane's plan, with what its cache keeps of it.

    probe: of the lane, where its cache decides by the first block.
    """
    policy = state.policy
    if policy is None:
        return (plan.step(index),)
    hidden = plan.hidden
    if not policy.probes:
        noise_pred = plan.step(index)
        if state.of == "residual":
            record(state, np.subtract(hidden.last, hidden.embedded, out=landing(state)))
        return (noise_pred,)
    if probe is None or state.candidate is None or state.residual_threshold is None:
        raise SpecError("a first-block decision needs the lane's probe and the request's threshold; make the lane with denoise")
    plan.select(index)
    plan.run("embed")
    plan.run("first")
    sums = probe.run(state)

    def compute() -> Array:
        plan.run("rest")
        if state.of == "residual":
            return np.subtract(hidden.last, hidden.first, out=landing(state))
        plan.run("finish")
        return plan.noise_pred

    def finish(_remaining: Array) -> Array:
        # A computed step finishes what `rest` gave: first + (last − first) would round it.
        plan.run("finish")
        return plan.noise_pred

    def finish_predicted() -> Array:
        add_predicted(state, hidden.first, hidden.last)
        plan.run("finish")
        return plan.noise_pred

    held = state.of == "residual"
    return probed(
        state,
        state.candidate,
        compute,
        finish if held else None,
        state.residual_threshold,
        finish_predicted=finish_predicted if held else None,
        sums=sums,
    )


def skipped(state: DenoisingCacheState, plan: DenoiserPlan, index: int) -> Array:
    """`run_skipped` of a compiled pipeline: the held residual of all blocks on this step's own embedding."""
    plan.select(index)
    plan.run("embed")
    add_predicted(state, plan.hidden.embedded, plan.hidden.last)
    plan.run("finish")
    return plan.noise_pred
