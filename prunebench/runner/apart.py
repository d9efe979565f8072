"""Methods of users' files, run apart: each call in a fresh process that holds only what the method declared.

This side holds what is withheld and never imports a user's file. It sends images, labels and what was declared; serves
the dense model and shared stages where they are asked for; forwards a bounded part of what is printed; and takes back
plain tensors, which `execute` puts into a network of its own. A child that ends, hangs, floods or lies fails its run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench import errors
from prunebench.errors import PruneBenchError
from prunebench.report import format as fmt
from prunebench.runner.exchange import (
    Channel,
    GarbledError,
    anonymous_file,
    closing_all,
    put_tensors,
    take_tensors,
)
from prunebench.runner.jail import Jail, check_sandbox, package_folders, set_readable

if TYPE_CHECKING:
    from torch import Tensor

MOST_PRINTED = 64 << 10
"""Bytes of a method's output that are forwarded; the rest is dropped."""
GRACE_SECONDS = 5.0
"""That a child has to end once it has answered, and a keeper to report once time is up."""
PASSED = (
    "PATH", "LANG", "LANGUAGE", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "PRUNEBENCH_KERNELS", "SYSTEMROOT",
    "PYTHONHASHSEED", "PYTHONUTF8", "PYTHONIOENCODING", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH",
    "CUBLAS_WORKSPACE_CONFIG", "ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TRITON_INTERPRET",
)  # fmt: skip
"""Environment variables that a method's process has: none that may hold a secret or name a folder of data."""
PASSED_FAMILIES = ("LC_", "NVIDIA_", "ONEDNN_", "DNNL_", "KMP_", "GOMP_")


class ApartError(PruneBenchError):
    """A method's process failed; `trace` is its own account, if it gave one."""

    def __init__(self, reason: str, trace: str = "") -> None:
        super().__init__(reason)
        self.trace = trace


@dataclass(frozen=True)
class Answer:
    """What a child answered, the tensors that came with it, and what the kernel says it spent."""

    message: dict[str, Any]
    tensors: dict[str, Tensor]
    cpu_seconds: float


@dataclass
class Request:
    """What a child is asked: a message, files beside it, and who serves its questions meanwhile."""

    message: dict[str, Any]
    files: list[int] = field(default_factory=list)
    timeout: float | None = None
    serve: Callable[[Mapping[str, Any], int], dict[str, Tensor] | str | None] = lambda _, __: None
    largest: int = 0
    """Bytes of tensors that its answer may have."""


def can_run_apart() -> bool:
    """Whether this system can fork and pass files: any but Windows."""
    return hasattr(os, "fork") and hasattr(socket, "send_fds")


class GoneError(ApartError):
    """The fork server has ended: nothing was forked."""


class ForkServer:
    """The way to a fork server: one that is started here, without waiting for it, or one of the launcher's."""

    def __init__(self, end: int | None = None) -> None:
        self._lock, self._gone = threading.Lock(), False
        self.close: Callable[[], Any]
        if end is not None:
            self._control = Channel(socket.socket(fileno=end))
            self.close = weakref.finalize(self, self._control.close)
            return
        mine, theirs = socket.socketpair()
        self._control = Channel(mine)
        command = [sys.executable, "-m", "prunebench.runner.forkserver", str(theirs.fileno())]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=clean_environment(), cwd="/"
        )
        theirs.close()
        self.close = weakref.finalize(self, _close, self._control, process)

    @property
    def alive(self) -> bool:
        """Whether it has answered so far."""
        return not self._gone

    def link(self) -> socket.socket:
        """An end for another process, which asks the same server through it."""
        mine, theirs = socket.socketpair()
        with self._lock, theirs, contextlib.suppress(OSError):
            self._control.send({"kind": "client"}, [theirs.fileno()])
            self._control.receive()
        return mine

    def ask(self, request: Request) -> Answer:
        """Run a child to its end. Raises ApartError with the reason, GoneError, or the child's own error."""
        with self._lock, contextlib.ExitStack() as stack:
            ours: list[Channel] = []
            theirs: list[socket.socket] = []
            for _ in ("keep", "talk"):
                one, other = socket.socketpair()
                # none are taken, or a child could use up the descriptors of this process
                ours.append(Channel(one, most_files=0))
                theirs.append(other)
                stack.callback(ours[-1].close)
            log, printed = os.pipe()
            out = anonymous_file()
            stack.enter_context(closing_all([log, out]))
            mine = [theirs[0].fileno(), theirs[1].fileno(), printed, out]
            try:
                self._control.send(request.message | {"timeout": request.timeout}, [*mine, *request.files])
                forked = self._control.receive()
            except OSError:
                forked = None
            finally:
                os.close(printed)
                for end in theirs:
                    end.close()
            if forked is None:
                self._gone = True
                raise GoneError("the process that starts methods has ended; run the same command again")
            set_readable(readable=False)
            stack.callback(set_readable, readable=True)
            return _Conversation(request, ours[0], ours[1], log, out, forked[0]["pid"]).run()


