"""How float32 products are rounded on a GPU: as torch's own are, by whichever of its names the user has said so."""

import pytest
import torch

from throughtime.engine.triton.support import exact_products, rounds_to_tf32

MATMUL = torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def as_it_was():
    MATMUL.allow_tf32 = False
    yield
    MATMUL.allow_tf32 = False


def by_the_old_name():
    MATMUL.allow_tf32 = True


def by_the_new_name():
    MATMUL.fp32_precision = "tf32"


def by_one_for_all():
    torch.set_float32_matmul_precision("high")


WAYS = [by_the_old_name, by_the_new_name, by_one_for_all]


@pytest.mark.parametrize("way", WAYS)
def test_the_setting_is_read_and_left_as_it_was(way):
    assert not rounds_to_tf32()
    way()
    assert rounds_to_tf32()
    with exact_products():
        assert not rounds_to_tf32() and MATMUL.allow_tf32 is False
    assert rounds_to_tf32()
    if way is by_the_new_name:
        with pytest.raises(RuntimeError, match="mix of the legacy and new"):  # so the old name must not be asked
            _ = MATMUL.allow_tf32
    else:
        assert MATMUL.allow_tf32 is True


def test_it_is_left_as_it_was_by_an_error():
    by_the_old_name()
    with pytest.raises(ZeroDivisionError), exact_products():
        1 / 0  # noqa: B018
    assert MATMUL.allow_tf32 is True


def test_nothing_is_set_where_nothing_is_rounded():
    MATMUL.fp32_precision = "ieee"
    with exact_products():
        assert MATMUL.fp32_precision == "ieee"
    assert MATMUL.fp32_precision == "ieee"
