"""The guard in a distributed training: what one process finds, all act upon, and all stay the same."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import throughtime

STEPS = 30
SCRIPT = """
import sys, math, logging, torch
from torch import distributed, nn
import throughtime as tt
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
logging.getLogger("throughtime.guard").setLevel("CRITICAL")
distributed.init_process_group("gloo", store=distributed.FileStore(store, 2), rank=rank, world_size=2)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(2, 3), nn.Linear(3, 1)
    def forward(self, x):
        return self.head(self.gru(x)[0])

torch.manual_seed(0)
model = nn.parallel.DistributedDataParallel(Net())
opt = torch.optim.Adam(model.parameters(), 0.01)
guard = tt.Guard(model, opt, share=0.5, calm=3)
torch.manual_seed(rank)
weights = []
for i in range(%d):
    x = torch.randn(5, 4, 2)
    if i == 4 and rank == 1:
        x[2, 3, 1] = math.nan
    with guard.step() as step:
        opt.zero_grad()
        loss = step.backward(model(x).square().mean())
        if i == 8 and rank == 0:
            step.check(loss.detach() * math.inf)
        opt.step()
        if i == 20 and rank == 1:
            with torch.no_grad():
                model.module.head.bias.fill_(math.nan)
    weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
told = [(i.iteration, i.fault, i.action, i.back_to, i.record.cause, i.record.module, i.record.t, i.record.sample)
        for i in guard.incidents]
torch.save((weights, told, guard.every, guard.factor), out)
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")
def test_two_processes_act_as_one(tmp_path):
    outs = [tmp_path / f"{rank}.pt" for rank in range(2)]
    source = str(Path(throughtime.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT % STEPS, str(rank), str(tmp_path / "store"), str(out)],
            env=env, stderr=subprocess.PIPE, text=True,
        )
        for rank, out in enumerate(outs)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], errors
    (weights, told, every, factor), (others, told_there, every_there, factor_there) = (
        torch.load(out, weights_only=True) for out in outs
    )
    assert len(weights) == STEPS and all(torch.equal(v, w) for v, w in zip(weights, others, strict=True))
    assert all(bool(v.isfinite().all()) for v in weights)
    assert (every, factor) == (every_there, factor_there)
    assert [(i, action, back) for i, _, action, back, *_ in told] == [
        (i, action, back) for i, _, action, back, *_ in told_there
    ]
    assert [i for i, *_ in told] == [4, 8, 20]
    assert told_there[0][4:] == ("bad input", "module.gru", 2, 3)
    assert told[1][1] == f"the loss is {math.inf}"
    assert told_there[1][1] == told[2][1] == "another process of this training found a bad number"
    assert (told_there[2][2], told_there[2][4], told_there[2][5]) == ("back", "bad parameter", "module.head")
