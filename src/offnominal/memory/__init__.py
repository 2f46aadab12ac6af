"""The bank of nominal patches: adding and exact search."""

from offnominal.memory.bank import MemoryBank

__all__ = ["MemoryBank"]
