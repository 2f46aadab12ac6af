"""Engines: what runs a method's network, from prepared pixels to features.

torch builds every network and can run it. On a CPU others are often several times as fast: a
network is written down once as an ONNX graph, which onnxruntime and OpenVINO run, and from then on
torch is not even imported. :mod:`~offnominal.engines.choose` says which one runs.
"""

import os

# onnxruntime would report to its makers from 1.32 on, over the network and with a number of the
# machine that it keeps in the user's home; it is asked before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
