"""The denoiser in segments, on five small graphs in ONNX Runtime."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.compare import assert_close
from tests.engine.toy_denoiser import WIDTH, inputs, reference, write
from vitrify.engine.denoiser import CONDITION_DIM, CONDITION_ROWS, LOOP_SEGMENTS, SEGMENTS, Denoiser, DenoiserPlan
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import BackendError, RequestError, SpecError
from vitrify.engine.ort import OrtCpuBackend
from vitrify.engine.session import Array, Plan, Session
from vitrify.engine.specs import ComponentSpec, Dim, GraphSpec, TensorSpec

SIZE = {"batch": 2, "image_tokens": 5, "text_tokens": 3, "steps": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("denoiser")


@pytest.fixture(scope="module")
def spec(root: Path) -> ComponentSpec:
    return write(root)


@pytest.fixture(scope="module")
def backend() -> OrtCpuBackend:
    return OrtCpuBackend(kernels="portable")


@pytest.fixture
def denoiser(backend: OrtCpuBackend, root: Path, spec: ComponentSpec) -> Iterator[Denoiser]:
    with contextlib.closing(Denoiser(backend, root, spec)) as made:
        yield made


def drawn(plan: DenoiserPlan, seed: int = 0) -> list[Array]:
    """A whole request: every step's noise_pred."""
    request, rows, latents = inputs(**plan.dims, steps=plan.steps, seed=seed)
    plan.condition(request, rows)
    results = []
    for step in range(plan.steps):
        plan.latents[...] = latents[step]
        results.append(plan.step(step).copy())
    return results


def expected(size: dict[str, int], seed: int = 0) -> list[Array]:
    request, rows, latents = inputs(**size, seed=seed)
    return [reference(request, rows, latents, step) for step in range(size["steps"])]


# ---- what it computes


@pytest.mark.parametrize(
    "size",
    [
        SIZE,
        {"batch": 1, "image_tokens": 1, "text_tokens": 1, "steps": 1},
        {"batch": 1, "image_tokens": 3, "text_tokens": 2, "steps": CONDITION_DIM.max},
        {"batch": 1, "image_tokens": 3, "text_tokens": 2, "steps": CONDITION_DIM.max + 1},
        {"batch": 3, "image_tokens": 2, "text_tokens": 4, "steps": 50},
        {"batch": CONDITION_DIM.max + 3, "image_tokens": 2, "text_tokens": 1, "steps": 2},
    ],
    ids=str,
)
def test_every_step_is_the_reference(denoiser: Denoiser, size: dict[str, int]) -> None:
    with denoiser.plan(**size) as plan:
        for step, (got, wanted) in enumerate(zip(drawn(plan), expected(size), strict=True)):
            assert_close(got, wanted, 1e-6, f"step {step}")


class Watched(OrtCpuBackend):
    """Keeps the number of rows of each plan of `condition`."""

    def __init__(self) -> None:
        super().__init__(kernels="portable")
        self.rows: list[int] = []

    def open(self, path: Path, spec: GraphSpec) -> Session:
        session, rows = super().open(path, spec), self.rows
        if spec.path.endswith("condition.onnx"):
            plan = session.plan

            def counted(dims: Mapping[str, int]) -> Plan:
                rows.append(dims[CONDITION_ROWS])
                return plan(dims)

            session.plan = counted  # type: ignore[method-assign]
        return session


@pytest.mark.parametrize(
    ("compiled", "chunks"), [(Dim(CONDITION_ROWS, 1, 3, 3), [3, 3, 2]), (Dim(CONDITION_ROWS, 2, 4, 6, 2), [6, 2])], ids=str
)
def test_condition_runs_on_no_more_rows_than_it_was_compiled_for(
    root: Path, spec: ComponentSpec, compiled: Dim, chunks: list[int]
) -> None:
    backend = Watched()
    with contextlib.closing(Denoiser(backend, root, spec, condition_rows=compiled)) as denoiser, denoiser.plan(**SIZE) as plan:
        for got, wanted in zip(drawn(plan), expected(SIZE), strict=True):
            assert_close(got, wanted, 1e-6)
    assert backend.rows == chunks


def test_rows_that_no_chunks_make_up_are_refused(backend: OrtCpuBackend, root: Path, spec: ComponentSpec) -> None:
    compiled = Dim(CONDITION_ROWS, 5, 5, 5)
    with (
        contextlib.closing(Denoiser(backend, root, spec, condition_rows=compiled)) as denoiser,
        denoiser.plan(**SIZE) as plan,
        pytest.raises(RequestError, match="condition_rows=3 is outside what this artifact was compiled for: 5"),
    ):
        drawn(plan)


