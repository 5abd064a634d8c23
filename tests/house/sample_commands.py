"""Commands for the tests of the program, as a room would own them."""

from __future__ import annotations

import click

from vitrify.engine import errors

__all__ = ["broken", "fail", "greet", "lazy", "not_a_command"]

not_a_command = 1


@click.command()
@click.argument("name")
def greet(name: str) -> None:
    """Say hello."""
    click.echo(f"hello {name}")


@click.command()
@click.argument("kind")
def fail(kind: str) -> None:
    """Raise the error called KIND."""
    if kind == "OSError":
        raise OSError(28, "No space left on device")
    if kind == "KeyboardInterrupt":
        raise KeyboardInterrupt
    raise getattr(errors, kind)(f"{kind}: got this,\n  expected that")


@click.command()
def lazy() -> None:
    """Import a library of an extra that is not there."""
    raise ModuleNotFoundError("No module named 'torch'", name="torch")


@click.command()
def broken() -> None:
    """A defect."""
    raise ZeroDivisionError("a defect of vitrify")
