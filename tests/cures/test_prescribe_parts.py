"""The parts of prescribe: remedies and their code, the optimiser's recipe, one trial by hand, the rule of judgement."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

from throughtime import cures
from throughtime import nn as ttnn
from throughtime.cures.prescribe_judge import choose_winner, judge, student_quantile
from throughtime.cures.prescribe_pool import runner
from throughtime.cures.prescribe_recipe import recipe
from throughtime.cures.prescribe_result import Outcome
from throughtime.cures.prescribe_trial import Job, Trial, run_trial
from throughtime.diagnosis.batches import read_batches
from throughtime.errors import ConfigError


class Last(nn.Module):
    """A label from the last step."""

    def __init__(self, rnn, classes=2):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(rnn.hidden_size, classes)

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])


def same(a, b):
    a, b = dict(a.state_dict()), dict(b.state_dict())
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- remedies ---------------------------------------------------------------------------------------------------------

REMEDIES = [
    (cures.SwapCell("gru"), nn.RNN),
    (cures.SwapCell("lstm", "rnn"), nn.RNN),
    (cures.Chrono(30), nn.LSTM),
    (cures.GateBias(2.0, at="rnn"), nn.GRU),
    (cures.GateBias(0.0, "i"), nn.LSTM),
    (cures.Orthogonal(), nn.RNN),
    (cures.SpectralRadius(0.9, "rnn"), nn.RNN),
    (cures.LearningRate(0.1), nn.RNN),
    (cures.Clip(0.5), nn.RNN),
]


@pytest.mark.parametrize("remedy, kind", REMEDIES, ids=lambda v: getattr(v, "name", ""))
def test_the_code_to_paste_does_what_was_tried(remedy, kind):
    candidate = cures.Candidate((remedy,))
    tried, model = Last(kind(3, 5)), Last(kind(3, 5))
    model.load_state_dict(tried.state_dict())
    training = cures.Training(tried)
    torch.manual_seed(3)
    candidate.apply(training)
    names = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.5)}
    torch.manual_seed(3)
    exec(candidate.code(), names)
    assert same(tried, model) if not candidate.remedies[0].loop() else training.clip.max_norm == names["clip"].max_norm
    assert names["optimizer"].param_groups[0]["lr"] == 0.5 * training.rate
    assert ("make the optimizer anew" in candidate.code()) == remedy.renews


def test_a_module_whose_name_is_no_python_name():
    model = nn.Sequential(nn.LSTM(2, 3))
    candidate = cures.Candidate((cures.GateBias(1.0, at="0"), cures.LearningRate(2.0)))
    names = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=1.0)}
    exec(candidate.code(), names)
    assert (model[0].bias_ih_l0[3:6] == 1).all() and names["optimizer"].param_groups[0]["lr"] == 2.0


def test_the_code_of_omega_in_a_loop():
    import throughtime

    code = cures.Candidate((cures.OmegaPenalty(3.0),)).code()
    assert code.startswith("import throughtime\nfrom throughtime import cures")
    rnn = nn.RNN(2, 4)
    x, T = torch.randn(6, 3, 2), 6
    with throughtime.capture(rnn) as captured:
        rnn(x)[0].sum().backward()
    before = rnn.weight_hh_l0.grad.clone()
    exec(code, {"model": rnn, "captured": captured, "T": T})
    want = torch.autograd.grad(3 / 6 * cures.omega_captured(captured, rnn), rnn.weight_hh_l0)[0]
    torch.testing.assert_close(rnn.weight_hh_l0.grad - before, want.float())


# --- the optimiser's recipe -------------------------------------------------------------------------------------------


def trained(make, steps=3):
    model = Last(nn.RNN(2, 4))
    optimiser = make(model)
    for _ in range(steps):
        optimiser.zero_grad()
        model(torch.randn(5, 3, 2)).square().sum().backward()
        optimiser.step()
    return model, optimiser


MAKERS = [
    lambda m: torch.optim.Adam([{"params": m.rnn.parameters(), "lr": 0.1}, {"params": m.head.parameters()}], lr=0.01),
    lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    lambda m: torch.optim.AdamW(m.rnn.parameters(), lr=0.1),
]


@pytest.mark.parametrize("make", MAKERS)
def test_on_a_copy_it_takes_the_very_step_of_the_users_own(make):
    model, optimiser = trained(make)
    other = copy.deepcopy(model)
    made = recipe(model, optimiser).build(other)
    x = torch.randn(5, 3, 2)
    for m, o in ((model, optimiser), (other, made)):
        o.zero_grad()
        m(x).square().sum().backward()
        o.step()
    assert same(model, other)


def test_a_factor_and_new_parameters():
    model, optimiser = trained(MAKERS[0])
    other = copy.deepcopy(model)
    cures.swap_cell(other, "lstm")
    made = recipe(model, optimiser).build(other, 0.1)
    rates = {id(p): g["lr"] for g in made.param_groups for p in g["params"]}
    assert rates[id(other.rnn.weight_hh_l0)] == pytest.approx(0.01)
    assert rates[id(other.head.weight)] == pytest.approx(0.001)
    assert other.rnn.weight_hh_l0 not in made.state and "exp_avg" in made.state[other.head.weight]
    assert optimiser.param_groups[0]["lr"] == 0.1  # the user's own is as it was


def test_what_the_user_left_out_stays_out():
    model, optimiser = trained(MAKERS[2])
    made = recipe(model, optimiser).build(copy.deepcopy(model))
    assert sum(len(g["params"]) for g in made.param_groups) == 4


def test_a_rate_or_a_maker():
    model = Last(nn.RNN(2, 4))
    assert isinstance(recipe(model, 0.5).build(model), torch.optim.SGD)
    assert isinstance(recipe(model, torch.optim.Adam).build(model), torch.optim.Adam)


@pytest.mark.parametrize(
    "optimiser, message",
    [
        ("adam", "came str"),
        (-1.0, "must be above 0"),
        (lambda groups: 3, "returned int"),
        (torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0), "not this model's"),
        (torch.optim.LBFGS, "calls the loss itself"),
    ],
)
def test_refused_optimisers(optimiser, message):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(1, 1)

    if optimiser is torch.optim.LBFGS:
        model = Own()
        optimiser = torch.optim.LBFGS(model.parameters())
    else:
        model = Own()
    with pytest.raises(ConfigError, match=message):
        recipe(model, optimiser)


# --- one trial --------------------------------------------------------------------------------------------------------


def job(model, optimiser=0.1, n=6, steps=9, **options):
    data = [(torch.randn(7, 4, 3), torch.randint(2, (4,))) for _ in range(n)]
    found, of = read_batches(data, nn.CrossEntropyLoss(), n)
    return Job(model, recipe(model, optimiser), of, tuple(found[:-2]), tuple(found[-2:]), steps, **options)


def test_a_trial_without_remedies_is_the_loop_by_hand():
    model = Last(nn.LSTM(3, 5))
    j = job(model, torch.optim.Adam(model.parameters(), lr=0.02), clip=0.3)
    trial = run_trial(j, cures.Candidate(()), 4)
    by_hand = copy.deepcopy(model)
    optimiser = torch.optim.Adam(by_hand.parameters(), lr=0.02)
    order, losses = torch.Generator().manual_seed(4), []
    rounds = [torch.randperm(4, generator=order).tolist() for _ in range(3)]
    for i in [i for one in rounds for i in one][:9]:
        loss = nn.functional.cross_entropy(by_hand(j.train[i].args[0]), j.train[i].targets)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.3)
        optimiser.step()
        losses.append(loss.item())
    assert trial.losses == tuple(losses)

    def held(m):
        with torch.no_grad():
            return sum(nn.functional.cross_entropy(m(b.args[0]), b.targets).item() for b in j.held) / 2

    assert (trial.start, trial.end) == (held(model), held(by_hand))
    assert trial.broken is None and trial.held and len(trial.norms) == 9
    assert trial == replace(run_trial(j, cures.Candidate(()), 4), seconds=trial.seconds)  # and again the same


def test_the_users_model_and_random_numbers_are_as_they_were():
    model = Last(ttnn.GRU(3, 5))
    before, j = copy.deepcopy(model.state_dict()), job(model)
    torch.manual_seed(7)
    want = torch.rand(1)
    torch.manual_seed(7)
    run_trial(j, cures.Candidate((cures.Orthogonal(), cures.SwapCell("lstm"))), 0)
    assert torch.equal(torch.rand(1), want)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_training_that_breaks_ends_there():
    model = Last(nn.RNN(3, 5, nonlinearity="relu"))
    trial = run_trial(job(model, 1e12, steps=50), cures.Candidate(()), 0)
    assert trial.broken is not None and trial.broken < 49 and not trial.held and trial.end == math.inf
    assert len(trial.losses) == trial.broken + 1


def test_a_penalty_is_part_of_the_step():
    model = Last(nn.RNN(3, 5))
    plain, with_omega = (
        run_trial(job_of, c, 0)
        for job_of in [job(model, steps=4)]
        for c in (cures.Candidate(()), cures.Candidate((cures.OmegaPenalty(2.0),)))
    )
    assert not with_omega.failed and plain.losses[0] == with_omega.losses[0] and plain.end != with_omega.end


def test_a_remedy_that_cannot_be_applied_is_told_and_the_users_error_passes():
    j = job(Last(nn.RNN(3, 5)))
    trial = run_trial(j, cures.Candidate((cures.Chrono(10),)), 0)
    assert "has no gates that chrono" in trial.failed and not trial.held

    def broken(out, y):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_trial(replace(j, of=broken), cures.Candidate(()), 0)


def test_what_cannot_be_sent_to_another_process_is_said():
    from concurrent.futures import ProcessPoolExecutor

    j = replace(job(Last(nn.RNN(3, 5))), of=lambda out, batch: out.sum())
    with ProcessPoolExecutor(1) as pool, runner(j, pool) as run, pytest.raises(ConfigError, match="not a lambda"):
        run([(cures.Candidate(()), 0)])
    with pytest.raises(ConfigError, match=r"must have submit\(\)"), runner(j, "threads"):
        pass


def test_processes_of_our_own_have_the_numbers_of_a_thread():
    """A loss that no pickle could carry, and a parent whose threads have been at work."""
    torch.randn(400, 400).mm(torch.randn(400, 400))
    j = replace(job(Last(ttnn.LSTM(3, 5))), of=lambda out, batch: nn.functional.cross_entropy(out, batch.targets))
    wanted = [(cures.Candidate(r), s) for r in ((), (cures.Chrono(9),)) for s in (0, 1)]
    with runner(j, None) as run:
        ours = run(wanted)
    with ThreadPoolExecutor(2) as pool, runner(j, pool) as run:
        threads = run(wanted)
    assert [replace(t, seconds=0.0) for t in ours] == [replace(t, seconds=0.0) for t in threads]


# --- judgement --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "v, alpha, t", [(1, 0.05, 12.7062), (2, 0.05, 4.3027), (4, 0.05, 2.7764), (4, 0.01, 4.6041), (9, 0.001, 4.7809)]
)
def test_students_quantiles_are_those_of_the_tables(v, alpha, t):
    assert student_quantile(alpha, v) == pytest.approx(t, rel=1e-4)


def outcome(ends, start=1.0, remedies=(), broken=(), losses=(1.0,)):
    trials = tuple(
        Trial(
            "", s, start, math.inf if s in broken else e, losses=losses, broken=3 if s in broken else None, seconds=1.0
        )
        for s, e in enumerate(ends)
    )
    return Outcome(cures.Candidate(remedies), trials)


def helps(candidate, nothing, of=1):
    return judge(candidate, nothing, of).helps


def test_what_helps_is_more_than_chance():
    nothing = outcome([0.80, 0.90, 0.85, 0.88, 0.83])
    better = outcome([0.70, 0.79, 0.75, 0.77, 0.73])
    found = judge(better, nothing, 1)
    logs = [
        math.log(b / a) for a, b in zip([0.80, 0.90, 0.85, 0.88, 0.83], [0.70, 0.79, 0.75, 0.77, 0.73], strict=True)
    ]
    m = sum(logs) / 5
    half = 2.7764 * math.sqrt(sum((v - m) ** 2 for v in logs) / 4 / 5)
    assert found.helps and found.factor
    assert found.against == pytest.approx(math.exp(m))
    assert found.against_interval == pytest.approx((math.exp(m - half), math.exp(m + half)), rel=1e-4)
    assert not helps(outcome([0.5, 0.95, 0.6, 0.99, 0.97]), nothing)  # lower on average, within chance
    noisy = outcome([0.70, 0.86, 0.76, 0.80, 0.74])
    assert helps(noisy, nothing) and not helps(noisy, nothing, 2000)  # more candidates, more chances
    assert not helps(outcome([0.799, 0.899, 0.849, 0.879, 0.829]), nothing)  # sure, but not worth a change
    assert not helps(nothing, nothing)


def test_a_loss_as_good_as_zero_is_not_improved_upon():
    assert not helps(outcome([1e-6] * 5), outcome([1e-3, 2e-3, 1e-3, 3e-3, 1e-3]))


def test_losses_that_are_not_above_zero_are_compared_by_difference():
    nothing = outcome([-1.0, -1.1, -0.9, -1.0, -1.05], start=2.0)
    found = judge(outcome([-2.0, -2.2, -1.9, -2.0, -2.1], start=2.0), nothing, 1)
    assert found.helps and not found.factor and found.against == pytest.approx(-1.03)


def test_where_doing_nothing_does_not_hold():
    broke = outcome([0.5, 0.6, 0.5], broken=(0, 2))
    assert helps(outcome([0.7, 0.58, 0.6]), broke)  # comes through, and is not worse where both do
    assert not helps(outcome([0.7, 0.7, 0.6]), broke)
    assert not helps(outcome([0.4, 0.4, 0.4], broken=(1,)), broke)
    assert not helps(outcome([1.2, 0.4, 0.4]), broke)  # its own loss rose
    leapt = outcome([0.9, 0.95, 0.2], losses=(1.0, 5.0))
    assert not helps(outcome([0.3, 0.9, 0.19], losses=(1.0, 5.0)), leapt)  # leaps as well
    assert helps(outcome([0.3, 0.9, 0.19]), leapt)


def test_the_winner_is_the_simplest_of_those_as_good_as_the_best():
    nothing = outcome([1.0] * 5)
    found = [
        replace(outcome([e] * 5), candidate=cures.Candidate((cures.LearningRate(k),)), helps=h)
        for k, e, h in ((1.0, 0.02, False), (2.0, 0.5, True), (3.0, 0.05, True), (4.0, 0.02, True))
    ]
    assert choose_winner(found, nothing) is found[2]
    assert choose_winner(found[:1], nothing) is None