def _close(control: Channel, process: subprocess.Popen[bytes]) -> None:
    control.close()
    try:
        process.wait(timeout=2 * GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Conversation:
    """The talk with one child until its keeper reports the end."""

    def __init__(
        self, request: Request, keep: Channel, talk: Channel, log: int, out: int, keeper: int
    ) -> None:
        self._request, self._keep, self._talk, self._log, self._out = request, keep, talk, log, out
        self._keeper = keeper
        self._answer: dict[str, Any] | None = None
        self._problem: str | None = None
        self._report: dict[str, Any] | None = None
        self._printed = 0
        self._until = None if request.timeout is None else time.monotonic() + request.timeout + GRACE_SECONDS

    def run(self) -> Answer:
        """Serve until the end; the answer, or ApartError."""
        with selectors.DefaultSelector() as waiting:
            for source, act in (
                (self._keep, self._hear_end),
                (self._talk, self._hear),
                (self._log, self._print),
            ):
                waiting.register(source, selectors.EVENT_READ, act)
            while self._report is None:
                for key, _ in waiting.select(self._patience()):
                    if not key.data():
                        waiting.unregister(key.fileobj)
                if self._until is not None and time.monotonic() > self._until:
                    self._end()
            while self._print(wait=False):
                pass
        self._talk.stop_waiting()
        while self._problem is None and self._hear():  # what it said before it ended
            pass
        return self._judge()

    def _patience(self) -> float | None:
        return None if self._until is None else max(self._until - time.monotonic(), 0.0)

    def _end(self) -> None:
        """Time is up for the keeper too: it is told, then killed."""
        self._until = time.monotonic() + GRACE_SECONDS
        if self._report is None and self._problem is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._keeper, 9)
        self._stop(self._problem or "did not end")

    def _stop(self, problem: str | None) -> None:
        """Have the child ended."""
        self._problem = self._problem or problem
        with contextlib.suppress(OSError):
            self._keep.send({"kind": "stop"})

    def _hear_end(self) -> bool:
        try:
            received = self._keep.receive()
        except GarbledError as error:
            received = {"kind": "report", "problem": str(error)}, []
        self._report = (
            {"kind": "report", "problem": "its keeper was ended"} if received is None else received[0]
        )
        return False

    def _hear(self) -> bool:
        """Read what has come and answer it."""
        try:
            if not self._talk.read_some():
                return False
            while (received := self._talk.next_message()) is not None:
                self._take(received[0])
        except GarbledError as error:
            self._stop(str(error))
            return False
        except OSError:
            return False
        return True

    def _take(self, message: dict[str, Any]) -> None:
        if message["kind"] in ("fitted", "described", "failed"):
            self._answer = message
            self._until = time.monotonic() + GRACE_SECONDS
            return
        try:
            served = self._request.serve(message, self._out)
        except (PruneBenchError, OSError) as error:
            self._tell({"kind": "problem", "reason": str(error)})
            return
        if isinstance(served, str):
            self._tell({"kind": served})
        elif served is not None:
            with closing_all([anonymous_file()]) as files:
                self._tell({"kind": "tensors", "size": put_tensors(files[0], served)}, files)

    def _tell(self, message: Mapping[str, Any], files: Sequence[int] = ()) -> None:
        """Answer a question; of a child that has ended already, what it said is still read."""
        with contextlib.suppress(OSError):
            self._talk.send(message, files)

    def _print(self, *, wait: bool = True) -> bool:
        """Forward a piece of output, without what steers a terminal, as long as there is room for it."""
        os.set_blocking(self._log, wait)
        try:
            data = os.read(self._log, 1 << 16)
        except BlockingIOError:
            return False
        room = MOST_PRINTED - self._printed
        self._printed += len(data)
        if data and room > 0:
            print(
                fmt.visible(data[:room].decode(errors="backslashreplace"), kept="\n\t"),
                end="" if len(data) <= room else "\n(the rest of what it prints is dropped)\n",
                file=sys.stderr,
            )
        return bool(data)

    def _judge(self) -> Answer:
        """The answer, unless something was wrong with how it came about."""
        report, answer = self._report or {}, self._answer
        if self._problem is not None and answer is None:
            raise ApartError(f"the method's process {self._problem}")
        if answer is None:
            raise ApartError(_death(report, self._request.timeout))
        if answer["kind"] == "failed":
            raise _as_raised(answer)
        tensors = {}
        if answer.get("size"):
            try:
                tensors = take_tensors(self._out, answer["size"], self._request.largest)
            except GarbledError as error:
                raise ApartError(f"the method's process {error}") from error
        return Answer(answer, tensors, float(report.get("cpu", 0.0)))


