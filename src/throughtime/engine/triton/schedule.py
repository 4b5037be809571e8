"""The rule by which a schedule is chosen: what a program holds on chip, how many share a row, how they meet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from throughtime.engine.triton.kernel import How

# What one program may hold of the weights: Triton keeps them in shared memory, which also takes in what passes between
# threads on the way.
ON_CHIP = 128 * 1024
BESIDE = 32 * 1024
# No program has fewer rows or units than a tile of the tensor cores.
LEAST = 16
MOST_ROWS = 64
# Terms of a float32 product at a time: it has no tensor cores, and what a thread multiplies stands in its registers.
PLAIN = 64
# Numbers in a tile of a map whose products torch has done.
TILE = 1024
# Registers of a thread for sums that are worked out at a time, of the 255 that it may have.
SUMS = 64
MOST_REGISTERS = 255
# Bytes that a thread may keep in memory for want of registers before fewer rows are tried. As many of 256 threads are
# 32 KiB, written and read within 512 clocks of a step; a second launch takes all steps once more.
SPILT = 128
# The tile of a scan.
STEPS, UNITS = 64, 32


@dataclass(frozen=True)
class Schedule:
    """How a pass is cut into programs.

    mode:  "alone", "together", "stepwise" as in `writer.Form`, or "scan".
    rows:  sequences a program; H and P: units a program; depth: how many terms a product reads at a time.
    tiles: programs that share a row; batch: tiles of rows launched at once; held: weights stay on chip; warps: of 32;
    split: into how many parts a sum is cut, one for each warp, where a tile has too few units for all of them;
    parts: in how many parts the rows of a program are multiplied, so that no thread has more than SUMS sums at a time.
    """

    mode: str
    rows: int
    H: int
    P: int
    depth: int
    tiles: int
    batch: int
    held: bool
    warps: int
    split: int = 1
    parts: int = 1

    @property
    def stages(self) -> int:
        """How many rounds of a loop Triton may read ahead. In a loop over steps none: what another program writes at
        a barrier must not be read before it. Within a step, weights that are not held."""
        return 1 if self.held else 3

    @property
    def how(self) -> How:
        """How its kernels are compiled and launched. What goes through all steps has a multiprocessor for itself."""
        registers = MOST_REGISTERS if self.mode in ("alone", "together") else None
        return How(self.warps, self.stages, self.mode == "together" and self.tiles > 1, registers)

    def chunks(self, H: int, P: int) -> tuple[int, int]:
        """Into how many parts a sum over H and over P units is cut where it is not one."""
        return (1, 1) if self.mode in ("alone", "scan") else (_parts(H, self.depth), _parts(P, self.depth))


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def _parts(n: int, size: int) -> int:
    return -(-n // size)


def choose(
    B: int, H: int, P: int, weights: int, size: int, exchanges: bool, scans: bool, device: torch.device
) -> Schedule:  # fmt: skip
    """The schedule of a pass over B sequences.

    weights: how many [H, P] matrices the steps multiply by; size: bytes of a weight; exchanges: whether any unit needs
    another's value (a product, a mean); scans: whether states are carried on linearly, see `scannable`.

    1. States that are carried on linearly, each by itself, are scanned over chunks of time.
    2. Without exchange each program has some units and waits for nobody: "alone".
    3. Where one program can hold all weights (ON_CHIP), it has all units: "alone". In float32 a product of
       more than PLAIN terms is cut, for which the program writes its states out: "together", with nobody.
    4. Else units are shared by the fewest programs that can hold the weights, if all programs can be on the device at
       once, which a cooperative launch guarantees: "together". Weights that no such number of programs can hold are
       read anew at each step.
    5. "stepwise" where programs cannot wait for each other, as under the interpreter.
    """
    return _choose(B, H, P, weights, size, exchanges, scans, programs_at_once(device), on_chip(device),
                   device.type == "cuda")  # fmt: skip


@lru_cache(maxsize=1024)
def _choose(
    B: int, H: int, P: int, weights: int, size: int, exchanges: bool, scans: bool, room: int, chip: int, meets: bool
) -> Schedule:
    rows = LEAST
    whole_H, whole_P = max(LEAST, power_of_two(H)), max(LEAST, power_of_two(P))
    if scans:
        return Schedule("scan", STEPS, UNITS, UNITS, LEAST, _parts(H, UNITS), B, True, 4)
    if not exchanges:
        tiles = _parts(H, 64)
        while rows < MOST_ROWS and _parts(B, rows) * tiles > 4 * room:
            rows *= 2
        return Schedule("alone", rows, 64, 64, LEAST, tiles, _parts(B, rows), True, 4)
    total = weights * whole_H * whole_P * size
    if total <= chip:
        while rows < MOST_ROWS and _parts(B, rows) > room:
            rows *= 2
        if size == 4 and max(whole_H, whole_P) > PLAIN:
            return Schedule("together", rows, whole_H, whole_P, PLAIN, 1, _parts(B, rows), True, 8)
        return Schedule(
            "alone", rows, whole_H, whole_P, LEAST, 1, _parts(B, rows), True, 8 if total >= ON_CHIP // 2 else 4
        )
    tile, held = _tile(H, P, weights, size, room, chip)
    tiles = max(_parts(H, tile), 1)
    least = max(LEAST, power_of_two(_parts(P, tiles)))
    at_once = max(1, room // tiles)
    while rows < MOST_ROWS and _parts(B, rows) > at_once:
        rows *= 2
    depth = min(128 if held else 64, max(whole_H, whole_P))
    mode = "together" if meets and tiles <= room else "stepwise"
    batch = min(_parts(B, rows), at_once) if mode == "together" else _parts(B, rows)
    split = 8 if mode == "together" and min(tile, least) < 64 and depth >= 8 * LEAST else 1
    parts = 1
    while rows // parts > LEAST and weights * (rows // parts) * max(tile, least) * split > SUMS * 8 * 32:
        parts *= 2
    return Schedule(mode, rows, tile, least, depth, tiles, batch, held and mode == "together", 8, split, parts)


def with_least_rows(s: Schedule, B: int, device: torch.device) -> Schedule | None:
    """The schedule with as few sequences a program as there can be, for what a thread has no registers for; it may take
    more launches. None where there are no fewer."""
    if s.rows == LEAST or not s.held or s.mode not in ("alone", "together"):
        return None
    batch = tiles = _parts(B, LEAST)
    if s.mode == "together":
        batch = min(tiles, max(1, programs_at_once(device) // s.tiles))
    return replace(s, rows=LEAST, batch=batch, parts=1)


def choose_map(R: int, H: int, P: int, weights: int, size: int, device: torch.device) -> Schedule:
    """The schedule of a map of R rows: "alone" where one program holds the weights, else "stepwise", torch multiplying.

    There are rows enough to fill a device, so that no row is shared: a program has all units of its rows.
    """
    whole_H, whole_P = max(LEAST, power_of_two(H)), max(LEAST, power_of_two(P))
    total = weights * whole_H * whole_P * size
    if total <= on_chip(device):
        rows = LEAST
        while rows < MOST_ROWS and _parts(R, rows) > programs_at_once(device):
            rows *= 2
        return Schedule(
            "alone", rows, whole_H, whole_P, LEAST, 1, _parts(R, rows), True, 8 if total >= ON_CHIP // 2 else 4
        )
    rows = max(1, TILE // max(whole_H, whole_P))
    return Schedule("stepwise", rows, whole_H, whole_P, LEAST, 1, _parts(R, rows), False, 4)


def _tile(H: int, P: int, weights: int, size: int, room: int, chip: int) -> tuple[int, bool]:
    """Units a program, and whether it can hold its weights."""
    tile = max(LEAST, power_of_two(H))
    while tile > LEAST and weights * tile * power_of_two(P) * size > chip:
        tile //= 2
    held = weights * tile * power_of_two(P) * size <= chip and _parts(H, tile) <= room
    if not held:
        while _parts(H, tile) > room:
            tile *= 2
        tile = max(tile, 32)
    return tile, held


@lru_cache(maxsize=16)
def programs_at_once(device: torch.device) -> int:
    """How many programs a device runs at the same time, one on each multiprocessor."""
    if device.type != "cuda":
        return 16
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache(maxsize=16)
def on_chip(device: torch.device) -> int:
    """How many bytes of weights one program may hold on a device."""
    if device.type != "cuda":
        return ON_CHIP
    shared = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 99 * 1024)
    return min(ON_CHIP, 1 << max(0, (shared - BESIDE)).bit_length() - 1)


def shared_out(s: Schedule, H: int, P: int, tiles: int, mode: str, held: bool = True, split: int = 1) -> Schedule:
    """The schedule with the units of a row shared by another number of programs; how tests reach every path."""
    tile = max(LEAST, power_of_two(_parts(H, tiles)))
    tiles = _parts(H, tile)
    return replace(s, mode=mode, H=tile, P=max(LEAST, power_of_two(_parts(P, tiles))), tiles=tiles, held=held,
                   depth=LEAST * split, split=split)  # fmt: skip
