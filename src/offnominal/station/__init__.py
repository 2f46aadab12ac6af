"""The station: a web page beside the line. `offnominal serve` starts it; extra ``[serve]``.

From top to bottom, as a part goes through it: ``sources`` bring pictures, ``inspection`` judges
them in processes of their own, ``store`` keeps what was found before anybody is told, ``outputs``
tell the line, ``pages`` and ``api`` show it, and ``access`` says who may do what.
"""
