"""The program `vitrify`: finds each room's commands without importing the room, and turns errors into one line and an exit code.

Commands are the entry points of the group `vitrify.commands`. Listing them loads none of them, so that
`vitrify --help` is quick and works whatever extras are installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

import click

from vitrify.engine.errors import (
    ArtifactError,
    BackendError,
    CompileError,
    ParityError,
    RequestCancelled,
    RequestError,
    SpecError,
    VitrifyError,
)

__all__ = ["EXIT_CODES", "main", "program"]

EXIT_CODES: dict[type[Exception], int] = {
    ArtifactError: 3,
    SpecError: 4,
    RequestError: 5,
    BackendError: 6,
    ParityError: 8,
    CompileError: 7,
    RequestCancelled: 9,
    VitrifyError: 1,
}
"""Error class → exit code; the first row that matches counts. 0 is success, 1 the system's errors (a full disk,
a missing file), 2 wrong usage, 130 an interrupt."""

_SUMMARIES = {
    "bench": "Measure steps, pipelines and kernels against their peers.",
    "calibrate": "Measure an artifact's residuals, for --cache magcache.",
    "doctor": "Print versions, backends, the native library and what is missing.",
    "export": "Compile a diffusers folder into an artifact.",
    "generate": "Draw an image from a prompt with an artifact.",
    "inspect": "Print what an artifact holds.",
    "kernels": "Compile the GPU kernels ahead of time, and look at them.",
    "tune": "Search the fastest step cache that keeps a bound of quality.",
    "verify": "Check an artifact's hashes, structure and parity.",
}

_EXTRA_OF_MODULE = {
    "accelerate": "export",
    "matplotlib": "study",
    "diffusers": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "onnxruntime": "cpu",
    "tensorrt_rtx": "tensorrt-rtx",
    "tensorrt_rtx_bindings": "tensorrt-rtx",
    "torch": "export",
    "transformers": "export",
    "triton": "kernels",
}


class _CommandGroup(click.Group):
    """A click group whose commands stay unloaded until one is called."""

    def _entries(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group="vitrify.commands")}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._entries()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        registered = super().get_command(ctx, cmd_name)
        entry = self._entries().get(cmd_name)
        if registered is not None or entry is None:
            return registered
        try:
            command = entry.load()
        except ModuleNotFoundError as error:
            raise _missing_module(error, cmd_name) from error
        if not isinstance(command, click.Command):
            raise BackendError(f"command {cmd_name!r}: {entry.value} is a {type(command).__name__}, expected a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, _SUMMARIES.get(name, "")) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def _missing_module(error: ModuleNotFoundError, command: str) -> BackendError:
    module = (error.name or "").partition(".")[0]
    extra = _EXTRA_OF_MODULE.get(module)
    if extra is None:
        return BackendError(f"vitrify {command} needs the module {error.name!r}, which is not installed; reinstall vitrify")
    return BackendError(f"vitrify {command} needs {module}, which is not installed; run: pip install 'vitrify[{extra}]'")


class _Invocation:
    """What one call of the program must remember until its errors are printed."""

    def __init__(self) -> None:
        self.debug = False
        self.command = ""


_EPILOG = (
    "Exit codes: 0 success, 1 an error of the system, 2 wrong usage, 3 artifact, 4 specification, 5 request, 6 backend or "
    "installation, 7 compilation, 8 parity, 9 request cancelled, 130 interrupted."
)


@click.group(cls=_CommandGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(package_name="vitrify", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def program(ctx: click.Context, debug: bool) -> None:
    """Compile a diffusion pipeline ahead of time, and run it without torch."""
    invocation = ctx.ensure_object(_Invocation)
    invocation.debug = debug
    invocation.command = ctx.invoked_subcommand or ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program on `arguments` (default: the command line's) and return its exit code, see EXIT_CODES.

    Errors of the tree in engine/errors.py and of the system are printed on one line; `--debug` raises them.
    Any other exception is a defect of vitrify and keeps its traceback.
    """
    invocation = _Invocation()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = program.main(args=words, prog_name="vitrify", standalone_mode=False, obj=invocation)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo("vitrify: interrupted", err=True)
        return 130
    except BrokenPipeError:
        return 1
    except ModuleNotFoundError as error:
        # A lazily imported library; a module of our own that is missing is a defect.
        if invocation.debug or (error.name or "").partition(".")[0] not in _EXTRA_OF_MODULE:
            raise
        return _report(_missing_module(error, invocation.command))
    except (VitrifyError, OSError) as error:
        if invocation.debug:
            raise
        return _report(error)


def _report(error: Exception) -> int:
    message = " ".join(str(error).split()) or type(error).__name__
    click.echo(f"vitrify: {message}", err=True)
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
