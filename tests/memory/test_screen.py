"""The first stage of the search."""

from offnominal.memory.screen import _padded


def test_products_have_few_shapes_and_little_to_spare() -> None:
    sizes = range(1, 2**12)
    padded = {size: _padded(size) for size in sizes}
    assert all(size <= padded[size] <= size * 1.125 for size in sizes)
    assert len({padded[size] for size in range(2**11, 2**12)}) <= 9
