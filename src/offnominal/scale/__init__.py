"""More images, cells and references than one process takes: shards, workers, and their parts.

``shards.py`` hands shards to the workers of an engine, ``parts.py`` is what workers write, and
``scoring.py``, ``cells.py`` and ``looking.py`` are the three kinds of work that is cut.
"""
