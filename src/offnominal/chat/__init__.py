"""Chat models behind an OpenAI-compatible endpoint: asking about images, reading the answers.

``endpoint`` names and checks the place, ``prompt`` writes the question, ``client`` sends it,
``reply`` and ``answer`` read what comes back, ``order`` keeps several questions in flight. Only
``client`` and ``order`` import an HTTP library, which the extra ``chat`` installs.
"""
