"""Moving averages of a network's weights."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    r"""Move an averaged network towards a model (Tarvainen & Valpola 2017, mean teacher, section 2).

    :math:`\bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta` for all parameters, in place and without gradient.
    Buffers, such as the statistics of batch norm, are left alone on both sides.

    Args:
        average: The averaged network, a copy of the model with weights of its own.
        model: The model being trained.
        decay: ``d`` in [0, 1]: 1 keeps the average, 0 copies the model.

    Raises:
        ValueError: ``decay`` is outside [0, 1], or the two networks' parameters differ in number or shape.

    >>> teacher, student = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(teacher.weight, 1.0), nn.init.constant_(student.weight, 3.0)
    >>> update_average(teacher, student, 0.99)
    >>> teacher.weight.data
    tensor([[1.0200]])
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay must be in [0, 1], got {decay}")
    averages, parameters = list(average.parameters()), list(model.parameters())
    if [each.shape for each in averages] != [each.shape for each in parameters]:
        raise ValueError("the average and the model must have parameters of the same shapes in the same order")
    if parameters:
        get_ema_multi_avg_fn(decay)(averages, parameters, 1)  # type: ignore[no-untyped-call]
