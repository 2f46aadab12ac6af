"""What a bank's methods compute without a network, for a process with PyTorch and one without."""

import hashlib
from typing import Any

import numpy as np

from offnominal.foreground import foreground_mask, masking_test
from offnominal.memory import MemoryBank
from offnominal.memory.coreset import farthest_rows, select_coreset
from offnominal.memory.leave_one_out import grown, measure, shrunk
from offnominal.orientation import mean_square_distance

__all__ = ["work"]


def _told(*arrays: Any) -> str:
    return hashlib.sha256(
        b"".join(np.ascontiguousarray(one).tobytes() for one in arrays)
    ).hexdigest()


def work() -> dict[str, str]:
    """Digests of all that comes out."""
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((6, 150, 40), np.float32)
    rows[3] = rows[1] + np.float32(1e-6)
    queries = np.concatenate([draw.standard_normal((60, 40), np.float32), rows[3, :20]])
    found = {}
    for storage in ("fp32", "fp16", "int8"):
        bank = MemoryBank(storage=storage)  # type: ignore[arg-type]
        for number, some in enumerate(rows[:5]):
            bank.add(some, number, counts=True)
        measure(bank, range(5))
        bank.add(rows[5], 5, counts=True)
        grown(bank, [5])
        bank.active(2, False)
        shrunk(bank, [2])
        for k in (1, 5):
            found[f"{storage}, {k}"] = _told(*bank.search(queries, k, skip=1))
        found[f"{storage}, columns"] = _told(*bank.columns().values())
        found[f"{storage}, farthest"] = _told(farthest_rows(queries, bank, 20))
    found["coreset"] = _told(select_coreset(rows.reshape(-1, 40), 200))
    y, x = np.mgrid[:20, :30]
    tokens = rows.reshape(-1, 40)[:600] + 40 * ((y - 10) ** 2 + (x - 15) ** 2 < 50).reshape(-1, 1)
    found["mask"] = _told(foreground_mask(tokens, (20, 30), None))
    found["test"] = str(masking_test(tokens, (20, 30), None).passed)
    found["turned"] = f"{mean_square_distance(queries, rows[0]):.6g}"
    return found
