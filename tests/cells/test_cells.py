"""What a cell declares: its columns, its equations for people, its name; and declarations that make no sense."""

import copy
import pickle

import pytest

from throughtime import cells
from throughtime.cells import Cell, Column
from throughtime.errors import CellError


@pytest.mark.parametrize("name", cells.NAMES)
def test_every_cell_prints_its_equations(name):
    cell = cells.by_name(name)
    lines = cell.equations.splitlines()
    assert lines and all(" = " in line for line in lines)
    shown = cell.states[0]
    assert any(line.startswith(f"{shown}_t = ") for line in lines), f"{shown}_t is among the equations"


@pytest.mark.parametrize("name", cells.NAMES)
def test_every_cell_copies_and_pickles(name):
    cell = cells.by_name(name)
    assert repr(pickle.loads(pickle.dumps(cell))) == repr(copy.deepcopy(cell)) == repr(cell)


def test_names_tell_cells_apart():
    names = [cells.by_name(n).name for n in cells.NAMES]
    assert len(set(names)) == len(names)


def test_columns_of_the_gru():
    assert cells.GRU.columns == (
        Column("r", 0, 0), Column("u", 1, 1), Column("n_x", 2, None), Column("n_h", None, 2),
    )  # fmt: skip
    assert cells.GRUResetBefore.columns == (Column("r", 0, 0), Column("u", 1, 1), Column("n", 2, None))
    assert cells.AdditiveState.columns == (Column("h", 0, None),)
    assert cells.AdditiveState.recurrent_gates == ()


def test_unknown_names():
    with pytest.raises(CellError, match="unknown cell 'lstmm'; it must be one of rnn, "):
        cells.by_name("lstmm")
    with pytest.raises(CellError, match="unknown activation 'gelu'; it must be one of logistic, tanh, relu, identity"):
        cells.Simple("gelu")


WRONG = {
    "single name needs its comma": {"gates": "h"},
    "must be a tuple of names": {"gates": ("not a name",)},
    "must be a tuple of names, class-wide": {"gates": property(lambda self: ("h",))},
    "names one thing twice": {"gates": ("h", "h")},
    r"apart names \['q'\], which are not among its gates": {"gates": ("h",), "apart": ("q",)},
    "a gate can be in one of": {"gates": ("h",), "apart": ("h",), "inside": ("h",)},
    "both unit weights and matrices": {"gates": ("h",), "units": ("v",), "matrices": ("v",)},
}


@pytest.mark.parametrize("message", WRONG)
def test_declarations_that_make_no_sense(message):
    with pytest.raises(CellError, match=message):
        type("Own", (Cell,), WRONG[message])


def test_a_cell_needs_its_step():
    class NoStep(Cell):
        gates = ("h",)

    with pytest.raises(TypeError, match="step"):
        NoStep()
