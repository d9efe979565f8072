"""The fork server of methods: a clean process with torch imported, forking a fresh child for each run of a user's file.

It is started by command, so nothing of its parent's memory is in it, and it never runs a method itself. For each
request it forks a keeper, which makes the sandbox, forks the child (`child`), waits for its end or the time limit, ends
all that is left of it, and reports the kernel's account of what it spent.

    harness --request, files--> fork server -> keeper -> [first process of the sandbox ->] child
       ^-------- messages (talk), report (keep), output (log) -------'
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunebench.runner.exchange import Channel, GarbledError
from prunebench.runner.jail import (
    Jail,
    adopt_orphans,
    become_nobody,
    end_with_parent,
    give_up_privileges,
    limit_memory,
    limit_sandboxed,
    set_readable,
)

SWEEP_SECONDS = 5.0
SCRATCH = "/scratch"
"""The folder that a sandboxed method may write to."""


def main() -> None:
    """Serve requests from the socket whose number is the argument, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = Channel(socket.socket(fileno=int(sys.argv[1])))
    _import_ahead()
    adopt_orphans()
    set_readable(readable=False)
    clients, keepers = [control], set[int]()
    while control in clients:
        for client in select.select(clients, [], [])[0]:
            received = _receive(client)
            if received is None:
                clients.remove(client)
                client.close()
            elif received[0]["kind"] == "client":
                clients.append(Channel(socket.socket(fileno=received[1][0])))
                client.send({"kind": "linked"})
            else:
                keepers = _collect(keepers)
                _sweep(patience=0.0, spared=keepers)
                keeper = _fork_keeper(*received, clients)
                keepers.add(keeper)
                with contextlib.suppress(OSError):
                    client.send({"kind": "forked", "pid": keeper})
    _wait_for_keepers()
    _sweep(patience=SWEEP_SECONDS)


def _receive(client: Channel) -> tuple[dict[str, Any], list[int]] | None:
    """What a harness asks; None where it is gone."""
    try:
        return client.receive()
    except (OSError, GarbledError):
        return None


def _collect(keepers: set[int]) -> set[int]:
    """The keepers that are still at work."""
    working = set()
    for pid in keepers:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                working.add(pid)
    return working


def _fork_keeper(request: Mapping[str, Any], files: Sequence[int], clients: Sequence[Channel]) -> int:
    keeper = os.fork()
    if keeper == 0:
        for client in clients:
            client.close()
        _keep(request, files)
    for file in files:
        os.close(file)
    return keeper


def _wait_for_keepers() -> None:
    """The harness is gone: keepers notice and clear up."""
    until = time.monotonic() + SWEEP_SECONDS
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < until:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)


def _import_ahead() -> None:
    """What every child would import, so that a fork has it."""
    import numpy  # noqa: F401
    import safetensors.torch  # noqa: F401

    import prunebench.runner.child  # noqa: F401
    from prunebench.methods.discovery import builtin_methods
    from prunebench.methods.fitting import warm_up

    builtin_methods()
    warm_up()


def _keep(request: Mapping[str, Any], files: Sequence[int]) -> None:
    """Fork the child, watch it, report, and end. Files: keep, talk, log, out, and those of the request."""
    keep = Channel(socket.socket(fileno=files[0]))
    report: dict[str, Any]
    try:
        os.setsid()
        adopt_orphans()
        report = _watch(request, files, keep)
    except Exception as error:
        report = {"kind": "report", "problem": f"{type(error).__name__}: {error}"}
    with contextlib.suppress(OSError):
        keep.send(report)
    os._exit(0)


