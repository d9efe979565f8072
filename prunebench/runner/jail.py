"""The confinement of a method's process: what it may no longer do, and the namespaces that `--sandbox` puts it into.

Always, on Linux: no capabilities, no new privileges, no reading of the harness's memory, first to go when memory runs
out. In the sandbox: a user, network, process, IPC and mount namespace of its own. Its root is an empty file system into
which are mounted, read-only, the interpreter, the libraries and the method's own files; only a scratch folder can be
written to. No data set, no results folder, no home and no network are there. Limits hold it to memory, processes and
sizes of files.

System calls go through ctypes, so neither root nor bubblewrap is needed; user namespaces are (`explain_sandbox`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import resource
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunebench.errors import UsageError

MOST_PROCESSES = 128
LARGEST_FILE = 4 << 30
"""Bytes of one file that a sandboxed method writes, memory without a name included."""
SCRATCH_BYTES = 4 << 30
MEMORY_SHARE = 0.9
"""Of the machine's memory, that one method's process may ask for."""
NOBODY = 65534

NAMESPACES = 0x10000000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x00020000
"""CLONE_NEWUSER, _NEWPID, _NEWNET, _NEWIPC, _NEWUTS and _NEWNS."""
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SUBREAPER, PR_NO_NEW_PRIVS = 1, 4, 24, 36, 38
LAST_CAPABILITY = 63
READABLE = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc", "/sys/devices/system")
DEVICES = ("null", "zero", "full", "random", "urandom")
HIDDEN = ("sklearn/datasets/data", "prunebench/tasks")
"""Folders beneath what may be read that hold data of tasks, or draw them."""


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library. Raises OSError that names it."""
    plain = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    if getattr(_libc(), name)(*plain) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError):
        _call("prctl", option, value, 0, 0, 0)


def end_with_parent() -> None:
    """Be killed when the process that forked this one dies."""
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, 9)


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parent ends, so that none escapes."""
    if sys.platform == "linux":
        _prctl(PR_SET_SUBREAPER, 1)


def set_readable(readable: bool) -> None:
    """Whether other processes of this user may read the memory of this one."""
    if sys.platform == "linux":
        _prctl(PR_SET_DUMPABLE, int(readable))


def give_up_privileges() -> None:
    """Drop every capability for good, so that not even root's method can read another process."""
    if sys.platform != "linux":
        return
    for number in range(LAST_CAPABILITY + 1):
        _prctl(PR_CAPBSET_DROP, number)
    _prctl(PR_NO_NEW_PRIVS, 1)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    with contextlib.suppress(OSError):
        _call("capset", header, (ctypes.c_uint32 * 6)())
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def limit_memory() -> None:
    """Let no allocation pass that the machine cannot serve: it fails by name instead of ending the process."""
    with contextlib.suppress(ValueError, OSError):
        most = int(MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@dataclass(frozen=True)
class Jail:
    """The view of a sandboxed process: `readable` files and folders, one scratch folder, `devices` under /dev."""

    readable: tuple[str, ...]
    devices: tuple[str, ...] = DEVICES

    @classmethod
    def of(cls, method_files: Sequence[str], weights: Sequence[str] = (), *, gpu: bool = False) -> Jail:
        """What PruneBench and a method's own files need."""
        devices: tuple[str, ...] = DEVICES
        if gpu:
            devices += tuple(path.name for path in Path("/dev").glob("nvidia*"))
        return cls((*_interpreter(), *method_files, *weights), devices)

    def enter(self) -> None:
        """Leave the old world. To be called by the only thread of a process; its next child lives inside.

        Raises OSError where the system does not allow namespaces.
        """
        user, group = os.getuid(), os.getgid()
        if user == 0:
            _enter_as_root()
        else:
            _call("unshare", NAMESPACES)
            _map_identity(user, group)

    def build(self, scratch: str) -> None:
        """Make the file system that is seen and step into it; called by the first process inside."""
        hidden = self._hidden()
        old, new = _base()
        for path in self.readable:
            _bind(path, old, new)
        for name in self.devices:
            _bind(f"/dev/{name}", old, new, read_only=False)
        _mount_memory(new, scratch, f"size={SCRATCH_BYTES},mode=1777")
        _mount_memory(new, "/dev/shm", "size=1g,mode=1777")
        _mount_proc(old, new)
        for path in hidden:
            _mount_memory(new, path, "size=4k,mode=555")
        _step_into(new)
        os.chdir(scratch)

    def _hidden(self) -> list[str]:
        folders = {path for path in self.readable if os.path.isdir(path)}
        roots = {*map(os.path.realpath, sys.path), *(os.path.dirname(path) for path in folders)}
        return sorted(
            {f"{root}/{name}" for root in roots for name in HIDDEN if _visible(f"{root}/{name}", folders)}
        )


def _visible(path: str, folders: set[str]) -> bool:
    return os.path.isdir(path) and any(path == base or path.startswith(f"{base}/") for base in folders)


def package_folders() -> list[str]:
    """Where PruneBench and its kernels lie, found without importing them."""
    kernels = importlib.util.find_spec("prunebench_kernels")
    found = [] if kernels is None else list(kernels.submodule_search_locations or [])
    return [os.path.realpath(path) for path in (str(Path(__file__).parents[1]), *found)]


def _interpreter() -> list[str]:
    """System folders, the interpreter and what is installed with it, the packages of PruneBench."""
    found = [path for path in READABLE if os.path.exists(path)]
    paths = sysconfig.get_paths()
    wanted = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    wanted += [os.path.join(sys.base_prefix, "lib"), os.path.join(sys.prefix, "pyvenv.cfg")]
    wanted += [os.path.dirname(path) for path in (sys.executable, os.path.realpath(sys.executable))]
    wanted += package_folders()
    for path in wanted:
        if os.path.exists(path) and not any(path == base or path.startswith(f"{base}/") for base in found):
            found.append(path)
    return found


def _map_identity(user: int, group: int) -> None:
    """Be the same user inside, the only one there is."""
    with contextlib.suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _enter_as_root() -> None:
    """Of root: nobody is mapped beside root, which a process outside has to write."""
    ready, go = os.pipe()
    helper = os.fork()
    if helper == 0:
        try:
            os.close(go)
            os.read(ready, 1)
            for kind in ("uid", "gid"):
                Path(f"/proc/{os.getppid()}/{kind}_map").write_text(f"0 0 1\n{NOBODY} {NOBODY} 1\n")
            os._exit(0)
        finally:
            os._exit(1)
    os.close(ready)
    try:
        _call("unshare", NAMESPACES)
    finally:
        os.close(go)
        status = os.waitpid(helper, 0)[1]
    if status != 0:
        raise OSError("the users of the sandbox cannot be mapped")


def become_nobody(files: Sequence[str] = ()) -> None:
    """Of root inside a sandbox: be nobody, for whom limits on processes hold; unless nobody may not read `files`."""
    if os.getuid() == 0 and all(os.stat(path).st_mode & 0o004 for path in files):
        with contextlib.suppress(OSError):
            os.setgroups([])
        with contextlib.suppress(OSError):
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)


