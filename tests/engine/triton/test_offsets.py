"""Tables of more than 2^32 numbers: the last rows of a batch so large that only their own pages are ever in memory."""

from __future__ import annotations

import mmap

import pytest
import torch

from throughtime.engine.triton import call, kernel
from throughtime.engine.triton.backward_text import backward_texts
from throughtime.engine.triton.forward_text import forward_texts
from throughtime.engine.triton.scan_text import scan_text
from throughtime.engine.triton.scannable import scannable

from .problems import DEVICE, given

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="memory that is only promised is the operating system's")

T, H, ROWS = 2, 64, 16
B = 2**25 + ROWS  # T * B * H > 2^32


def promised(*shape: int) -> torch.Tensor:
    """A tensor of float32 whose pages come into being, full of zeros, when they are touched."""
    size = 4 * torch.Size(shape).numel()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=torch.float32).view(shape)
    except OSError as err:
        pytest.skip(f"the system promises no {size / 2**30:.0f} GiB that nobody uses: {err}")


def last_rows(name: str, back: bool) -> None:
    """Runs one pass over the last 16 rows of B, and over 16 rows alone: the numbers must be the same."""
    p = given(name, T, ROWS, 1, H, dtype=torch.float32)
    sizes = call.Sizes(T, ROWS, H, H, ())
    scans = name == "additive-state"
    analysis = call.backward_analysis(p.tape, H, H, ()) if back else call.forward_analysis(p.tape, True, H, H, ())
    s = call.schedule_of(analysis, sizes, 0 if scans else 1, torch.float32, scans, torch.device("cpu"))
    assert s.mode == ("scan" if scans else "alone")
    precision = call.Precision(torch.float32, torch.float32, "ieee")
    form = call.form_of(s, sizes, precision, None, False)
    kept = call.kept_widths(p.tape, H, H, ())
    if scans:
        text = scan_text(form, analysis, scannable(analysis.tape, "d" if back else "s"), kept, back)
    else:
        text = (backward_texts(form, analysis, kept) if back else forward_texts(form, analysis))[0]
    fixed = kernel.constants_of(
        torch.float32, torch.float32, True, H=H, P=H, BM=s.rows, BH=s.H, BP=s.P, BK=s.depth, SPLIT=1, TILES=s.tiles
    )
    fixed["PRECISION"] = "ieee"

    def arguments(rows: int, make) -> dict:
        wide = {"x", "kept", "sequence0", "dy0", "dz"}
        found = {name: make(T, rows, H) for name in text.params if name in wide}
        found |= {name: make(rows, H) for name in text.params if name in ("in0", "out0", "first0")}
        found |= {"T": T, "B": rows, "begin": 0, "end": T, "start": 0, "U": p.U, "bias": p.b}
        return found | {"stride_t0": rows * H, "stride_b0": H, "stride_u0": 1}

    few, many = arguments(ROWS, torch.zeros), arguments(B, promised)
    for name, v in few.items():
        if isinstance(v, torch.Tensor) and name not in ("U", "bias"):
            v.normal_()
            many[name][..., -ROWS:, :] = v
    n = 2 if scans else ROWS  # a scan's program has one sequence, and they are interpreted one after the other
    for found in (few, many):
        found["start"] = found["B"] - n if scans else found["B"] // ROWS - 1
        kernel.interpret(text, (n if scans else 1, s.tiles), [found[name] for name in text.params], fixed)
    written = [n for n in text.params if n in ("sequence0", "out0", "dz")]
    assert written and many["dz" if back else "sequence0"].numel() > 2**32
    for name in written:
        torch.testing.assert_close(many[name][..., -n:, :], few[name][..., -n:, :], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("name", ["rnn", "additive-state"])
@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
def test_rows_are_counted_in_64_bits(name, back):
    last_rows(name, back)
