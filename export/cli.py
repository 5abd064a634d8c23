"""`vitrify export` and `vitrify verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import click

from vitrify.engine.errors import BackendError, CompileError
from vitrify.export.options import ExportOptions, Range, parse_precision

__all__ = ["export", "verify"]

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("source", type=_PATH)
@click.argument("out", type=_PATH, required=False)
@click.option("--plan", is_flag=True, help="Print what would be compiled; needs only the source's configs, writes nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --plan: print JSON.")
@click.option("--height", help="Picture height in pixels: N, MIN:MAX or MIN:OPT:MAX.")
@click.option("--width", help="Picture width in pixels: N, MIN:MAX or MIN:OPT:MAX.")
@click.option("--batch", help="Denoiser rows (images × 2 under true CFG): N, MIN:MAX or MIN:OPT:MAX.")
@click.option("--max-sequence-length", help="Text tokens of the second encoder: N, MIN:MAX or MIN:OPT:MAX.")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    help="What linear layers and attention multiply in: fp32, bf16 or int8, or by component: transformer=int8,vae=fp32.",
)
@click.option("--calibration-prompts", type=_PATH, help="What int8 is measured on: a file with a prompt per line.")
@click.option("--variant", help="Weight files of this variant, e.g. fp16.")
@click.option("--no-parity", is_flag=True, help="Do not compare with eager PyTorch; the manifest will say so.")
@click.option("--force", is_flag=True, help="Replace an artifact that stands at OUT.")
@click.option("--default-height", type=int)
@click.option("--default-width", type=int)
@click.option("--default-num-inference-steps", type=int)
@click.option("--default-guidance-scale", type=float)
@click.option("--default-true-cfg-scale", type=float)
@click.option("--default-negative-prompt", type=str)
@click.option("--default-max-sequence-length", type=int)
def export(source: Path, out: Path | None, plan: bool, as_json: bool, **given: Any) -> None:
    """Compile the diffusers folder SOURCE into the artifact OUT.

    --default-… options become what a request is filled with where it says nothing.
    """
    from rich.console import Console

    from vitrify.engine.inspect_cli import print_sections
    from vitrify.engine.ort import OrtCpuBackend
    from vitrify.export.compile import compile_pipeline, plan_pipeline
    from vitrify.export.verify import kernels_that_run

    if plan and (out is not None or given["force"]):
        raise click.UsageError("--plan writes nothing, so OUT and --force have no effect; leave them out")
    if as_json and not plan:
        raise click.UsageError("--json prints a plan; add --plan, or look at the artifact with `vitrify inspect --json`")
    options = _options(given)
    console = Console(stderr=True)
    if plan:
        with console.status("plan") as status:
            manifest = plan_pipeline(source, options, progress=lambda c, p: status.update(f"{c}: {p}"))
        if as_json:
            click.echo(json.dumps(manifest.to_json(), indent=2, sort_keys=True))
        else:
            print_sections(manifest)
        return
    if out is None:
        raise click.UsageError("missing argument OUT (only --plan goes without)")
    with console.status("export") as status:

        def show(component: str, phase: str) -> None:
            status.update(f"{component}: {phase}")
            if not console.is_terminal:
                console.print(f"{component}: {phase}", highlight=False)

        artifact_id = compile_pipeline(source, out, options, progress=show)
    if options.parity:
        click.echo(f"parity was measured with {kernels_that_run(OrtCpuBackend())}", err=True)
    click.echo(f"{out}  {artifact_id}")


def _options(given: dict[str, Any]) -> ExportOptions:
    ranges = {
        name: None if given[name] is None else Range.parse(given[name], name.replace("_", "-"))
        for name in ("height", "width", "batch", "max_sequence_length")
    }
    defaults = {
        name.removeprefix("default_"): value for name, value in given.items() if name.startswith("default_") and value is not None
    }
    return ExportOptions(
        height=ranges["height"],
        width=ranges["width"],
        batch=ranges["batch"],
        max_sequence_length=ranges["max_sequence_length"],
        defaults=defaults,
        variant=given["variant"],
        parity=not given["no_parity"],
        force=given["force"],
        precision=parse_precision(given["precision"]),
        calibration_prompts=_prompts(given["calibration_prompts"]),
    )


def _prompts(path: Path | None) -> tuple[str, ...]:
    """The lines of a file that say something. Raises CompileError where there are none."""
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CompileError(f"--calibration-prompts {path}: cannot be read: {error}") from error
    prompts = tuple(line for line in lines if line)
    if not prompts:
        raise CompileError(f"--calibration-prompts {path}: no prompt in it, expected one per line")
    return prompts


@click.command()
@click.argument("artifact", type=_PATH)
@click.option("--against", type=_PATH, help="The source folder: its weights must be the artifact's, and are the reference.")
@click.option("--no-parity", is_flag=True, help="Hashes and structure only; needs no PyTorch.")
@click.option(
    "--kernels",
    type=click.Choice(["auto", "native", "portable"]),
    help="What parity is measured with, as in `load`.  [default: auto]",
)
@click.option("--json", "as_json", is_flag=True)
def verify(
    artifact: Path, against: Path | None, no_parity: bool, kernels: Literal["auto", "native", "portable"] | None, as_json: bool
) -> None:
    """Check the hash of every file of ARTIFACT, its structure, and its parity with eager PyTorch."""
    from vitrify.engine.artifact import Artifact

    if no_parity and (against is not None or kernels is not None):
        raise click.UsageError("--against and --kernels say how parity is measured; leave them out, or leave out --no-parity")
    if not no_parity:
        _check_pytorch()
    opened = Artifact.open(artifact, verify="full")
    report: dict[str, Any] = {"id": opened.id, "files": len(opened.manifest.files), "hashes": "ok", "structure": "ok"}
    if not no_parity:
        from vitrify.engine.ort import OrtCpuBackend
        from vitrify.export.reverify import verify_artifact
        from vitrify.export.verify import kernels_that_run

        backend = OrtCpuBackend(kernels=kernels or "auto", ops=opened.manifest.ops)
        report["kernels"] = kernels_that_run(backend)
        report["parity"] = {name: spec.to_json() for name, spec in verify_artifact(opened, against, backend=backend).items()}
    if as_json:
        click.echo(json.dumps(report, indent=2, sort_keys=True))
        return
    click.echo(f"{artifact}: {report['files']} files, hashes and structure as sealed (id {opened.id[:16]}…)")
    for name, parity in report.get("parity", {}).items():
        worst = max(parity["measurements"].items(), key=lambda item: item[1])
        click.echo(
            f"{name}: parity {parity['method']}, worst {worst[0]} {worst[1]:.0e} (allowed {parity['tolerances'][worst[0]]:.0e})"
        )
    if "kernels" in report:
        click.echo(f"parity was measured with {report['kernels']}")


def _check_pytorch() -> None:
    """Before the hashes of a large artifact, which take minutes. Raises BackendError saying what goes without."""
    try:
        import vitrify.export.reverify  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "vitrify":
            raise
        raise BackendError(
            f"parity with eager PyTorch needs {error.name}, which is not installed; nothing was checked: "
            "check hashes and structure alone with --no-parity, or run: pip install 'vitrify[export]'"
        ) from error
