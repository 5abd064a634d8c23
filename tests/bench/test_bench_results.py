"""What a run leaves behind: JSON that reads back as it was, and tables that say what happened."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from vitrify.bench.document import FORMAT, Document, document, read_document, write_document, write_json
from vitrify.bench.export_growth import Growth
from vitrify.bench.machine import Machine, this_machine
from vitrify.bench.measure import Summary
from vitrify.bench.page import page, write_page
from vitrify.bench.pairs import pairs
from vitrify.bench.pictures import to_png
from vitrify.bench.report import case_tables, growth_table, startup_table
from vitrify.bench.results import CaseResult, Check, LoopResult, PeerResult, RunResult
from vitrify.bench.startup import Startup
from vitrify.engine.errors import SpecError


def summary(median: float) -> Summary:
    return Summary(median, median * 0.9, median * 1.1, 5)


MACHINE = Machine("a processor", ("avx2",), 2, 1 << 34, "Linux x86_64", "3.11.7", {"torch": "2.13.0"})

CASE = CaseResult(
    name="sample",
    kind="step",
    summary="a case <of> tests",
    parameters=7_360_544,
    flops=1_000_000_000,
    dims={"batch": 2, "image_tokens": 64, "text_tokens": 16, "steps": 20},
    sensitivity={"timesteps": 0.5},
    checks={"vitrify": Check(1e-6, 1e-5, 1e-4), "plain-ort": Check(2e-6, 1e-5, 1e-4), "eager-bf16": Check(0.5, math.inf, 5e-2)},
    peers={
        "vitrify": PeerResult((0.004, 0.003, 0.005), {"transformer/rest": summary(0.003), "outside plan.run()": summary(0.0001)}),
        "plain-ort": PeerResult((0.005, 0.00375, 0.00625)),
    },
    absent={"openvino-fp32": "openvino is not installed"},
    counts={"vitrify": {"engine calls, transformer/rest": 1}},
    pictures={"vitrify": (to_png(np.full((4, 4, 3), 77, np.uint8)),)},
    loop=LoopResult(20, summary(0.1), summary(0.09), summary(0.03), summary(0.02), {"transformer/rest": summary(0.05)}),
)
OTHER = replace(CASE, name="other", kind="picture", peers={}, counts={}, pictures={}, loop=None)
RUN = RunResult(threads=2, limits={"float32": 3.8e11}, cases=(CASE, OTHER))
DOCUMENT = Document("2026-01-02", MACHINE, RUN, "a run")


def printed(*tables: object) -> str:
    console = Console(width=200, record=True, quiet=False, file=None, force_terminal=False)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    return capture.get()


def test_a_run_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.json"
    write_document(path, DOCUMENT)
    assert read_document(path) == DOCUMENT


def test_the_document_is_plain_json_and_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, document("run", MACHINE, RUN.to_json()))

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert (content["format"], content["kind"]) == (FORMAT, "run")
    assert content["machine"]["cpu_flags"] == ["avx2"]
    assert content["results"]["cases"][0]["checks"]["eager-bf16"]["worst"] is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "export"),
        ("format", 1),
        ("results", {"threads": 2}),
        ("results", None),
        ("run_id", None),
        ("is_base", 1),
        ("other", 1),
    ],
)
def test_a_document_of_another_kind_is_refused(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "run.json"
    content = {**document("run", MACHINE, RUN.to_json()), "run_id": "a run", "is_base": False, field: value}
    path.write_text(json.dumps(content))
    with pytest.raises(SpecError, match=r"run\.json|results"):
        read_document(path)


def test_a_document_of_an_older_format_is_to_be_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**document("run", MACHINE, RUN.to_json()), "format": FORMAT - 1}))
    with pytest.raises(SpecError, match=f"expected a run of format {FORMAT}; measure it again"):
        read_document(path)


def test_damaged_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"format": 2')
    with pytest.raises(SpecError, match="not JSON"):
        read_document(path)


def test_a_field_of_another_type_is_named() -> None:
    data = RUN.to_json()
    data["cases"][0]["peers"]["plain-ort"]["rounds_s"][1] = "fast"
    with pytest.raises(SpecError, match=r"results\.cases\[0\]\.peers\.plain-ort\.rounds_s\[1\]"):
        RunResult.from_json(data)


def test_no_number_is_written_as_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "run.json", {"seconds": math.nan})
    assert not (tmp_path / "run.json").exists()


def test_the_machine_has_no_name_and_no_path() -> None:
    import socket

    text = json.dumps(this_machine().to_json())
    assert socket.gethostname() not in text
    assert "/" not in text.replace("Linux", "")


def test_the_processor_is_read_from_its_description(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512_bf16\n\nmodel name\t: Other\n")
    machine = this_machine(path)
    assert machine.cpu == "Some CPU @ 2 GHz"
    assert machine.cpu_flags == ("avx2", "avx512_bf16")
    assert this_machine(tmp_path / "absent").cpu


def test_precisions_are_compared_with_their_like() -> None:
    check = Check(1e-2, 1e-1, 1e-1)
    case = replace(
        CASE,
        checks={**CASE.checks, "vitrify-bf16": replace(check, relative=4e-3), "openvino-bf16": check, "openvino-int8": check},
        peers={
            **CASE.peers,
            "vitrify-bf16": PeerResult((0.001, 0.002, 0.003)),
            "openvino-bf16": PeerResult((0.002, 0.004, 0.006)),
            "openvino-int8": PeerResult((0.002, 0.004, 0.006)),
        },
    )
    (pair,) = pairs(case)  # no int8 of ours, so none for theirs; float32 stands in the other table
    assert (pair.ours, pair.peer, pair.ratio.median) == ("vitrify-bf16", "openvino-bf16", 0.5)
    assert (pair.our_error, pair.error) == (4e-3, 1e-2)
    text = printed(*case_tables(case, {}))
    (line,) = (line for line in text.splitlines() if line.startswith("│ vitrify-bf16 │ openvino-bf16"))
    assert [cell.strip() for cell in line.split("│")[3:7]] == ["0.500", "0.500 – 0.500", "4.0e-03", "1.0e-02"]
    assert "In the same precision" in page(replace(DOCUMENT, run=replace(RUN, cases=(case,))))
    assert "same precision" not in printed(*case_tables(CASE, {}))


def test_the_table_shows_numbers_only_for_the_right() -> None:
    text = printed(*case_tables(CASE, RUN.limits))
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("│")}
    assert "4.000" in lines["vitrify"]
    assert "0.800" in lines["plain-ort"]
    assert "200" in lines["plain-ort"]  # 1 GFLOP in 5 ms
    assert "wrong: allowed 5e-02" in lines["eager-bf16"]
    assert "outside plan.run()" in text
    assert "2.00%" in text
    assert "380 Gop/s" in text
    assert "openvino is not installed" in text
    assert "engine calls" in text


def test_a_right_peer_beside_our_wrong_one_is_said_to_be_unmeasured() -> None:
    text = printed(*case_tables(replace(CASE, peers={}, loop=None), {}))
    assert "not measured" in text


def test_growth_and_startup_tables() -> None:
    growth = Growth("wide-whole", 3, 6, 1_900_000_000, 60.0, 2 << 30, 1 << 30, 4_000_000, 4_020_000, 2 << 20, ())
    text = printed(growth_table([growth, replace(growth, name="plan", source_bytes=None)]))
    assert "+0.50%" in text
    assert "1.90 B" in text
    sizes = [mib << 20 for mib in (50, 20, 90, 40, 100, 60, 40)]
    startup = Startup("sample", 20, 0.1, 0.2, 0.3, 0.4, 0.7, 1.5, 0.1, *sizes)
    assert startup.opened_over_weights == pytest.approx(1.5)
    assert startup.drawn_over_weights == pytest.approx(4.0)
    assert "1.50" in printed(startup_table([startup]))
    assert startup.to_json()["drawn_over_weights"] == 4.0


@pytest.mark.parametrize("rounds", [[], [0.0, 1.0], [-1.0]])
def test_times_that_are_no_times_are_refused(rounds: list[float]) -> None:
    data = RUN.to_json()
    data["cases"][0]["peers"]["vitrify"]["rounds_s"] = rounds
    with pytest.raises(SpecError, match="above 0"):
        RunResult.from_json(data)


def test_the_page_stands_alone_and_shows_what_the_table_shows(tmp_path: Path) -> None:
    write_page(tmp_path / "deep" / "run.html", DOCUMENT)
    text = (tmp_path / "deep" / "run.html").read_text()
    assert text == page(DOCUMENT)
    assert "a case &lt;of&gt; tests" in text
    assert "<of>" not in text
    assert "http" not in text
    assert "<script" not in text
    (image,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert base64.b64decode(image) == CASE.pictures["vitrify"][0]
    assert "wrong: allowed 5e-02" in text
    assert "absent: openvino is not installed" in text
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([0-9.]+)"', text)]
    assert widths[0] / widths[1] == pytest.approx(0.8, abs=0.01)
