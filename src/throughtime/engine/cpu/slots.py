"""Temporaries share the slots of a tile: a slot is free again once its value is read no more."""

from __future__ import annotations

from collections.abc import Sequence

from throughtime.engine.cpu.program import Instruction, Kind, Place


def share_slots(instructions: Sequence[Instruction]) -> tuple[list[Instruction], int]:
    """The instructions, in their order, with a slot of the tile for each temporary; and how many slots there are."""
    last: dict[Place, int] = {}
    for i, q in enumerate(instructions):
        last.update((p, i) for p in (*q.args, q.d) if p[0] == Kind.TEMP)
    slot: dict[Place, int] = {}
    idle: list[int] = []
    slots = 0
    done = []
    for i, q in enumerate(instructions):
        args = tuple((Kind.TEMP, slot[p]) if p[0] == Kind.TEMP else p for p in q.args)
        idle += [slot[p] for p in set(q.args) if p[0] == Kind.TEMP and last[p] == i]
        d = q.d
        if d[0] == Kind.TEMP:
            if not idle:
                idle.append(slots)
                slots += 1
            slot[d] = idle.pop()
            if last[d] == i:
                idle.append(slot[d])
            d = (Kind.TEMP, slot[d])
        done.append(q._replace(d=d, args=args))
    return done, slots
