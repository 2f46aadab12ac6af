"""Chat models behind an OpenAI-compatible endpoint: asking about images, reading the answers.

``endpoint`` checks the place and the key, ``prompt`` writes the question, ``client`` sends it,
``answer`` is the form of what comes back. Only the last two import openai and pydantic, which the
extra ``chat`` installs.
"""
