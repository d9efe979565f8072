"""Cheats that users' files may try, each a method's body, and what becomes of it with and without the sandbox.

A body sets `got` to whether it reached what it should not; the run's notes carry it out. `docs/withholding.md` shows
these lines as its table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STOPPED, FAILED, SHOWN, HARMLESS, OPEN = "stopped", "fails its run", "shown", "has no effect", "possible"

HEAD = """
import ctypes, gc, os, signal, socket, sys, threading, time, types
from pathlib import Path
import torch
from torch import nn
from torch.autograd import backward
from torch.nn import functional as F
from prunebench import Pruned, method
from prunebench.pruning.masks import apply_masks, make_masks, prunable
{top}

def prune(model, sparsity):
    masks = make_masks({{n: w.detach().abs() for n, w in prunable(model).items()}}, sparsity)
    apply_masks(model, masks)
    return masks


@method("{name}", cite="a cheat")
class Cheat:
    def fit(self, e, sparsity):
        got = False
        model = e.dense_model()
        masks = prune(model, sparsity)
        result = e.finetune(model, masks)
{body}
        e.log(got=float(got))
        return result
"""


@dataclass(frozen=True)
class Cheat:
    """One attempt: what it tries, its code, and its fate without and within the sandbox."""

    name: str
    tries: str
    body: str
    without: str
    within: str
    top: str = ""
    reason: str = ""
    """What the record of a failed run says."""

    def write(self, folder: Path, facts: dict[str, object]) -> Path:
        """The method's file; `facts` are what a cheat may know of the machine: paths, a port."""
        text = self.body.strip()
        for key, value in facts.items():
            text = text.replace(f"<{key}>", repr(value))
        lines = "\n".join(f"        {line}" for line in text.splitlines())
        path = folder / f"{self.name.replace('-', '_')}.py"
        path.write_text(HEAD.format(name=self.name, top=self.top, body=lines))
        return path


def stopped(name: str, tries: str, body: str, top: str = "") -> Cheat:
    """A cheat that gets nothing either way."""
    return Cheat(name, tries, body, STOPPED, STOPPED, top)


def sandboxed(name: str, tries: str, body: str) -> Cheat:
    """A cheat that only the sandbox stops."""
    return Cheat(name, tries, body, OPEN, STOPPED)


def failing(name: str, tries: str, body: str, reason: str) -> Cheat:
    """A cheat whose run fails, for this reason."""
    return Cheat(name, tries, body, FAILED, FAILED, reason=reason)


def harmless(name: str, tries: str, body: str, top: str = "") -> Cheat:
    """A cheat whose result is that of the honest method, to the last bit."""
    return Cheat(name, tries, body, HARMLESS, HARMLESS, top)


ANCESTORS = """
def ancestors():
    pid = os.getppid()
    while pid > 1:
        yield pid
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
"""

READING = [
    stopped(
        "bias-attribute",
        "reads the bias labels of its split's private field",
        "got = e.train_split._bias is not None or e.val_split._bias is not None",
    ),
    stopped(
        "garbage-collector",
        "searches all Python objects for the task, its draw or the labels",
        "names = ('TaskData', 'GroundTruth', 'Splits', 'Split', 'Labels')\n"
        "got = any(type(o).__name__ in names for o in gc.get_objects())",
    ),
    stopped(
        "all-tensors",
        "searches all tensors for as many rows as the test split has",
        "gc.collect()\ngot = any(isinstance(o, torch.Tensor) and o.ndim and len(o) == <tests> for o in gc.get_objects())",
    ),
    stopped(
        "callers-frames",
        "walks the frames of its callers for data and labels",
        "f = sys._getframe()\nwhile f:\n    got |= any(n in f.f_locals for n in ('data', 'task', 'record', 'labels_of'))\n"
        "    got |= any('bias' in str(n) for v in f.f_locals.values() if isinstance(v, dict) for n in v)\n    f = f.f_back",
    ),
    stopped(
        "parents-memory",
        "opens the memory of the processes above it",
        "for pid in ancestors():\n    try:\n        os.close(os.open(f'/proc/{pid}/mem', os.O_RDONLY)); got = True\n"
        "    except OSError: pass",
        ANCESTORS,
    ),
    stopped(
        "parents-environment",
        "reads the environment of the processes above it",
        "for pid in ancestors():\n    try: got |= len(Path(f'/proc/{pid}/environ').read_bytes()) >= 0\n    except OSError: pass",
        ANCESTORS,
    ),
    stopped(
        "parents-files",
        "opens the files that the processes above it hold open",
        "for pid in ancestors():\n    for n in range(256):\n        try: os.close(os.open(f'/proc/{pid}/fd/{n}', os.O_RDONLY)); got = True\n"
        "        except OSError: pass",
        ANCESTORS,
    ),
    stopped(
        "ptrace",
        "attaches to the processes above it as a debugger",
        "libc = ctypes.CDLL(None)\nfor pid in ancestors():\n    got |= libc.ptrace(16902, pid, None, None) == 0",
        ANCESTORS,
    ),
    stopped(
        "environment",
        "looks for the data root and for secrets in its environment",
        "got = any('SECRET' in v or 'PRUNEBENCH_DATA' in k for k, v in os.environ.items())",
    ),
    stopped(
        "inherited-files",
        "reads every file descriptor that it was born with",
        "for fd in range(3, 256):\n    try: size = len(os.pread(fd, 1 << 20, 0))\n    except OSError: continue\n    got |= size > 0",
    ),
    sandboxed("data-root", "opens the data root by its path", "got = Path(<data>, 'labels.txt').is_file()"),
    sandboxed(
        "results",
        "reads the records of other methods in the results folder",
        "got = any(Path(<out>, 'runs').glob('*/record.json'))",
    ),
    sandboxed(
        "network",
        "connects to a server",
        "try: socket.create_connection(('127.0.0.1', <port>), 2).close(); got = True\nexcept OSError: pass",
    ),
    sandboxed(
        "draws-the-task",
        "takes the guard off and draws the task anew, from its public constants",
        "sys.meta_path[:] = [m for m in sys.meta_path if type(m).__name__ != 'WithheldTasks']\n"
        "try:\n    from prunebench.tasks import resolve_task\n"
        "    got = len(resolve_task(e.spec.task).splits(None, e.seed).test) > 0\nexcept ImportError: pass",
    ),
    sandboxed(
        "bundled-digits",
        "loads the digits that the task is made from out of scikit-learn",
        "try:\n    from sklearn.datasets import load_digits\n    got = len(load_digits().target) > 0\n"
        "except (OSError, ImportError): pass",
    ),
]