def _watch(request: Mapping[str, Any], files: Sequence[int], keep: Channel) -> dict[str, Any]:
    jail = None if request["jail"] is None else Jail(**request["jail"])
    scratch = SCRATCH if jail is not None else tempfile.mkdtemp(prefix="prunebench-")
    told, tell = os.pipe()
    if jail is not None:
        set_readable(readable=True)  # or else nobody but root may say who is who inside
        jail.enter()
    child = os.fork()
    if child == 0:
        os.close(told)
        keep.close()
        _become_child(request, files, jail, scratch, tell)
    for file in (*files[1:], tell):
        os.close(file)
    late = _wait(child, keep, request["timeout"])
    _kill(child)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    status = os.waitpid(child, 0)[1]
    _sweep(patience=SWEEP_SECONDS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    inside = os.read(told, 16)
    if jail is None:
        shutil.rmtree(scratch, ignore_errors=True)
    elif inside:
        status = int(inside)
    cpu = after.ru_utime + after.ru_stime - spent.ru_utime - spent.ru_stime
    return {
        "kind": "report",
        "status": os.waitstatus_to_exitcode(status),
        "late": late,
        "cpu": cpu,
    }


def _wait(child: int, keep: Channel, seconds: float | None) -> bool:
    """Until the child has ended, the harness closes its end, or time is up; says whether it was that."""
    deadline = None if seconds is None else time.monotonic() + seconds
    watched = select.poll()
    watched.register(keep.fileno(), select.POLLIN)
    ended = os.pidfd_open(child) if hasattr(os, "pidfd_open") else None
    if ended is not None:
        watched.register(ended, select.POLLIN)
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return True
        pause = 0.05 if ended is None else 3600.0
        if watched.poll(1000 * min(pause, pause if left is None else left)):
            return False
        if ended is None and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False


def _kill(pid: int) -> None:
    """End a process and its group, whatever it does about signals."""
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(pid, signal.SIGKILL)


def _sweep(patience: float, spared: Collection[int] = ()) -> None:
    """End and collect every descendant: orphans are this process's children."""
    until = time.monotonic() + patience
    while True:
        children = [pid for pid in _children() if pid not in spared]
        for pid in children:
            _kill(pid)
        with contextlib.suppress(ChildProcessError):
            while not spared and os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not children or time.monotonic() > until:
            return
        time.sleep(0.005)


def _children() -> list[int]:
    """Living children of this process; none where the system does not tell."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found.append(int(path.parent.name))
    return found


def _become_child(
    request: Mapping[str, Any], files: Sequence[int], jail: Jail | None, scratch: str, tell: int
) -> None:
    """Give up what a method must not have, run the child, end."""
    try:
        end_with_parent()
        set_readable(readable=True)  # its own /proc/self
        if jail is not None:
            jail.build(scratch)
            _fork_inside(files, tell)
            become_nobody(request["method_files"])
        os.close(tell)
        _dress(files, scratch, sandboxed=jail is not None)
        from prunebench.runner.child import run_child

        run_child(request, Channel(socket.socket(fileno=files[1])), files[3], files[4:])
        os._exit(0)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(70)


def _fork_inside(files: Sequence[int], tell: int) -> None:
    """Be the sandbox's first process, and go on as its second: the first collects the others and tells how it ended."""
    second = os.fork()
    if second == 0:
        return
    for file in files[1:]:
        os.close(file)
    while True:
        pid, status = os.wait()
        if pid == second:
            os.write(tell, str(status).encode())
            os._exit(0)


def _dress(files: Sequence[int], scratch: str, *, sandboxed: bool) -> None:
    """A session, folder, output, environment and limits of its own; then no privileges."""
    os.setsid()
    end_with_parent()
    os.chdir(scratch)
    tempfile.tempdir = scratch  # or else that of the keeper, which all runs would share
    os.environ.update(HOME=scratch, TMPDIR=scratch, TORCHINDUCTOR_CACHE_DIR=f"{scratch}/inductor")
    null = os.open("/dev/null", os.O_RDONLY)
    for source, target in ((null, 0), (files[2], 1), (files[2], 2)):
        os.dup2(source, target)
    for file in (null, files[2]):
        os.close(file)
    settings: dict[str, Any] = {
        "encoding": "utf-8",
        "errors": "backslashreplace",
        "buffering": 1,
        "closefd": False,
    }
    sys.stdout, sys.stderr = open(1, "w", **settings), open(2, "w", **settings)  # noqa: SIM115 - open to the end
    limit_memory()
    if sandboxed:
        limit_sandboxed()
    give_up_privileges()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