def test_steps_may_run_in_any_order_and_again(denoiser: Denoiser) -> None:
    request, rows, latents = inputs(**SIZE)
    with denoiser.plan(**SIZE) as plan:
        plan.condition(request, rows)
        for step in (3, 0, 0, 2, 3, 1):
            plan.latents[...] = latents[step]
            assert_close(plan.step(step), reference(request, rows, latents, step), 1e-6)


def test_segments_run_one_by_one_are_a_step(denoiser: Denoiser) -> None:
    with denoiser.plan(**SIZE) as plan:
        whole = drawn(plan)
        _, _, latents = inputs(**SIZE)
        plan.latents[...] = latents[2]
        plan.select(2)
        for segment in LOOP_SEGMENTS:
            plan.run(segment)
        np.testing.assert_array_equal(plan.noise_pred, whole[2])


def test_the_hidden_states_are_where_the_segments_write_them(denoiser: Denoiser) -> None:
    with denoiser.plan(**SIZE) as plan:
        drawn(plan)
        hidden = plan.hidden
        assert hidden.embedded is plan.array("embed", "h0") is plan.array("first", "h0")
        assert hidden.first is plan.array("first", "h1") is plan.array("rest", "h1")
        assert hidden.last is plan.array("rest", "hn") is plan.array("finish", "hn")
        np.testing.assert_array_equal(hidden.embedded, 2 * plan.latents)


def test_the_caller_keeps_its_arrays(denoiser: Denoiser) -> None:
    request, rows, _ = inputs(**SIZE)
    before = {name: value.copy() for name, value in {**request, **rows}.items()}
    with denoiser.plan(**SIZE) as plan:
        drawn(plan)
        plan.condition(request, rows)
        for value in (*request.values(), *rows.values()):
            value[...] = np.nan
        plan.latents[...] = 1
        assert np.isfinite(plan.step(0)).all(), "what was given is copied or used up before condition returns"
    assert before.keys() == {*request, *rows}


def test_arrays_of_any_layout_are_taken(denoiser: Denoiser) -> None:
    request, rows, latents = inputs(**SIZE)
    with denoiser.plan(**SIZE) as plan:
        plan.condition(
            {name: np.asfortranarray(value) for name, value in request.items()},
            {"timestep": rows["timestep"], "pooled": np.repeat(rows["pooled"], 2, axis=-1)[..., ::2]},
        )
        plan.latents[...] = latents[1]
        assert_close(plan.step(1), reference(request, rows, latents, 1), 1e-6)


# ---- what it refuses