def _death(report: Mapping[str, Any], timeout: float | None) -> str:
    """Why a child ended without an answer."""
    if report.get("problem"):
        return f"the method's process could not be watched: {report['problem']}"
    if report["late"]:
        return f"the method took longer than {timeout:g} s (--timeout) and was ended"
    code = report["status"]
    if code < 0:
        hint = " (out of memory? try fewer --workers)" if code == -9 else ""
        return f"the method's process ended with signal {-code}{hint}"
    return (
        f"the method's process ended with exit status {code} (did the method end it?): "
        "raise an error to fail a run, return to end it"
    )


def _as_raised(message: Mapping[str, Any]) -> PruneBenchError:
    """The child's error: of its class if that is one of PruneBench's."""
    reason, trace = (str(message.get(name, "")) for name in ("reason", "trace"))
    kind = getattr(errors, str(message.get("error")), None)
    if isinstance(kind, type) and issubclass(kind, PruneBenchError):
        error = kind(reason)
        error.trace = trace  # type: ignore[attr-defined]
        return error
    return ApartError(reason, trace)


def clean_environment() -> dict[str, str]:
    """The environment of a fork server: what decides numbers and finds libraries."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED or name.startswith(PASSED_FAMILIES)
    }
    homes = [str(Path(path).parent) for path in package_folders()]
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = list(dict.fromkeys([*homes, *map(os.path.abspath, given)]))
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return one_thread | passed | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


@functools.cache
def _started() -> list[ForkServer]:
    return []


def fork_server(end: int | None = None) -> ForkServer:
    """The fork server of this process, started now if there is none; `end` is one that the launcher linked."""
    running = _started()
    running[:] = [server for server in running if server.alive]
    if not running:
        running.append(ForkServer(end))
    return running[0]


def ask(request: Request) -> Answer:
    """As `ForkServer.ask`; a server that has ended is started again."""
    try:
        return fork_server().ask(request)
    except GoneError:
        return fork_server().ask(request)


def jail_of(
    files: Sequence[str], *, sandbox: bool, weights: Sequence[str] = (), gpu: bool = False
) -> dict[str, Any] | None:
    """What a request says of the sandbox. Raises UsageError where one is wanted and does not work here."""
    if not sandbox:
        return None
    check_sandbox()
    return asdict(Jail.of(files, weights, gpu=gpu))
