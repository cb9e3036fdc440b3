"""Tensor maths shared by methods: pure functions, and classes that only add state to them.

Blocks know nothing of tasks, runs or methods. They import PyTorch, NumPy and, where it is used, scikit-learn.
"""
