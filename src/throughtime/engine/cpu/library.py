"""The kernels' shared library: found, loaded once, and spelled out for ctypes."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from pathlib import Path

import torch  # noqa: F401  (loads torch's OpenMP runtime first, which the kernels then share)

from throughtime.errors import BackendError

ISAS = ("portable", "avx2", "avx512", "avx512_bf16", "amx_bf16")
PAIRS = ("avx512_bf16", "amx_bf16")  # those that multiply bf16 numbers themselves
# Why the tiles of amx_bf16 are not used, by tt_tiles() of interface.h.
TILES = (
    None,
    "this library was built without them",
    "this processor has none",
    "the operating system refuses the memory that they take",
    "a product that was tried on them when the library was loaded came out wrong",
)
OTHER_SOURCES = "{} was built from other sources than this package; build the kernels anew"
NUMBER, POINTER = ctypes.c_int64, ctypes.c_void_p


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(n, kind) for n in names.split()]


# The structures of interface.h.


class TapePlace(ctypes.Structure):
    _fields_ = _fields(NUMBER, "kind index")


class TapeInstruction(ctypes.Structure):
    _fields_ = [*_fields(NUMBER, "code d a b c"), *_fields(ctypes.c_double, "k0 k1")]


class TapeSweep(ctypes.Structure):
    _fields_ = _fields(NUMBER, "stage width first count")


class TapeWholeRow(ctypes.Structure):
    _fields_ = _fields(NUMBER, "stage matrix turned source source_width d width")


class TapeProgram(ctypes.Structure):
    _fields_ = [
        *_fields(POINTER, "places instructions sweeps whole_rows step_widths chunk_widths kept_offsets"),
        *_fields(NUMBER, "n_places n_sweeps n_whole_rows n_steps n_chunks n_temps stages ds_written dz_written"),
    ]


class Panels(ctypes.Structure):
    _fields_ = [("data", POINTER), *_fields(NUMBER, "words columns width groups")]


class Packing(ctypes.Structure):
    _fields_ = [
        *_fields(POINTER, "out source blocks"),
        *_fields(NUMBER, "n_blocks rows stride source_columns words width turned source_bf16 pairs dtype"),
    ]


class ForwardCall(ctypes.Structure):
    _fields_ = [
        *_fields(POINTER, "program offset column_of"),
        *_fields(NUMBER, "T B D H P S n_units C nx h0 nh reverse dtype pairs threads"),
        *_fields(POINTER, "x bias W U matrices units first state_widths sequences finals kept"),
        *_fields(NUMBER, "kept_row chunk row_groups"),
    ]


class BackwardCall(ctypes.Structure):
    _fields_ = [
        ("forward", ForwardCall),
        *_fields(POINTER, "dy dy_rows ds Wt Ut turned_matrices x_blocks h_blocks x_rows"),
        *_fields(NUMBER, "x_bf16 truncated"),
        *_fields(POINTER, "dx dW dU db d_units d_matrices matrix_shapes pairs_of"),
        *_fields(NUMBER, "n_pairs n_matrices"),
    ]


class MapCall(ctypes.Structure):
    _fields_ = [
        *_fields(POINTER, "program column_of"),
        *_fields(NUMBER, "T B D H S C nx h0 nh reverse truncated dtype threads bases bases_x base_h"),
        ("base_of", POINTER),
        ("factors", NUMBER),
        *_fields(POINTER, "total_kind total_at"),
        *_fields(NUMBER, "rows block parts apart n_kept kept_row"),
        *_fields(POINTER, "state_widths lengths loss_steps starts kept units Wt Ut matrices turned_matrices"),
        *_fields(POINTER, "direct above input_slope dx sizes arrived"),
    ]


def path() -> Path:
    """Where the library is looked for: THROUGHTIME_CPU_LIBRARY, or beside this file."""
    given = os.environ.get("THROUGHTIME_CPU_LIBRARY")
    return Path(given) if given else Path(__file__).with_name("libthroughtime_cpu.so")


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The library. Raises BackendError, with the way out, where it is not there or not the one for these sources."""
    where = path()
    if not where.exists():
        raise BackendError(
            f"the CPU kernels are not there: expected {where}; install throughtime from a wheel, or build them with "
            '`pip install .` (needs a C++17 compiler), or choose backend="torch"'
        )
    try:
        lib = ctypes.CDLL(str(where))
    except OSError as err:
        raise BackendError(
            f'the CPU kernels cannot be loaded: {err}; build them anew, or choose backend="torch"'
        ) from None
    if not hasattr(lib, "tt_tiles"):
        raise BackendError(OTHER_SOURCES.format(where))
    lib.tt_lanes.restype = lib.tt_panel_vectors.restype = lib.tt_layout.restype = NUMBER
    lib.tt_lanes.argtypes = lib.tt_layout.argtypes = [NUMBER]
    lib.tt_peak.restype, lib.tt_peak.argtypes = ctypes.c_double, [NUMBER, NUMBER, ctypes.c_double]
    lib.tt_pack.argtypes = [POINTER, NUMBER]
    lib.tt_forward.argtypes = lib.tt_backward.argtypes = lib.tt_map.argtypes = [POINTER]
    lib.tt_move_rows.argtypes = [POINTER, POINTER, POINTER, NUMBER, NUMBER, NUMBER, NUMBER]
    lib.tt_large_pages.argtypes, lib.tt_large_pages.restype = [POINTER, NUMBER], None
    lib.tt_checksum.argtypes, lib.tt_checksum.restype = [POINTER, NUMBER], ctypes.c_uint64
    lib.tt_apply.argtypes = [NUMBER, NUMBER, POINTER, POINTER, NUMBER]
    for k, structure in enumerate((TapeProgram, Panels, Packing, ForwardCall, BackwardCall, MapCall)):
        if lib.tt_layout(k) != ctypes.sizeof(structure):
            raise BackendError(OTHER_SOURCES.format(where))
    wanted = os.environ.get("THROUGHTIME_CPU_ISA")
    if wanted is not None:
        choose(wanted, lib)
    return lib


def choose(isa: str, lib: ctypes.CDLL | None = None) -> None:
    """Uses the kernels of one instruction set that the machine runs; one of `ISAS`. Packed weights are of one
    instruction set: this is for the start of a process, for tests and for benchmarks."""
    lib = lib or load()
    if isa not in ISAS:
        raise BackendError(f"unknown instruction set {isa!r}; it must be one of {', '.join(ISAS)}")
    if not lib.tt_runs(ISAS.index(isa)):
        why = f": {TILES[lib.tt_tiles()]}" if isa == "amx_bf16" else ""
        widest = [name for k, name in enumerate(ISAS) if lib.tt_runs(k)][-1]
        raise BackendError(f"this machine does not run {isa}{why}; its widest is {widest}")
    lib.tt_choose(ISAS.index(isa))


def current() -> str:
    """The instruction set in use."""
    return ISAS[load().tt_current()]


def runs(isa: str) -> bool:
    """Whether this machine runs the kernels of one of `ISAS`."""
    return bool(load().tt_runs(ISAS.index(isa)))


def tiles_left_out() -> str | None:
    """Why a processor that has tiles multiplies bf16 numbers without them; None where nothing is amiss.

    A processor that never had any lacks nothing; a refusal, or a wrong result when they were tried, is told.
    """
    found = load().tt_tiles()
    return TILES[found] if found > 2 else None


def available() -> str | None:
    """Why the kernels are not there, or None if they are."""
    try:
        load()
    except BackendError as err:
        return str(err)
    return None