TALKING = [
    stopped(
        "note-in-scratch",
        "leaves a note for its next run in its folder and in TMPDIR",
        "import tempfile\nplaces = [Path(p, 'prunebench-note') for p in ('.', tempfile.gettempdir(), Path.home())]\n"
        "got = any(p.exists() for p in places)\nfor p in places: p.write_text('x')",
    ),
    sandboxed(
        "note-elsewhere",
        "leaves a note for its next run in another folder",
        "note = Path(<elsewhere>, 'note')\ngot = note.exists()\ntry: note.write_text('x')\nexcept OSError: pass",
    ),
    stopped(
        "another-methods-stage",
        "writes a shared stage under another method's name",
        "e._around.stages.shared('0123456789abcdef', lambda: {'x': torch.zeros(1)})",
    ),
    sandboxed(
        "rivals-record",
        "changes a record in the results folder",
        "for p in Path(<out>, 'runs').glob('*/record.json'):\n"
        "    try: os.utime(p, (1, 1)); got = True\n    except OSError: pass",
    ),
    stopped(
        "daemon",
        "leaves a daemon behind that writes a file later",
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(4); Path(<elsewhere>, 'daemon').write_text('x')\n"
        "    os._exit(0)\nos.wait()",
    ),
    stopped(
        "thread",
        "leaves a thread behind that changes its result later",
        "def later():\n    time.sleep(3); Path(<elsewhere>, 'thread').write_text('x')\nthreading.Thread(target=later).start()",
    ),
]

PATCHING = [
    harmless(
        "patched-forward",
        "patches the network's forward to answer as it likes",
        "type(model).forward = lambda self, x: F.one_hot(torch.zeros(len(x), dtype=torch.int64), 10).float()",
    ),
    harmless(
        "patched-clock",
        "patches the clock and the measurement of latency, at import and in fit",
        "import prunebench.inference.latency as latency\nlatency.interleaved_latency = lambda *a, **k: None\n"
        "time.perf_counter = lambda: 0.0",
        "import time as clock\nclock.perf_counter = lambda: 0.0\nclock.process_time = lambda: 0.0",
    ),
    harmless(
        "patched-metrics",
        "patches metrics, the mask check and the count of zeros",
        "import prunebench.metrics, prunebench.pruning.masks as checks\nchecks.verify = checks.count_zeros = lambda *a, **k: None\n"
        "prunebench.metrics.accuracy = lambda *a, **k: 1.0",
    ),
    harmless(
        "global-state",
        "sets torch's default dtype, threads and determinism",
        "torch.set_default_dtype(torch.float64); torch.set_num_threads(2); torch.set_flush_denormal(True)\n"
        "torch.use_deterministic_algorithms(True)",
    ),
    harmless(
        "hooks",
        "returns a network with hooks that answer with the dense one",
        "dense = e.dense_model()\nresult.model.register_forward_hook(lambda m, a, o: dense(a[0]))\n"
        "result.model.head.register_forward_pre_hook(lambda m, a: a)",
    ),
    harmless(
        "overridden-forward",
        "overrides forward on the returned network",
        "dense = e.dense_model()\nresult.model.forward = types.MethodType(lambda self, x: dense(x), result.model)",
    ),
    failing(
        "lying-masks",
        "returns masks of a tensor subclass that lies about its content",
        "class Lie(torch.Tensor):\n    @classmethod\n    def __torch_function__(cls, f, types, args=(), kwargs=None):\n"
        "        if getattr(f, '__name__', '') in ('__invert__', 'bitwise_not'):\n"
        "            return torch.zeros(args[0].shape, dtype=torch.bool)\n"
        "        return super().__torch_function__(f, types, args, kwargs or {})\n"
        "result = Pruned(e.dense_model(), {n: m.as_subclass(Lie) for n, m in masks.items()})",
        "the mask did not hold",
    ),
    failing(
        "tiny-weights",
        "hides weights as numbers too small to matter",
        "dense = prunable(e.dense_model())\nwith torch.no_grad():\n"
        "    for n, w in prunable(result.model).items(): w.copy_(torch.where(masks[n], w, dense[n] * 1e-38))",
        "the mask did not hold",
    ),
    failing(
        "parametrization",
        "hides the dense weights behind a parametrization",
        "dense = e.dense_model().head.weight\nclass Dense(nn.Module):\n    def forward(self, w): return dense\n"
        "nn.utils.parametrize.register_parametrization(result.model.head, 'weight', Dense())",
        "the task's network",
    ),
    failing(
        "buffer",
        "hides weights in a buffer",
        "result.model.register_buffer('more', torch.ones(10))",
        "the task's network",
    ),
    failing(
        "patched-safetensors",
        "patches safetensors to send dense weights under its masks",
        "import safetensors.torch as st\nsave, dense = st.save, e.dense_model().state_dict()\n"
        "st.save = lambda t: save({k: dense[k[6:]].contiguous() if k[6:] in dense else v for k, v in t.items()})",
        "the mask did not hold",
    ),
    failing(
        "in-place-images",
        "changes the images that it was given",
        "e.train_split.images._bytes[:, :, :, 0] = 0",
        "changed the images in place",
    ),
]

