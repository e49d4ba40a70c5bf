"""dnnbench: can a storage feed deep-learning training?

The library behind ``pytest bench/``. It works without pytest; nothing heavy is imported here.
"""

__version__ = "0.1.0"
