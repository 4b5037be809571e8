"""`throughtime watch`: somebody's script runs as Python runs it, and a diagnosis is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import throughtime as tt
from throughtime.cli.entry import main
from throughtime.diagnosis import read_history, taps
from throughtime.diagnosis.script import trained_models

Capture = pytest.CaptureFixture[str]

TRAIN = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.out(self.rnn(x)[0])

def train(steps=3):
    torch.manual_seed(0)
    model = Model()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = model(torch.randn(6, 2, 3)).square().mean()
        loss.backward()
        optimiser.step()
    return loss.item()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to be in, and the interpreter put back afterwards: a script leaves its own sys.argv and __main__."""
    monkeypatch.chdir(tmp_path)
    main_module, hook = sys.modules["__main__"], sys.excepthook
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    forget()
    yield tmp_path
    forget()
    sys.modules["__main__"], sys.excepthook = main_module, hook
    assert not taps._listeners and not taps._to_calls


def forget() -> None:
    """The models of another test were trained in this process too."""
    for model in trained_models():
        model.zero_grad()


def script(place: Path, text: str, name: str = "train.py", head: str = TRAIN) -> Path:
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + textwrap.dedent(text))
    return path


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the scripts run in forked processes")
Ended = tuple[int, str, str]  # the status, stdout and stderr of a process


