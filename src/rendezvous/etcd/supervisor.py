"""Runs etcd on behalf of another process, and stops it when that process ends, however it ends.

This file is run as a script, in isolated mode, so it imports nothing but the standard library:

    python -I -S supervisor.py PARENT FOLDER COMMAND...

It starts COMMAND, whose standard output goes to the file ``log`` in FOLDER, and writes two lines to its own standard
output: the command's process id, or why it could not be started, and the command's exit code when it has ended. If
anything can be read from standard input, or the process PARENT has ended, it stops the command and deletes FOLDER.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

# Seconds between two checks of the parent and of the command.
_INTERVAL = 0.2

# After so many seconds a command that does not obey SIGTERM is killed. An etcd that is killed loses no data.
_GRACE = 1.5


def main(parent: int, folder: str, command: Sequence[str]) -> None:
    """Run the command until the parent stops it or ends."""
    # Only the parent decides: a signal that is sent to all processes of a job must not end this one before etcd. A
    # handler does this; if the signals were ignored, the command would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    try:
        with open(os.path.join(folder, "log"), "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log)
    except OSError as exc:
        _report(str(exc))
        shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        _report(str(process.pid))
        code = None
        while not _is_over(parent):
            if code is None and (code := process.poll()) is not None:
                _report(str(code))
    finally:
        _stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def _report(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:  # the parent has ended
        pass


def _is_over(parent: int) -> bool:
    ready, _, _ = select.select([sys.stdin], [], [], _INTERVAL)
    # Standard input ends together with the parent, unless a forked child of the parent holds the pipe open.
    return bool(ready) or os.getppid() != parent


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
