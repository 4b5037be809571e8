"""The history on disk: whole lines, read back as they were, and a clear word for what cannot be read."""

import json
import math
import os

import pytest
import torch

import throughtime as tt
from tests.diagnosis.watched import Net, train
from throughtime.diagnosis import Record, Seen, read_history
from throughtime.diagnosis.history import Writer, cut
from throughtime.errors import CheckpointError
from throughtime.flow import Horizon


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "w.jsonl"


def test_what_was_written_is_read(path):
    model = Net()
    w, _ = train(model, 3, watching=tt.watch(model, math.inf, path))
    found = read_history(path)
    assert found.records == tuple(w.history) and found.ended
    assert (found.model, found.budget, found.steps, found.cost) == ("Net", math.inf, 3, w.cost)
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))


def test_what_is_no_number_comes_back(path):
    seen = Seen("rnn", "LSTM", horizon=Horizon(3, True), half_life=math.inf, lags=(0, 1), sizes=(1.0, 0.5))
    broken = Seen("rnn", "LSTM", problem="NaN, first at step 2")
    record = Record(1, 0.5, 0.1, math.inf, -math.inf, math.inf, {"w": math.inf}, {"w": 0.1}, (seen, broken), ("note",))
    writer = Writer(path, "M", 0.02)
    writer.append(record)
    writer.append(Record(2, 0.5, loss=math.nan))
    writer.close(2, math.inf, ("n",))
    found = read_history(path)
    assert found.records[0] == record and math.isnan(found.records[1].loss)
    assert found.cost == math.inf and found.notes == ("n",)
    assert str(seen) == "rnn, layer 0 (LSTM): gradient horizon at least 3 steps of 0, half-life none within"
    assert str(broken).endswith("NaN, first at step 2")


def test_it_is_there_while_training_goes_on(path):
    model, there = Net(), []
    train(model, 3, watching=tt.watch(model, math.inf, path), after=lambda n: there.append(read_history(path)))
    # A record waits for the step that follows it.
    assert [len(h.records) for h in there] == [0, 1, 2] and not any(h.ended for h in there)


@pytest.mark.parametrize("cut", [1, 7, 200])
def test_a_kill_in_the_middle_of_a_line_costs_that_line(path, cut):
    model = Net()
    train(model, 2, watching=tt.watch(model, math.inf, path))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3])[:-cut])
    found = read_history(path)
    assert len(found.records) == 1 and not found.ended


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read"),
        (b"", "no history of tt.watch"),
        (b"\xff\xfe\n", "is not text"),
        (b'{"a": 1}\n', "no history of tt.watch"),
        (b"[1]\n", "no history of tt.watch"),
        (b'{"throughtime":"watch","format":2,"budget":0.1}\n', "has format 2"),
        (b'{"throughtime":"watch","format":1,"model":"M","budget":0.1}\n{"step":1}\n', "line 2 of"),
        (b'{"throughtime":"watch","format":1,"model":"M","budget":0.1}\n3\n', "line 2 of"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, content, says):
    path = tmp_path / "w.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        read_history(path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_does_not_stop_the_training(path, monkeypatch):
    real = os.open
    monkeypatch.setattr("throughtime.diagnosis.history.os.open", lambda p, *a: real("/dev/full", os.O_WRONLY))
    model = Net()
    w, losses = train(model, 3, watching=tt.watch(model, math.inf, path))
    assert len(losses) == 3 and len(w.history) == 3
    assert any(n.endswith("could not be written: No space left on device") for n in w.notes)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_off_does_not_watch(path):
    model, threads = Net(), torch.get_num_threads()
    torch.set_num_threads(1)  # OpenMP's threads do not come along in a fork, and a child of torch's would wait for them
    with tt.watch(model, math.inf, path) as w:
        train(model, 1)
        child = os.fork()
        if child == 0:  # what it does must not reach the file
            code = 1
            try:
                train(model, 2)
                w.end()
                code = len(w.history)  # what was there before the fork
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        train(model, 1)
    torch.set_num_threads(threads)
    found = read_history(path)
    assert [r.step for r in found.records] == [1, 2] and found.ended


def test_a_history_is_cut_where_a_training_goes_on(path):
    assert cut(path, 3) == () and not path.exists()
    writer = Writer(path, "M", 0.02, goes_on=True)  # new where there is none
    for step in (1, 3, 7):
        writer.append(Record(step, 0.5, loss=math.inf, updates={"w": 0.1}))
    writer.close(9, 0.01, ("note",))
    with open(path, "a") as file:
        file.write('{"step": 8, "seco')  # a kill
    before = read_history(path).records
    assert cut(path, 6) == before[:2]
    writer = Writer(path, "M", 0.02, goes_on=True)
    writer.append(Record(4, 0.5))
    found = read_history(path)
    assert [r.step for r in found.records] == [1, 3, 4] and not found.ended and found.model == "M"
    writer.close(4, 0.0, ())
    with pytest.raises(CheckpointError, match="already there"):
        Writer(path, "M", 0.02)