def limit_sandboxed() -> None:
    """Limits on processes and on the size of files, beside those on memory."""
    for kind, most in ((resource.RLIMIT_NPROC, MOST_PROCESSES), (resource.RLIMIT_FSIZE, LARGEST_FILE)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def _base() -> tuple[str, str]:
    """The old root and an empty new one, under a root in memory that nobody else sees."""
    base = "/tmp" if os.path.isdir("/tmp") else "/var/tmp"
    _call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    _mount_memory(base, "", "size=1m,mode=755")
    os.mkdir(f"{base}/old")
    os.chdir(base)
    _call("syscall", _PIVOT_ROOT[os.uname().machine], b".", b"old")
    os.chdir("/")
    _mount_memory("/new", "", "size=16m,mode=755")
    return "/old", "/new"


def _mount_memory(root: str, path: str, options: str) -> None:
    place = f"{root}{path}"
    os.makedirs(place, exist_ok=True)
    _call("mount", b"tmpfs", place.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, options.encode())


def _mount_proc(old: str, new: str) -> None:
    """The processes inside; where the system forbids that, the facts about processors and memory alone."""
    os.mkdir(f"{new}/proc")
    try:
        _call("mount", b"proc", f"{new}/proc".encode(), b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)
    except OSError:
        for name in ("cpuinfo", "meminfo", "stat"):
            _bind(f"/proc/{name}", old, new)


def _bind(path: str, old: str, new: str, *, read_only: bool = True) -> None:
    """Show a file or folder of the old root in the new one, where it was; links are shown as links."""
    source, inside = f"{old}{path}", f"{new}{path}"
    if not os.path.lexists(source) or os.path.lexists(inside):
        return
    os.makedirs(os.path.dirname(inside), exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), inside)
        return
    if os.path.isdir(source):
        os.mkdir(inside)
    else:
        os.close(os.open(inside, os.O_CREAT | os.O_WRONLY, 0o644))
    _call("mount", source.encode(), inside.encode(), None, MS_BIND | MS_REC, None)
    if read_only:
        _set_read_only(inside)


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "spread", "namespace"))


def _set_read_only(place: str) -> None:
    """mount_setattr: also of what is mounted below, and with the flags that are locked kept (Linux 5.12)."""
    attributes = _MountAttributes(set=1 | 2, clear=0, spread=0, namespace=0)  # MOUNT_ATTR_RDONLY and _NOSUID
    _call("syscall", 442, -100, place.encode(), 0x8000, ctypes.byref(attributes), ctypes.sizeof(attributes))


def _step_into(root: str) -> None:
    """pivot_root, and the old root is gone."""
    os.chdir(root)
    _call("syscall", _PIVOT_ROOT[os.uname().machine], b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/")


_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
"""Number of the system call by machine."""


@functools.cache
def explain_sandbox() -> str | None:
    """Why `--sandbox` does not work here, with what would help; None where it does: it is tried."""
    if sys.platform != "linux":
        return f"namespaces are Linux's, this is {sys.platform}"
    import subprocess

    code = "from prunebench.runner.jail import try_sandbox; try_sandbox()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return (
        f"{last}. It needs Linux 5.12 and unprivileged user namespaces: sysctl kernel.unprivileged_userns_clone=1, "
        "kernel.apparmor_restrict_unprivileged_userns=0, or a container with --security-opt seccomp=unconfined"
    )


def try_sandbox() -> None:
    """Enter a sandbox in a child, end with status 0 where that works and nothing outside can be seen."""
    jail = Jail.of([])
    jail.enter()
    child = os.fork()
    if child == 0:
        jail.build("/scratch")
        become_nobody()
        os._exit(0 if os.listdir("/scratch") == [] and not os.path.exists("/home") else 3)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def check_sandbox() -> None:
    """Raise UsageError with the reason where `--sandbox` does not work here."""
    problem = explain_sandbox()
    if problem is not None:
        raise UsageError(f"--sandbox does not work here: {problem}")