def wrong(name: str, value: Any, kind: str = "request") -> tuple[dict[str, Any], dict[str, Any]]:
    request, rows, _ = inputs(**SIZE)
    given: dict[str, dict[str, Any]] = {"request": dict(request), "rows": dict(rows)}
    if value is None:
        del given[kind][name]
    else:
        given[kind][name] = value
    return given["request"], given["rows"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (wrong("text", None), r"toy: request inputs missing \['text'\], unknown \[\]; expected \['rotary', 'text'\]"),
        (wrong("rotary", None), r"request inputs missing \['rotary'\]"),
        (wrong("guidance", np.zeros(2)), r"request inputs missing \[\], unknown \['guidance'\]"),
        (wrong("timestep", None, "rows"), r"toy: rows inputs missing \['timestep'\]"),
        (wrong("text", np.zeros(2), "rows"), r"toy: rows inputs missing \[\], unknown \['text'\]"),
        (wrong("timestep", np.zeros((3, 2), np.float32), "rows"), r"'timestep': got \[3, 2\], expected \[steps=4, batch=2, …\]"),
        (wrong("timestep", np.zeros((4, 3), np.float32), "rows"), r"'timestep': got \[4, 3\], expected \[steps=4, batch=2"),
        (wrong("timestep", np.zeros(8, np.float32), "rows"), r"'timestep': got \[8\]"),
        (wrong("pooled", np.zeros((4, 2, 5), np.float32), "rows"), r"'pooled' got float32\[8, 5\], expected contiguous float32"),
        (wrong("pooled", np.zeros((4, 2, WIDTH)), "rows"), r"'pooled' got float64\[8, 64\]"),
        (wrong("text", np.zeros((2, 4, 4), np.float32)), r"'text' got float32\[2, 4, 4\], expected contiguous float32"),
        (wrong("rotary", np.zeros((4, 4), np.float32)), r"'rotary': got float32\[4, 4\], expected float32\[5, 4\]"),
        (wrong("rotary", np.zeros((1, 4), np.float32)), r"'rotary': got float32\[1, 4\], expected float32\[5, 4\]"),
        (wrong("rotary", np.zeros((5, 4))), r"'rotary': got float64\[5, 4\], expected float32"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused_by_name(
    denoiser: Denoiser, given: tuple[dict[str, Any], dict[str, Any]], message: str
) -> None:
    with denoiser.plan(**SIZE) as plan, pytest.raises(SpecError, match=message):
        plan.condition(*given)
    with denoiser.plan(**SIZE) as plan:
        for got, wanted in zip(drawn(plan), expected(SIZE), strict=True):
            assert_close(got, wanted, 1e-6, "the plan is as good as before")


@pytest.mark.parametrize("step", [-1, 4, 100])
def test_a_step_outside_is_refused(denoiser: Denoiser, step: int) -> None:
    with denoiser.plan(**SIZE) as plan, pytest.raises(BackendError, match=rf"step {step} is outside this plan's 4 steps"):
        plan.step(step)


def test_no_steps_are_refused(denoiser: Denoiser) -> None:
    with pytest.raises(SpecError, match="steps: got 0, expected at least 1"), denoiser.plan(**{**SIZE, "steps": 0}):
        pytest.fail("planned")


def with_graph(spec: ComponentSpec, name: str, graph: GraphSpec) -> ComponentSpec:
    return replace(spec, graphs={**spec.graphs, name: graph})


def test_other_graphs_than_the_segments_are_refused(backend: OrtCpuBackend, root: Path, spec: ComponentSpec) -> None:
    for graphs in ({"model": spec.graphs["embed"]}, {name: spec.graphs[name] for name in reversed(SEGMENTS)}, {}):
        with pytest.raises(SpecError, match=r"component 'toy' has graphs \[.*\], expected the segments \['condition', 'embed'"):
            Denoiser(backend, root, replace(spec, graphs=graphs))


def test_an_output_of_condition_that_nobody_reads_is_refused(backend: OrtCpuBackend, root: Path, spec: ComponentSpec) -> None:
    condition = spec.graphs["condition"]
    unread = TensorSpec("unread", DType.FLOAT32, ("batch", 4))
    more = replace(condition, outputs=(*condition.outputs, unread))
    with pytest.raises(SpecError, match="toy: condition gives unread, which no other segment reads"):
        Denoiser(backend, root, with_graph(spec, "condition", more))


def test_a_manifest_that_says_otherwise_than_the_file_is_refused(backend: OrtCpuBackend, root: Path, spec: ComponentSpec) -> None:
    rest = spec.graphs["rest"]
    claimed = replace(rest, outputs=(TensorSpec("hn", DType.FLOAT32, ("batch", "image_tokens", 5)),))
    with (
        contextlib.closing(Denoiser(backend, root, with_graph(spec, "rest", claimed))) as denoiser,
        pytest.raises(SpecError, match=r"toy/rest.onnx: its outputs are \['hn: float32\[batch, image_tokens, 4\]'\]"),
        denoiser.plan(**SIZE),
    ):
        pytest.fail("planned")
    assert not denoiser.open_segments, "what was opened on the way is closed again"


def test_a_missing_file_is_named(backend: OrtCpuBackend, tmp_path: Path, spec: ComponentSpec) -> None:
    with (
        contextlib.closing(Denoiser(backend, tmp_path, spec)) as denoiser,
        pytest.raises(BackendError, match=r"toy/embed.onnx: ONNX Runtime .* cannot open it"),
        denoiser.plan(**SIZE),
    ):
        pytest.fail("planned")


def embed_reads(root: Path, name: str) -> ComponentSpec:
    """The toy, whose embed adds one more input to the latents."""
    spec = write(root)
    embed = spec.graphs["embed"]
    text = f"""<ir_version: 10, opset_import: ["" : 21]> g (float[batch,image_tokens,4] latents, float[image_tokens,4] {name})
        => (float[batch,image_tokens,4] h0) <float[1] two = {{2.0}}> {{ d = Mul(latents, two) h0 = Add(d, {name}) }}"""
    (root / embed.path).write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return with_graph(
        spec,
        "embed",
        replace(embed, inputs=(*embed.inputs, TensorSpec(name, DType.FLOAT32, ("image_tokens", 4)))),
    )


def test_embed_may_share_a_requests_input_with_later_segments(backend: OrtCpuBackend, tmp_path: Path) -> None:
    spec = embed_reads(tmp_path, "rotary")
    request, rows, latents = inputs(**SIZE)
    with contextlib.closing(Denoiser(backend, tmp_path, spec)) as denoiser, denoiser.plan(**SIZE) as plan:
        for step, got in enumerate(drawn(plan)):
            assert_close(got, reference(request, rows, latents + request["rotary"] / 2, step), 1e-6)


def test_later_segments_may_read_the_latents_again(backend: OrtCpuBackend, tmp_path: Path) -> None:
    spec = write(tmp_path)
    finish = spec.graphs["finish"]
    proto = onnx.load(tmp_path / finish.path)
    proto.graph.node[-1].output[0] = "scaled"
    proto.graph.node.append(onnx.helper.make_node("Add", ["scaled", "latents"], ["noise_pred"]))
    latents_spec = spec.graphs["embed"].inputs[0]
    proto.graph.input.append(onnx.helper.make_tensor_value_info("latents", onnx.TensorProto.FLOAT, latents_spec.shape))
    (tmp_path / finish.path).write_bytes(proto.SerializeToString())
    spec = with_graph(spec, "finish", replace(finish, inputs=(*finish.inputs, latents_spec)))
    request, rows, latents = inputs(**SIZE)
    with contextlib.closing(Denoiser(backend, tmp_path, spec)) as denoiser, denoiser.plan(**SIZE) as plan:
        for step, got in enumerate(drawn(plan)):
            assert_close(got, reference(request, rows, latents, step) + latents[step], 1e-6)


def test_of_what_embed_alone_reads_only_the_latents_are_known(backend: OrtCpuBackend, tmp_path: Path) -> None:
    spec = embed_reads(tmp_path, "mask")
    with (
        contextlib.closing(Denoiser(backend, tmp_path, spec)) as denoiser,
        pytest.raises(
            SpecError, match=r"toy: segment 'embed' takes \['latents', 'mask'\] from the latents, expected exactly one"
        ),
        denoiser.plan(**SIZE),
    ):
        pytest.fail("planned")


# ---- sessions, kept or not


def test_the_loop_opens_with_a_plan_and_condition_when_used(denoiser: Denoiser) -> None:
    seen = [denoiser.open_segments]
    with denoiser.plan(**SIZE) as plan:
        seen.append(denoiser.open_segments)
        drawn(plan)
        seen.append(denoiser.open_segments)
    seen.append(denoiser.open_segments)
    assert seen == [(), LOOP_SEGMENTS, SEGMENTS, SEGMENTS]


@pytest.mark.parametrize(
    ("keep_loop", "keep_condition", "during", "after"),
    [(True, False, LOOP_SEGMENTS, LOOP_SEGMENTS), (False, False, LOOP_SEGMENTS, ()), (False, True, SEGMENTS, ("condition",))],
)
def test_what_is_not_kept_closes(
    backend: OrtCpuBackend,
    root: Path,
    spec: ComponentSpec,
    keep_loop: bool,
    keep_condition: bool,
    during: tuple[str, ...],
    after: tuple[str, ...],
) -> None:
    made = Denoiser(backend, root, spec, keep_loop=keep_loop, keep_condition=keep_condition)
    with contextlib.closing(made) as denoiser:
        for seed in range(3):
            with denoiser.plan(**SIZE) as plan:
                got = drawn(plan, seed)
                assert denoiser.open_segments == during
            assert denoiser.open_segments == after
            assert_close(got, expected(SIZE, seed), 1e-6)


def test_closed_while_in_use_a_request_ends_and_nothing_stays(denoiser: Denoiser) -> None:
    with denoiser.plan(**SIZE) as plan:
        drawn(plan)
        denoiser.close()
        during = denoiser.open_segments
        plan.latents[...] = inputs(**SIZE)[2][3]
        assert_close(plan.step(3), expected(SIZE)[3], 1e-6)
        gone = weakref.ref(plan)
    assert (during, denoiser.open_segments) == (LOOP_SEGMENTS, ())
    del plan
    gc.collect()
    assert gone() is None, "an idle plan would hold its engine's memory"
    with pytest.raises(BackendError, match="this pipeline is closed"), denoiser.plan(**SIZE):
        pytest.fail("planned")


def test_a_condition_of_a_closed_pipeline_is_an_error(denoiser: Denoiser) -> None:
    with denoiser.plan(**SIZE) as plan:
        denoiser.close()
        with pytest.raises(BackendError, match="this pipeline is closed"):
            drawn(plan)


# ---- the pool of plans


def test_a_reused_plan_is_as_a_fresh_one_bit_for_bit(backend: OrtCpuBackend, root: Path, spec: ComponentSpec) -> None:
    with contextlib.closing(Denoiser(backend, root, spec)) as used, contextlib.closing(Denoiser(backend, root, spec)) as fresh:
        with used.plan(**SIZE) as plan:
            drawn(plan, seed=1)
            for array in (plan.latents, plan.noise_pred, *(a for a in (plan.array("first", "h1"), plan.array("rest", "hn")))):
                array[...] = np.nan
        with used.plan(**SIZE) as again, fresh.plan(**SIZE) as other:
            assert again is plan
            np.testing.assert_array_equal(drawn(again, seed=2), drawn(other, seed=2))


def test_a_plan_serves_one_request_at_a_time(denoiser: Denoiser) -> None:
    with denoiser.plan(**SIZE) as one, denoiser.plan(**SIZE) as two:
        assert one is not two
        assert not np.shares_memory(one.latents, two.latents)
        assert not np.shares_memory(one.array("first", "modulation_first"), two.array("first", "modulation_first"))
    with denoiser.plan(**SIZE) as three, denoiser.plan(**SIZE) as four:
        assert {id(three), id(four)} == {id(one), id(two)}


def test_other_sizes_have_other_plans_and_few_are_kept(denoiser: Denoiser) -> None:
    plans = []
    for steps in range(1, 9):
        with denoiser.plan(**{**SIZE, "steps": steps}) as plan:
            plans.append(weakref.ref(plan))
    del plan
    gc.collect()
    alive = [steps for steps, made in enumerate(plans, start=1) if made() is not None]
    assert alive == [5, 6, 7, 8], "the latest, and no more"
    with denoiser.plan(**{**SIZE, "steps": 6}) as plan:
        assert plan is plans[5]()


def test_a_request_that_fails_leaves_its_plan_usable(denoiser: Denoiser) -> None:
    with contextlib.suppress(KeyError), denoiser.plan(**SIZE) as plan:
        drawn(plan, seed=3)
        raise KeyError
    with denoiser.plan(**SIZE) as again:
        assert again is plan
        assert_close(drawn(again), expected(SIZE), 1e-6)


def test_requests_in_threads_do_not_disturb_each_other(denoiser: Denoiser) -> None:
    with denoiser.plan(**SIZE) as plan:
        alone = {seed: drawn(plan, seed) for seed in range(4)}
    start, failures = threading.Barrier(4), []

    def work(seed: int) -> None:
        start.wait()
        for _ in range(20):
            with denoiser.plan(**SIZE) as plan:
                if not np.array_equal(drawn(plan, seed), alone[seed]):
                    failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# ---- memory


def test_a_plan_allocates_what_its_shapes_need(denoiser: Denoiser) -> None:
    batch, tokens, text, steps = SIZE.values()
    hidden = batch * tokens * 4
    floats = 2 * steps * batch * WIDTH  # the tables of first and finish
    floats += hidden * 5  # latents, h0, h1, hn, noise_pred
    floats += batch * text * 4 + tokens * 4 + batch * 4  # context, rotary, told
    with denoiser.plan(**SIZE) as plan:
        assert plan.allocated_bytes == 4 * floats
        drawn(plan)
        assert plan.allocated_bytes == 4 * floats, "a request allocates nothing that stays"


def test_rows_of_a_table_lie_on_256_bytes_and_hold_step_major_rows(denoiser: Denoiser) -> None:
    _, rows, _ = inputs(**SIZE)
    with denoiser.plan(**SIZE) as plan:
        drawn(plan)
        for step in range(SIZE["steps"]):
            plan.select(step)
            table = plan.array("first", "modulation_first")
            assert table.ctypes.data % 256 == 0
            assert table.strides == (256, 4)
            assert_close(table, rows["pooled"][step] + rows["timestep"][step][:, None], 1e-6)


def test_the_loop_moves_nothing(denoiser: Denoiser) -> None:
    """Between steps no buffer changes its place, so that an engine may keep the addresses."""
    with denoiser.plan(**SIZE) as plan:
        drawn(plan)
        names = [(s, t.name) for s in LOOP_SEGMENTS for t in (*plan.spec.graphs[s].inputs, *plan.spec.graphs[s].outputs)]
        fixed = [(s, name) for s, name in names if not name.startswith("modulation")]
        before = [plan.array(s, name).ctypes.data for s, name in fixed]
        for step in range(SIZE["steps"]):
            plan.step(step)
            assert [plan.array(s, name).ctypes.data for s, name in fixed] == before
