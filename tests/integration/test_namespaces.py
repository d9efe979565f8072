"""Machines of namespaces: what they share and what they do not, and that nothing is left of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import namespaces
import pytest

LISTEN = (
    "import socket; s = socket.create_server(('', 999)); print('listens', flush=True); s.accept(); s.accept()"
)
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 999), 2)"
LOOK = """
import json, os, socket, sys
from pathlib import Path
def writable(folder):
    try:
        (Path(folder) / "written").write_text("")
    except OSError:
        return False
    return True
print(json.dumps({"name": socket.gethostname(), "tmp": os.listdir("/tmp"), "shm": os.listdir("/dev/shm"),
    "processes": sum(name.isdigit() for name in os.listdir("/proc")), "root": writable("/"),
    "seen": [Path(sys.argv[1], "inside").exists(), writable(sys.argv[1])]}))
"""


@pytest.fixture(autouse=True)
def _rights() -> None:
    if missing := namespaces.what_is_missing():
        pytest.skip(missing)


def look(machine: namespaces.Machine, folder: Path) -> dict[str, object]:
    """What a process on this machine finds there."""
    command = machine.inside([sys.executable, "-c", LOOK, str(folder)])
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def connects(machine: namespaces.Machine, address: str) -> bool:
    """Whether a process on this machine reaches another one."""
    command = machine.inside([sys.executable, "-c", CONNECT, address])
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def wait_for(log: Path) -> None:
    end = time.monotonic() + 30
    while "listens" not in log.read_text() and time.monotonic() < end:
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, within some seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_machines_share_the_network_alone(tmp_path: Path) -> None:
    results, log = tmp_path / "results", tmp_path / "log"
    results.mkdir()
    (results / "inside").touch()
    with namespaces.network() as network:
        far = network.add([sys.executable, "-c", LISTEN], log, hidden=results)
        mine = network.add(["sleep", "60"], log, sees=results)
        wait_for(log)
        assert look(far, results)["seen"] == [False, False]
        found = look(mine, results)
        assert (found["name"], found["root"], found["seen"]) == ("machine2", False, [True, True])
        assert int(str(found["processes"])) <= 4  # of this machine alone
        assert (results / "written").exists()
        assert connects(mine, far.address)
        far.cut()
        assert not connects(mine, far.address)
        far.kill()
        assert is_gone(far.first)
        assert Path(f"/proc/{mine.first}").exists()
    assert is_gone(mine.first)


def test_nothing_is_left_of_machines_whose_maker_is_killed(tmp_path: Path) -> None:
    code = (
        "import namespaces, sys, time; from pathlib import Path\n"
        "with namespaces.network() as network:\n"
        "    machine = network.add(['sleep', '600'], Path(sys.argv[1]))\n"
        "    print(machine.first, machine.switch, machine.process.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    folder = Path(namespaces.__file__).parent
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as maker:
        assert maker.stdout is not None
        pids = [int(word) for word in maker.stdout.readline().split()]
        assert len(pids) == 3
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        maker.kill()
    assert all(map(is_gone, pids))