def plain(*words: str, cwd: Path) -> Ended:
    """What Python itself does with a script."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def watched() -> Iterator[Callable[..., Ended]]:
    """What `throughtime watch` does with it, in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(Path(tt.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONSAFEPATH", None)
    command = [sys.executable, str(Path(__file__).with_name("served.py"))]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None

        def run(*words: str, cwd: Path) -> Ended:
            out, err = cwd / ".out", cwd / ".err"
            for path in (out, err):
                path.unlink(missing_ok=True)
            asked = {"words": ["watch", *words], "cwd": str(cwd), "out": str(out), "err": str(err)}
            print(json.dumps(asked), file=server.stdin, flush=True)
            return int(server.stdout.readline()), out.read_text(), err.read_text()

        yield run
        server.stdin.close()


def test_a_training_leaves_a_diagnosis_and_its_history(place: Path, capsys: Capture) -> None:
    script(place, "print(train(4))")
    assert main(["watch", "--budget", "inf", "train.py"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and float(out) > 0
    assert "throughtime: Watch of Model: 4 training steps, 3 measured" in err
    assert "rnn, layer 0 (GRU, 4 units, 6 steps): gradient horizon" in err
    assert err.endswith(
        "saved in " + str(place / "runs/watch-train") + ": diagnosis.safetensors, diagnosis.txt, history.jsonl\n"
    )
    found = tt.load_diagnosis(place / "runs/watch-train/diagnosis.safetensors")
    assert found.measured[0].cell == "GRU" and str(found) in err
    history = read_history(place / "runs/watch-train/history.jsonl")
    assert [r.step for r in history.records] == [2, 3, 4] and history.ended and history.steps == 4
    assert str(found) in (place / "runs/watch-train/diagnosis.txt").read_text()
    assert main(["watch", "train.py"]) == 0 and (place / "runs/watch-train-2/history.jsonl").exists()


SELF = """
    import inspect, os, pickle
    print(sorted(k for k in globals()), __name__, __file__, repr(__package__), __doc__)
    print(type(__loader__).__name__, *(getattr(__spec__, n, None) for n in ("name", "origin", "has_location")))
    print(sys.argv, sys.path[0], sys.modules["__main__"].__dict__ is globals())
    print(inspect.getsource(Here), pickle.loads(pickle.dumps(Here())).__class__ is Here, os.getcwd())
    import beside; print(beside.X)
"""
HERE = "import sys\n\nclass Here:\n    pass\n"


@pytest.mark.parametrize("way", ["file", "folder", "link", "module", "package"])
@needs_fork
def test_a_script_finds_itself_as_python_would_have_it(place: Path, watched: Callable[..., Ended], way: str) -> None:
    script(place, SELF, "at/it.py", HERE)
    script(place, SELF, "at/__main__.py", HERE)
    for folder in ("at", "."):
        (place / folder / "beside.py").write_text("X = __name__")
    (place / "at/__init__.py").write_text("")
    (place / "link.py").symlink_to("at/it.py")
    words = {
        "file": ["at/it.py"],
        "folder": ["at"],
        "link": ["link.py"],
        "module": ["-m", "at.it"],
        "package": ["-m", "at"],
    }
    alone = plain(*words[way], "--budget", "-x", "a b", cwd=place)
    status, out, err = watched(*words[way], "--budget", "-x", "a b", cwd=place)
    assert status == alone[0] == 0, err
    assert out == alone[1]
    assert err == (
        "\nthroughtime: nothing to diagnose: no model was trained in this process: none got a gradient from "
        "backward()\n"
    )


@pytest.mark.parametrize(
    "end",
    [
        "raise KeyError('mine')",
        "import beside; beside.fail()",
        "try:\n    1 / 0\nexcept ArithmeticError as e:\n    raise ValueError('two') from e",
        "raise SystemExit(7)",
        "sys.exit('bye')",
        "def f(:",
        "import signal, os; os.kill(os.getpid(), signal.SIGINT)",
        "sys.excepthook = lambda *a: print('mine', a[0].__name__, a[2].tb_frame.f_code.co_name); raise KeyError(1)",
        "import atexit; atexit.register(print, 'over'); assert 0",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
    ],
    ids=["raise", "raise elsewhere", "chain", "exit", "message", "syntax", "interrupt", "hook", "atexit", "thread"],
)
@needs_fork
def test_a_script_ends_as_it_would_alone(place: Path, watched: Callable[..., Ended], end: str) -> None:
    """The status, what is printed, and the traceback, line by line."""
    (place / "beside.py").write_text("def fail():\n    raise OSError(2, 'beside')\n")
    script(place, "print('begun', flush=True)\n" + end, head="import sys\n")
    alone = plain("train.py", cwd=place)
    status, out, err = watched("train.py", cwd=place)
    assert (status, out) == alone[:2]
    told = [line for line in err.splitlines() if line and not line.startswith("throughtime: ")]
    assert told == [line for line in alone[2].splitlines() if line]


def test_what_was_seen_before_a_script_failed_is_told(place: Path) -> None:
    script(place, "train()\nraise RuntimeError('mine')")
    command = [sys.executable, "-m", "throughtime", "watch", "--budget", "inf", "train.py"]
    env = {**os.environ, "PYTHONPATH": str(Path(tt.__file__).parents[1])}
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "gradient horizon" in done.stderr and done.stdout == ""
    line = len(TRAIN.splitlines()) + 2
    assert done.stderr.endswith(
        f'Traceback (most recent call last):\n  File "{place}/train.py", line {line}, in <module>\n'
        "    raise RuntimeError('mine')\nRuntimeError: mine\n"
    )
    assert tt.load_diagnosis(place / "runs/watch-train/diagnosis.safetensors").measured


LOADER = """
    import os
    from torch.utils.data import DataLoader, Dataset

    class Data(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, n):
            own = nn.GRU(3, 2)  # a worker's own business
            own(torch.ones(1, 1, 3))[0].sum().backward()
            return torch.full((6, 3), float(n)), os.getpid() != parent

    parent, model = os.getpid(), Model()
    for x, elsewhere in DataLoader(Data(), 1, num_workers=2):
        model(x.transpose(0, 1)).sum().backward()
        print(x.mean().item(), elsewhere.all().item())
    child = os.fork()
    if child == 0:
        sys.exit(5)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_fork
def test_workers_that_are_forked_off(place: Path, watched: Callable[..., Ended]) -> None:
    script(place, LOADER, head="import sys\n" + TRAIN)
    status, out, err = watched("--budget", "inf", "train.py", cwd=place)
    assert status == 0, err
    assert sorted(out.splitlines()) == sorted([*(f"{n}.0 True" for n in range(4)), "5"])
    assert "Watch of Model: 4 training steps, 3 measured" in err and err.count("Watch of") == 1
    assert len(read_history(place / "runs/watch-train/history.jsonl").records) == 3


SPAWNED = """
    class Own:
        pass

    def work(n, queue):
        queue.put((n, __name__, sys.argv, Own, "throughtime" in sys.modules))

    if __name__ == "__main__":
        from multiprocessing import get_context
        context = get_context("spawn")
        queue = context.Queue()
        process = context.Process(target=work, args=(3, queue))
        process.start()
        print(queue.get(), process.join(), process.exitcode)
"""


@needs_fork
def test_workers_that_are_spawned(place: Path, watched: Callable[..., Ended]) -> None:
    script(place, SPAWNED, head="import sys\n")
    alone = plain("train.py", "x", cwd=place)
    status, out, err = watched("train.py", "x", cwd=place)
    assert (status, out) == alone[:2] and status == 0, err


@needs_fork
def test_a_kill_leaves_the_history(place: Path, watched: Callable[..., Ended]) -> None:
    script(place, "train(4)\nimport os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    status, _, _ = watched("--budget", "inf", "train.py", cwd=place)
    found = read_history(place / "runs/watch-train/history.jsonl")
    assert status == -signal.SIGKILL and [r.step for r in found.records] == [2, 3] and not found.ended


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no.py"], "there is no script no.py"),
        (["-m", "no.such"], "there is no module no.such"),
        (["-m", "json"], "there is no module json that could be run"),
        (["empty"], "there is no script empty/__main__.py"),
        (["--budget", "-1", "train.py"], "the budget is a share of training time"),
        (["--out", "full", "train.py"], "full already holds something and is left as it is"),
        (["--out", "train.py", "train.py"], "train.py already holds something"),
    ],
)
def test_what_cannot_be_used_gives_one_line_and_status_2(
    place: Path, capsys: Capture, words: list[str], says: str
) -> None:
    script(place, "print(1)", head="")
    (place / "empty").mkdir()
    (place / "full").mkdir()
    (place / "full/x").write_text("")
    assert main(["watch", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("throughtime watch: error: ") and err.count("\n") == 1 and says in err
    assert not (place / "runs").exists() and sys.modules["__main__"].__name__ == "__main__"


def test_words_that_no_option_has(place: Path, capsys: Capture) -> None:
    script(place, "print(1)", head="")
    for words in ([], ["--fast", "train.py"], ["--budget", "much", "train.py"]):
        with pytest.raises(SystemExit) as end:
            main(["watch", *words])
        assert end.value.code == 2 and "Traceback" not in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["watch", "--help"])
    assert end.value.code == 0 and "Run a training script as it is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("print(1)", "no model was trained in this process: none got a gradient from backward()"),
        ("train(1)", "none began after the model was known"),
        ("m = nn.Linear(2, 1)\nfor _ in range(3): m(torch.ones(2)).sum().backward()", "no recurrence was seen"),
        (
            "m = torch.compile(Model(), backend='eager')\nfor _ in range(9): m(torch.ones(2, 1, 3)).sum().backward()",
            "compiled",
        ),
    ],
    ids=["no model", "one step", "no recurrence", "compiled"],
)
def test_what_cannot_be_seen_is_told(place: Path, capsys: Capture, text: str, says: str) -> None:
    script(place, text)
    assert main(["watch", "train.py"]) == 0
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err


def test_models_that_come_later_and_those_that_go(place: Path, capsys: Capture) -> None:
    script(
        place,
        """
        import weakref

        def of(model, n):
            for _ in range(n):
                y = model(torch.randn(5, 1, 3))
                (y if isinstance(y, torch.Tensor) else y[0]).sum().backward()

        first = Model()
        of(first, 4)
        gone = weakref.ref(first)
        second = nn.RNN(3, 2)
        of(second, 8)
        print(gone() is first)
        del first
        third = nn.LSTM(3, 2)
        of(third, 16)
        print(gone())
        """,
    )
    assert main(["watch", "--budget", "inf", "train.py"]) == 0
    out, err = capsys.readouterr()
    assert out == "True\nNone\n" and "Watch of RNN and LSTM" in err and "LSTM, layer 0 (LSTM, 2 units" in err
    records = read_history(place / "runs/watch-train/history.jsonl").records
    assert [r.recurrences[0].name for r in records[::9]] == ["Model.rnn"[6:], "RNN", "LSTM"]
    assert not any("size of the step" in n for r in records for n in r.notes)


def test_the_same_numbers_as_without(place: Path, capsys: Capture) -> None:
    script(place, "print(train(12))")
    for budget in ("0", "0.02", "inf"):
        assert main(["watch", "--budget", budget, "train.py"]) == 0
    (watched,) = set(capsys.readouterr().out.split())
    exec((place / "train.py").read_text(), {"__name__": "alone"})
    assert capsys.readouterr().out.split()[0] == watched


def test_another_rank_is_not_watched(place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    script(place, "print(train())")
    assert main(["watch", "train.py"]) == 0
    assert not (place / "runs").exists()


def test_a_place_that_cannot_be_written_does_not_stop_the_script(place: Path, capsys: Capture) -> None:
    (place / "runs").write_text("a file")
    script(place, "print(train(4))")
    assert main(["watch", "--budget", "inf", "--out", "runs/x", "train.py"]) == 0
    out, err = capsys.readouterr()
    assert float(out) > 0 and "Not a directory" in err and "Traceback" not in err
