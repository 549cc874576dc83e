"""Ten million rows, made block by block: memory stays that of a block, and sums keep their digits."""

import memory
import pytest
import torch

from rayad.density.spn import CircuitStatistics, Config

BLOCKS, ROWS = 100, 100_000


@pytest.mark.parametrize("states", [(), (8,)])
def test_statistics_of_ten_million_rows_take_the_memory_of_a_block(states: tuple[int, ...]):
    density = Config(inputs=2, depth=0, replicas=1, states=states).build(4)

    def block(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(ROWS, 4, generator=generator)
        return ((z + 4).clamp(0, 7).floor() if states else z) if seed else torch.full((ROWS, 4), 1.0)

    density.start(block(1), seed=0)
    total: CircuitStatistics = density.statistics(block(0)) + density.statistics(block(1))
    before = memory.now()
    for number in range(2, BLOCKS):
        total = total + density.statistics(block(number))
    assert memory.now() < before + 50_000_000
    assert total.rows.item() == BLOCKS * ROWS
    assert total.visits.double().sum().item() == pytest.approx(BLOCKS * ROWS, rel=1e-5)
