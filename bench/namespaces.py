"""Machines made of Linux namespaces: a network address, processes and temporary files of their own on one real machine.

Machines share the network and, for reading alone, what is installed. `/tmp`, `/dev/shm` and a folder that is to be
hidden are empty ones of their own. They hang on a switch that is a namespace too. All of it belongs to processes that
end with the one that made them, even by `kill -9`: there is nothing to clean up. Needs root, util-linux and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

TOOLS = ("ip", "mount", "nsenter", "setpriv", "unshare")
NETWORK = "10.77.0"
OWN_NETWORK = ("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--kill-child")
OWN_MACHINE = (*OWN_NETWORK, "--mount", "--pid", "--ipc", "--uts", "--mount-proc")
ENTER = ("--net", "--mount", "--pid", "--ipc", "--uts")
SWITCH = "ip link add switch type bridge && ip link set switch up && echo ready && cat"
TRY = (
    "mount -t tmpfs none /dev/shm && mount -o remount,bind,ro / && "
    "ip link add switch type bridge && ip link add cable type veth peer name eth0"
)
BEGIN = """
set -e
sees=$1 hidden=$2 name=$3 address=$4; shift 4
hostname "$name"
mount -t tmpfs none /dev/shm
if [ "$sees" ]; then mkdir /dev/shm/sees; mount --bind "$sees" /dev/shm/sees; fi
mount -t tmpfs none /tmp
if [ "$sees" ]; then mkdir -p "$sees"; mount --move /dev/shm/sees "$sees"
elif [ -d "$hidden" ]; then mount -t tmpfs none "$hidden"; fi
mount -o remount,bind,ro /
echo ready
read plugged
ip link set lo up
ip address add "$address/24" dev eth0
ip link set eth0 up
ip route add default dev eth0
exec >&2
set +e
"$@"
exit $?
"""
"""The first process of a machine: mounts, waits for its cable, runs its command, and takes in orphans meanwhile."""


def what_is_missing() -> str:
    """Why there can be no machines here, in words; empty where there can."""
    lacking = [name for name in TOOLS if shutil.which(name) is None]
    if lacking:
        return f"needs {', '.join(lacking)} (util-linux, iproute2)"
    for place in (Path(sys.executable), Path(__file__).resolve()):
        if place.is_relative_to("/tmp"):
            return (
                f"needs Python and the project outside of /tmp, which each machine has of its own ({place})"
            )
    tried = subprocess.run([*OWN_MACHINE, "sh", "-c", TRY], capture_output=True, text=True, check=False)
    return f"needs root's rights ({tried.stderr.strip()})" if tried.returncode else ""


@dataclass(frozen=True)
class Machine:
    """A machine by its name and address; `first` is its first process as seen from here."""

    name: str
    address: str
    process: subprocess.Popen[bytes]
    first: int
    switch: int

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command that runs a command on this machine, in the folder where we are."""
        return ["nsenter", "--target", str(self.first), *ENTER, "--wd", *command]

    def kill(self) -> None:
        """Switch it off: `kill -9` of all its processes; they are gone afterwards."""
        with self.process, contextlib.suppress(ProcessLookupError):
            if self.process.poll() is None:
                os.kill(self.first, signal.SIGKILL)

    def cut(self) -> None:
        """Pull its cable: nothing reaches it any more, and nothing that it sends arrives."""
        _on(self.switch, f"ip link set {self.name} down")


class Network:
    """A switch, and the machines that hang on it."""

    def __init__(self, switch: int) -> None:
        self._switch = switch
        self.machines: list[Machine] = []

    @property
    def next_name(self) -> str:
        """The name of the machine that is added next."""
        return f"machine{len(self.machines) + 1}"

    @property
    def next_address(self) -> str:
        """Its address."""
        return f"{NETWORK}.{len(self.machines) + 1}"

    def add(
        self, command: Sequence[str], log: Path, *, sees: Path | None = None, hidden: Path | None = None
    ) -> Machine:
        """A new machine that runs a command; what it says goes into the log.

        It `sees` a real folder, where it may write; to one that does not, `hidden` is an empty folder.
        """
        name, address = self.next_name, self.next_address
        words = ["sh", "-c", BEGIN, "sh", str(sees or ""), str(hidden or ""), name, address, *command]
        with log.open("ab") as stream:
            process, first = _start([*OWN_MACHINE, *words], stream)
        if first is None:
            raise RuntimeError(f"{name} did not start: {log.read_text(errors='replace')[-500:]}")
        machine = Machine(name, address, process, first, self._switch)
        self.machines.append(machine)
        _on(self._switch, f"ip link add {name} type veth peer name eth0 netns {first}")
        _on(self._switch, f"ip link set {name} master switch up")
        process.stdin.write(b"plugged\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        return machine


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network without machines; those that are added end with the block."""
    process, first = _start([*OWN_NETWORK, "sh", "-c", SWITCH], None)
    if first is None:
        raise RuntimeError("no bridge could be made: the kernel needs its module `bridge`")
    made = Network(first)
    try:
        yield made
    finally:
        for machine in made.machines:
            machine.kill()
        with process:  # its input ends here, and with it the switch
            pass


def _start(command: Sequence[str], stream: IO[bytes] | None) -> tuple[subprocess.Popen[bytes], int | None]:
    """A process that says when it is ready, and its one child, in whose namespaces all is; None if it ended before."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream)
    ready = process.stdout.readline()  # type: ignore[union-attr]
    if ready != b"ready\n":
        with process:
            return process, None
    return process, int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())


def _on(switch: int, command: str) -> None:
    subprocess.run(["nsenter", "--target", str(switch), "--net", *command.split()], check=True)
