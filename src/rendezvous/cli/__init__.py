"""The command ``rendezvous``.

Each subcommand is a module with ``NAME``, ``HELP``, ``add_arguments(parser)`` and ``run(options)``, which returns the
exit code. These modules import what they need in ``run``: ``rendezvous --help`` loads neither grpc nor rich.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from typing import Protocol

import rendezvous
from rendezvous._core import COMPILED
from rendezvous.api import RendezvousError
from rendezvous.cli import bench, config, demo

__all__ = ["Command", "main"]

DONE, FAILED, WRONG_CALL, INTERRUPTED = 0, 1, 2, 130


class Command(Protocol):
    """What a module of a subcommand defines."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments of the subcommand."""

    def run(self, options: argparse.Namespace) -> int:
        """Run the subcommand and return the exit code."""


_COMMANDS: tuple[Command, ...] = (bench, config, demo)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the program's name; ``sys.argv[1:]`` by default.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrongly called, 130 interrupted with Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("rendezvous: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has ended (`rendezvous config | head`). Python must not flush into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ValueError as exc:
        print(f"rendezvous: {exc}", file=sys.stderr)
        return WRONG_CALL
    except (RendezvousError, OSError, RuntimeError) as exc:
        print(f"rendezvous: {exc}", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rendezvous", description="Rendezvous for elastic training, on etcd.")
    parser.add_argument("--version", action="version", version=_version())
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        subparser = subparsers.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def _version() -> str:
    core = "compiled" if COMPILED else "pure Python"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"etcd-rendezvous {rendezvous.__version__} ({core} core, {python})"