ENDING = [
    failing(
        "sys-exit", "ends the process by sys.exit(0)", "sys.exit(0)", "called for the end of the process"
    ),
    failing("os-exit", "ends the process by os._exit(0)", "os._exit(0)", "ended with exit status 0"),
    failing(
        "killed", "kills itself by SIGKILL", "os.kill(os.getpid(), signal.SIGKILL)", "ended with signal 9"
    ),
    failing("crash", "crashes the interpreter", "ctypes.string_at(0)", "ended with signal 11"),
    failing("memory", "asks for more memory than there is", "torch.zeros(1 << 44)", "memory"),
    failing(
        "garbage",
        "writes garbage into every pipe that it finds",
        "for fd in range(3, 64):\n    try: os.write(fd, b'garbage{\\n')\n    except OSError: pass\ntime.sleep(60)",
        "where results are read",
    ),
    failing(
        "forged-answer",
        "sends a result of its own making",
        "for fd in range(3, 64):\n"
        '    try: os.write(fd, b\'{"kind": "fitted", "own_steps": 1, "counted": 1, "notes": {}, "size": 0}\\n\')\n'
        "    except OSError: pass\nos._exit(0)",
        "the task's network",
    ),
    failing(
        "huge-answer",
        "returns hundreds of megabytes",
        "result.model.register_buffer('more', torch.zeros(60_000_000))",
        "bytes of tensors",
    ),
    harmless(
        "endless-printing",
        "floods its output with text and terminal escapes",
        "for _ in range(200): sys.stdout.write('\\x1b[2J\\x1b]0;owned\\x07' + 'flood ' * 2000)",
    ),
    Cheat(
        "keeper-killed",
        "kills the process that watches it",
        "try: os.kill(os.getppid(), signal.SIGKILL)\nexcept PermissionError: pass\ntime.sleep(8)",
        FAILED,
        STOPPED,
        reason="keeper",
    ),
]

SPENDING = [
    Cheat(
        "cost-erased",
        "sets its counted steps to 0",
        "e.finetune(model, masks); e.finetune(model, masks)\ne.cost.own_steps = 0",
        SHOWN,
        SHOWN,
    ),
    Cheat(
        "negative-networks",
        "says that a step trains minus three networks",
        "e.train(model, steps=30, name='f', masks=masks, networks=-3)",
        SHOWN,
        SHOWN,
    ),
    Cheat(
        "own-loop",
        "trains in a loop of its own, by a `backward` that it imported before",
        "for _ in range(30): backward(F.cross_entropy(model(e.train_split.images.batch(slice(0, 32))), e.train_split.y[:32]))",
        SHOWN,
        SHOWN,
    ),
    Cheat(
        "dense-denied", "says that it did not use the dense model", "e.cost.uses_dense = False", SHOWN, SHOWN
    ),
    Cheat(
        "counter-replaced",
        "replaces the counters and spends hidden time",
        "torch.autograd.graph._engine_run_backward = None\nuntil = time.process_time() + 3\nwhile time.process_time() < until: pass",
        SHOWN,
        SHOWN,
    ),
]

CHEATS = (*READING, *TALKING, *PATCHING, *ENDING, *SPENDING)
