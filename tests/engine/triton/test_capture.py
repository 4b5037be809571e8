"""What a CUDA graph, other streams and other devices ask of the launches: what can be seen of it without a GPU, and,
where there is one, the same numbers."""

import sys
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from throughtime import nn
from throughtime.engine import operands
from throughtime.engine.triton import kernel, support
from throughtime.engine.triton.writer import CONSTANTS, Text
from throughtime.errors import BackendError

from ..problems import problem
from .problems import DEVICE, WHY, backend, choose, given, to_device

OutOfResources = pytest.importorskip("triton.runtime.errors", reason=WHY).OutOfResources

WITH_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="asks a GPU; there is none")
SEVERAL = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="asks two GPUs; there are not")
READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "is_pinned", "pin_memory", "masked_select", "unique")


class NoHostReads(TorchDispatchMode):
    """Raises where the host looks at a number, or moves one between devices: either stops a CUDA graph's capture."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        to = (kwargs or {}).get("device")
        moves = name == "_to_copy" and to is not None and torch.device(to).type != args[0].device.type
        assert name not in READS and not moves, f"{name} is a host read"
        return func(*args, **(kwargs or {}))


def test_the_watcher_sees_a_host_read():
    with NoHostReads(), pytest.raises(AssertionError, match="_local_scalar_dense is a host read"):
        torch.ones(3).sum().item()


@pytest.fixture
def noted(monkeypatch):
    """Kernels are noted and not run; the list holds (text, grid, arguments, cooperative)."""
    found = []

    def note(text, grid, arguments, constants, how):
        found.append((text, grid, dict(arguments), how.launch_cooperative_grid))

    monkeypatch.setattr(kernel, "launch", note)
    return found


@pytest.mark.parametrize("mode", ["together", "stepwise", None])
@pytest.mark.parametrize("name", ["lstm", "users-own", "additive-memory"])
def test_no_number_is_read_on_the_way(name, mode, monkeypatch, noted):
    if mode:
        choose(monkeypatch, mode, 2)
    monkeypatch.setattr(operands, "capturing", lambda lengths: True)
    p = to_device(problem(name, T=3, B=2, D=2, H=20, lengths=[3, 1]))
    with NoHostReads():
        out = p.unroll(backend="triton")
        torch.autograd.grad(sum(v.sum() for part in out for v in part), [p.x, *p.weights.values()], allow_unused=True)
    assert len(noted) >= 2


def test_a_length_is_checked_outside_a_capture():
    p = to_device(problem("lstm", T=3, B=2, D=2, H=4, lengths=[3, 1]))
    with NoHostReads(), pytest.raises(AssertionError, match="host read"):
        p.unroll(backend="triton")


def test_the_counters_of_a_barrier_are_set_to_zero_by_every_call(monkeypatch, noted):
    # In a CUDA graph that is a part of the graph: it is done anew by each replay.
    choose(monkeypatch, "together", 2)
    p = given("lstm", 3, 33, 2, 24)
    for _ in range(2):
        p.results(backend)
        arrivals = [a["arrivals"] for _, _, a, _ in noted]
        assert len(arrivals) == 2 and all((v == 0).all() for v in arrivals)
        assert all(cooperative for *_, cooperative in noted)
        for v in arrivals:  # as the kernels leave them
            v.fill_(99)
        noted.clear()


class Elsewhere(torch.Tensor):
    """A tensor without numbers that says it is on the second GPU."""

    @staticmethod
    def __new__(cls):
        return torch.Tensor._make_wrapper_subclass(cls, (4,), dtype=torch.float32, device="cuda:1")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} reads a tensor at a launch")


class Loaded:
    """In place of what Triton gives back where it only compiles: registers that are kept in memory, once loaded."""

    def __init__(self, spills=None, fails=None):
        self.spills, self.fails = spills, fails

    def warmup(self, *values, grid, **how):
        assert how["maxnreg"] == 255 and how["num_warps"] == 8
        return self

    def _init_handles(self):
        if self.fails is not None:
            raise self.fails
        self.n_spills = self.spills


@pytest.mark.parametrize("loaded, said", [
    (Loaded(3), 12),
    (Loaded(0), 0),
    (Loaded(fails=OutOfResources(270336, 232448, "shared memory")), sys.maxsize),
    (type("Older", (), {"warmup": lambda *a, **how: None})(), 0),
])  # fmt: skip
def test_what_a_thread_keeps_in_memory(loaded, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", Launcher().guard)
    monkeypatch.setattr(kernel, "compiled", lambda text: loaded)
    arguments, constants = {"T": 5, "x": Elsewhere()}, dict.fromkeys(CONSTANTS, 1)
    assert kernel.spilt(Text("forward", ("T", "x"), ""), arguments, constants, kernel.How(8, 1, True, 255)) == said


class Launcher:
    """In place of a compiled kernel: notes under which device it was launched, or fails."""

    def __init__(self, fails=None):
        self.fails, self.guards, self.launched = fails, [], []

    @contextmanager
    def guard(self, device):
        self.guards.append(device)
        yield
        self.guards.pop()

    def __getitem__(self, grid):
        def run(*values, **how):
            if self.fails is not None:
                raise self.fails
            self.launched.append((grid, list(self.guards), values, how))

        return run


def launch(monkeypatch, launcher, cooperative=False):
    monkeypatch.setattr(torch.cuda, "device", launcher.guard)
    monkeypatch.setattr(kernel, "compiled", lambda text: launcher)
    v = Elsewhere()
    text = Text("forward", ("T", "x"), "")
    kernel.launch(text, (3, 2), {"T": 5, "x": v}, dict.fromkeys(CONSTANTS, 1), kernel.How(8, 1, cooperative))
    return v


def test_a_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch):
    # Triton takes the current stream of the current device: the guard makes it that of the tensors.
    launcher = Launcher()
    v = launch(monkeypatch, launcher, cooperative=True)
    ((grid, guards, values, how),) = launcher.launched
    assert grid == (3, 2) and guards == [torch.device("cuda:1")] and values[0] == 5 and values[1] is v
    assert how["launch_cooperative_grid"] and how["num_warps"] == 8 and not launcher.guards


def test_a_device_without_room_is_told(monkeypatch):
    for err in (
        OutOfResources(270336, 232448, "shared memory"),
        RuntimeError("Triton Error [CUDA]: too many blocks in cooperative launch"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ):
        with pytest.raises(BackendError, match=r'not room enough for the kernel forward on 3 x 2 .*backend="torch"'):
            launch(monkeypatch, Launcher(err))
    missing = RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")
    with pytest.raises(BackendError, match=r'find C compiler.*install gcc or clang, or choose backend="torch"'):
        launch(monkeypatch, Launcher(missing))
    for err in (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), ValueError("other")):
        with pytest.raises(type(err), match=str(err).split()[-1]):
            launch(monkeypatch, Launcher(err))


@pytest.mark.parametrize(
    "where, word",
    [
        ({"hip": "6.2"}, "this torch is built for AMD's"),
        ({"there": False}, "finds no NVIDIA GPU"),
        ({"capability": (7, 5)}, r"compute capability 8\.0 .* Some GPU has less"),
    ],
)
def test_hardware_that_will_not_do_is_told_with_another_backend(where, word, monkeypatch):
    from throughtime.engine.backends import _choose

    monkeypatch.setattr(torch.version, "hip", where.get("hip"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: where.get("there", True))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda k: where.get("capability", (9, 0)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda k: "Some GPU")
    support._hardware.cache_clear()
    try:
        with pytest.raises(BackendError, match=rf"'triton' cannot run this: .*{word}.*; choose backend=\"auto\""):
            _choose.__wrapped__("triton", None, "cuda", torch.float32, torch.float32)
        backend, why = _choose.__wrapped__("auto", None, "cuda", torch.float32, torch.float32)
        assert backend == "torch" and why.startswith("not triton: ")
    finally:
        support._hardware.cache_clear()


# --- where there is a GPU ---


def step_of(layer, x, lengths=None):
    """Output and gradients of one training step."""
    y = layer(x)[0]
    return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


@WITH_GPU
@pytest.mark.parametrize("H", [24, 300])  # one program has all units; several meet at a barrier
def test_a_graph_replays_a_training_step(H):
    layer = nn.LSTM(8, H, backend="triton", device=DEVICE)
    x = torch.randn(20, 5, 8, device=DEVICE, requires_grad=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiled before it is captured
        step_of(layer, x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step_of(layer, x)
    for _ in range(3):  # counters of a barrier must be new in each replay
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        for a, b in zip(found, step_of(layer, x), strict=True):
            assert torch.equal(a, b)


@WITH_GPU
def test_another_stream_gives_the_same():
    layer = nn.GRU(8, 300, backend="triton", device=DEVICE)
    x = torch.randn(20, 5, 8, device=DEVICE, requires_grad=True)
    wanted = step_of(layer, x)
    streams = [torch.cuda.Stream() for _ in range(2)]
    found = []
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found.append(step_of(layer, x))
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for each in found for a, b in zip(each, wanted, strict=True))


@SEVERAL
def test_the_second_device_gives_the_same():
    layer = nn.LSTM(8, 40, backend="triton", device="cuda:0")
    x = torch.randn(6, 5, 8, device="cuda:0", requires_grad=True)
    wanted = step_of(layer, x)
    there = step_of(layer.to("cuda:1"), x.detach().to("cuda:1").requires_grad_())
    for a, b in zip(there, wanted, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu())
