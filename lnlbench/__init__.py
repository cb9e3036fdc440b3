"""lnlbench: a benchmark harness for Learning with Noisy Labels."""

__version__ = "0.1.0"
