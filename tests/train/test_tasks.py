"""The generated tasks: their published form, what decides the answer, and the loss of a guess without memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from throughtime.errors import ConfigError, ShapeError
from throughtime.train import tasks
from throughtime.train.tasks import Sample


def drawn(task: tasks.Task, batch: int = 300, seed: int = 0) -> Sample:
    return task.sample(batch, torch.Generator().manual_seed(seed))


def logits_of(p: Tensor) -> Tensor:
    return p.clamp_min(1e-30).log()


def perfect(task: tasks.Task, sample: Sample) -> Tensor:
    """The outputs of a model that knows every answer."""
    if task.kind == "value":
        return sample.targets.unsqueeze(-1).clone()
    if sample.allowed is not None:
        return logits_of(sample.allowed.float())
    return 50 * torch.nn.functional.one_hot(sample.targets, task.outputs).float()


@pytest.mark.parametrize("name", tasks.NAMES)
def test_every_task_keeps_the_one_form(name: str) -> None:
    task = tasks.by_name(name, 30)
    sample = drawn(task)
    T, B = sample.inputs.shape[:2]
    assert sample.inputs.shape[1:] == (300, task.inputs)
    assert sample.targets.shape == sample.scored.shape == (T, B)
    assert sample.inputs.dtype == torch.get_default_dtype()
    assert not bool(sample.targets[~sample.scored].any())
    assert bool(sample.scored.any(0).all())  # every sequence is asked something
    assert task.citation and type(task).__doc__ and task.floor < task.baseline
    again, other = drawn(task), drawn(task, seed=1)
    assert torch.equal(sample.inputs, again.inputs) and torch.equal(sample.targets, again.targets)
    assert other.inputs.shape != sample.inputs.shape or not torch.equal(other.inputs, sample.inputs)


@pytest.mark.parametrize("name", tasks.NAMES)
def test_who_knows_every_answer_has_solved_it(name: str) -> None:
    task = tasks.by_name(name, 20)
    sample = drawn(task)
    outputs = perfect(task, sample)
    assert task.solved(outputs, sample) and task.accuracy(outputs, sample) == 1
    wrong = outputs.clone()
    wrong[:, 0] = -wrong[:, 0] - 1  # the largest output is now the smallest; a value is off by more than 1
    assert not bool(task.right(wrong, sample)[0]) and bool(task.right(wrong, sample)[1:].all())


@pytest.mark.parametrize("name", tasks.NAMES)
def test_steps_that_are_not_scored_do_not_count(name: str) -> None:
    task = tasks.by_name(name, 20)
    sample = drawn(task, 50)
    outputs = torch.randn(*sample.targets.shape, task.outputs, generator=torch.Generator().manual_seed(2))
    changed = torch.where(sample.scored.unsqueeze(-1), outputs, torch.full_like(outputs, 1e6))
    assert torch.equal(task.loss(outputs, sample), task.loss(changed, sample))
    assert torch.equal(task.right(outputs, sample), task.right(changed, sample))


def test_copy_is_the_published_one() -> None:
    task = tasks.Copy(lag=7, word=3, alphabet=4)
    sample = drawn(task, 64)
    numbers = sample.inputs.argmax(-1)
    assert numbers.shape == (7 + 2 * 3, 64) and torch.equal(sample.inputs.sum(-1), torch.ones(13, 64))
    assert bool((numbers[:3] < 4).all())
    assert bool((numbers[3:9] == 4).all())  # T - 1 blanks
    assert bool((numbers[9] == 5).all())  # the delimiter
    assert bool((numbers[10:] == 4).all())
    assert bool((sample.targets[:10] == 4).all())
    assert task.lags == (10, 10)
    assert torch.equal(sample.targets[10:], numbers[:3])  # each symbol is asked 10 = T + S steps after it came
    assert tasks.Copy(lag=100).baseline == pytest.approx(10 * math.log(8) / 120)


def test_copy_without_memory() -> None:
    """Blank where it is blank, and a guess in the last S steps: exactly the baseline."""
    task = tasks.Copy(lag=7, word=3, alphabet=4)
    sample = drawn(task, 64)
    p = torch.zeros(13, 64, 5, dtype=torch.float64)
    p[:10, :, 4] = 1
    p[10:, :, :4] = 1 / 4
    assert float(task.loss(logits_of(p), sample)) == pytest.approx(task.baseline, rel=1e-12)
    counts = torch.bincount(drawn(task, 4000).targets[10:].flatten(), minlength=4)[:4]
    assert bool(((counts / 12000 - 1 / 4).abs() < 5 * math.sqrt(3 / 16 / 12000)).all())  # no symbol is a better guess


def test_recall_is_the_first_symbol_and_noise_tells_nothing() -> None:
    task = tasks.DelayedRecall(lag=9, symbols=3, noise=2)
    sample = drawn(task, 3000)
    numbers = sample.inputs.argmax(-1)
    assert numbers.shape == (10, 3000) and task.lags == (9, 9)
    assert torch.equal(sample.targets[9], numbers[0])
    assert bool((numbers[1:] >= 3).all()) and sample.scored.sum(0).unique().tolist() == [1]
    assert float(task.loss(torch.zeros(10, 3000, 3), sample)) == pytest.approx(math.log(3), rel=1e-6)
    assert task.baseline == math.log(3)
    for seen in (3, 4):  # whatever the last input is, the three keys are equally likely
        keys = torch.bincount(sample.targets[9][numbers[9] == seen], minlength=3).double()
        assert bool(((keys / keys.sum() - 1 / 3).abs() < 5 * math.sqrt(2 / 9 / float(keys.sum()))).all())


@pytest.mark.parametrize("lag", [2, 3, 10, 11])
@pytest.mark.parametrize("kind", [tasks.Adding, tasks.Multiplication])
def test_two_marked_numbers(kind: type[tasks.Task], lag: int) -> None:
    task = kind(lag)  # type: ignore[call-arg]
    sample = drawn(task, 2000)
    numbers, marks = sample.inputs.unbind(-1)
    assert numbers.shape == (lag, 2000) and bool(((numbers >= 0) & (numbers < 1)).all())
    half = lag // 2
    assert marks[:half].sum(0).unique().tolist() == [1] and marks[half:].sum(0).unique().tolist() == [1]
    assert bool((marks.sum(1) > 0).all())  # each step is marked now and then
    two = numbers.t()[marks.t() == 1].view(2000, 2)
    wanted = two.sum(1) if kind is tasks.Adding else two.prod(1)
    assert torch.allclose(sample.targets[-1], wanted, rtol=0, atol=1e-6)
    assert bool(sample.scored[-1].all()) and not bool(sample.scored[:-1].any())


@pytest.mark.parametrize(("kind", "guess"), [(tasks.Adding, 1.0), (tasks.Multiplication, 0.25)])
def test_the_best_constant(kind: type[tasks.Task], guess: float) -> None:
    """The mean squared error of the mean is the variance: 1/6 and 7/144; any other constant is worse."""
    task = kind(4)  # type: ignore[call-arg]
    sample = drawn(task, 200_000)
    targets = sample.targets[-1].double()
    squares = (targets - guess).square()
    error = float(squares.std()) / math.sqrt(len(squares))
    loss = float(task.loss(torch.full((4, 200_000, 1), guess), sample))
    assert loss == pytest.approx(float(squares.mean()), rel=1e-5)
    assert abs(loss - task.baseline) < 4 * error < 0.002
    assert float(targets.mean()) == pytest.approx(guess, abs=4 * float(targets.std()) / math.sqrt(200_000))


@pytest.mark.parametrize("symbols", [2, 3])
def test_temporal_order(symbols: int) -> None:
    T = 30
    task = tasks.TemporalOrder(T, symbols)
    sample = drawn(task, 4000)
    numbers = sample.inputs.argmax(-1)
    rare = numbers < 2
    assert rare.sum(0).unique().tolist() == [symbols]
    places = rare.t().nonzero()[:, 1].view(4000, symbols)
    bounds = {2: [(3, 6), (12, 15)], 3: [(3, 6), (9, 12), (18, 21)]}[symbols]
    for column, (low, high) in enumerate(bounds):
        assert places[:, column].unique().tolist() == list(range(low, high + 1))
    letters = numbers.t()[rare.t()].view(4000, symbols)
    digits = torch.tensor([2**k for k in reversed(range(symbols))])
    assert torch.equal(sample.targets[-1], (letters * digits).sum(1))
    assert task.lags == (T - 1 - bounds[-1][1], T - 1 - bounds[0][0])
    assert task.baseline == pytest.approx(math.log(2**symbols))
    assert float(task.loss(torch.zeros(T, 4000, 2**symbols), sample)) == pytest.approx(task.baseline, rel=1e-5)
    counts = torch.bincount(sample.targets[-1]).double() / 4000
    assert bool(((counts - 2.0**-symbols).abs() < 5 * math.sqrt(2.0**-symbols / 4000)).all())


def strings_of(sample: Sample) -> list[tuple[str, str]]:
    names = "BTPSXVE"
    assert sample.lengths is not None
    texts = []
    for b, n in enumerate(sample.lengths.tolist()):
        shown = "".join(names[i] for i in sample.inputs[:n, b].argmax(-1))
        texts.append((shown, "".join(names[i] for i in sample.targets[:n, b])))
    return texts


def test_reber_strings_follow_the_grammar() -> None:
    """Against the grammar written as a regular expression: B(TS*X|PT*V with its loops)E, twice wrapped."""
    # From state 2: T loops, V leads to 4; 4 goes to 5 by V, or by P to 3; 3 goes to 5 by S, or back to 2 by X.
    import re

    two = "(?:T*V(?:PX))*T*V(?:V|PS)"
    inner = f"B(?:TS*X(?:S|X{two})|P{two})E"
    for strings in (1, 3):
        pattern = re.compile(f"B([TP])(?:{inner}){{{strings}}}\\1E")
        texts = strings_of(drawn(tasks.EmbeddedReber(strings), 200))
        for shown, wanted in texts:
            assert shown[1:] + wanted[-1] == wanted
            assert pattern.fullmatch(shown + "E"), shown
        assert len(set(texts)) > 60


def test_reber_padding_is_empty_and_what_is_allowed_is_the_grammar() -> None:
    sample = drawn(tasks.EmbeddedReber(), 400)
    assert sample.lengths is not None and sample.allowed is not None
    behind = torch.arange(len(sample.inputs)).unsqueeze(1) >= sample.lengths
    assert torch.equal(behind, ~sample.scored) and not bool(sample.inputs[behind].any())
    assert bool(sample.allowed.gather(-1, sample.targets.unsqueeze(-1)).squeeze(-1)[sample.scored].all())
    follows: dict[str, set[str]] = {}
    for b, (shown, wanted) in enumerate(strings_of(sample)):
        for t in range(len(shown)):
            prefix = shown[: t + 1]
            now = {"BTPSXVE"[i] for i in sample.allowed[t, b].nonzero().flatten().tolist()}
            assert follows.setdefault(prefix, now) == now and wanted[t] in now
    assert follows["B"] == {"T", "P"} and follows["BT"] == {"B"} and follows["BTBT"] == {"S", "X"}
    assert follows["BTBTXSE"] == {"T"} and follows["BPBTXSE"] == {"P"}
    assert min(sample.lengths.tolist()) == 8  # B T BTXSE T (E is only a target)


@pytest.mark.parametrize("strings", [1, 2])
def test_reber_floor_and_baseline_are_what_an_ideal_model_loses(strings: int) -> None:
    task = tasks.EmbeddedReber(strings)
    sample = drawn(task, 20_000)
    assert sample.allowed is not None and sample.lengths is not None
    knows = sample.allowed / sample.allowed.sum(-1, keepdim=True)
    forgot = knows.clone()
    last_but_one = sample.lengths - 2, torch.arange(20_000)  # there the repeated symbol is asked for
    assert set(sample.targets[last_but_one].tolist()) == {1, 2}
    forgot[last_but_one] = torch.tensor([0, 0.5, 0.5, 0, 0, 0, 0])
    mean, spread = float(sample.lengths.double().mean()), float(sample.lengths.double().std())
    assert mean == pytest.approx(3 + 8 * strings, abs=4 * spread / math.sqrt(20_000))
    assert float(task.loss(logits_of(knows), sample)) == pytest.approx(task.floor, rel=0.005)
    assert float(task.loss(logits_of(forgot), sample)) == pytest.approx(task.baseline, rel=0.005)
    assert task.baseline - task.floor == pytest.approx(math.log(2) / (3 + 8 * strings))
    assert not task.solved(logits_of(forgot), sample)
    # From the second symbol to the step that asks for it again: the string's inputs without B and the symbol itself.
    assert int(sample.lengths.min()) - 2 - 1 >= task.lags[0]


def test_reber_over_a_lag() -> None:
    assert tasks.by_name("reber", 1) == tasks.EmbeddedReber(1)
    assert tasks.by_name("reber", 41) == tasks.EmbeddedReber(5)


def test_moving_a_sample_keeps_all_of_it() -> None:
    sample = drawn(tasks.EmbeddedReber(), 3).to("meta")
    assert sample.inputs.is_meta and sample.targets.is_meta and sample.scored.is_meta
    assert sample.allowed is not None and sample.allowed.is_meta
    assert sample.lengths is not None and not sample.lengths.is_meta


def test_a_wrong_name_a_wrong_lag_a_wrong_shape() -> None:
    with pytest.raises(ConfigError, match=r"there is no task 'addin' \(did you mean adding\?\); the tasks are copy,"):
        tasks.by_name("addin", 5)
    with pytest.raises(ConfigError, match="lag of the task copy must be a whole number of at least 1; came 0"):
        tasks.Copy(lag=0)
    with pytest.raises(ConfigError, match="at least 10; came 9"):
        tasks.TemporalOrder(9)
    with pytest.raises(ConfigError, match="must be 2 or 3; came 4"):
        tasks.TemporalOrder(20, symbols=4)
    with pytest.raises(ConfigError, match="at least 1; came True"):
        tasks.by_name("reber", True)
    task = tasks.Adding(5)
    with pytest.raises(ShapeError, match=r"must be \[T, B, 1\] = \[5, 2, 1\]; came \[5, 2\]"):
        task.loss(torch.zeros(5, 2), task.sample(2))
