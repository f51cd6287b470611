"""Building networks without drawing the weights that a file is about to replace."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWS = (
    Tensor.normal_,
    Tensor.uniform_,
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_uniform_,
)
"""What fills new parameters with random numbers, as far as torch tells an override of it."""


class Undrawn(TorchFunctionMode):
    """Inside, the numbers that layers draw for their new parameters are not drawn."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in DRAWS:
            # The functions of nn.init come with every argument named.
            tensor = args[0] if args else named["tensor"]
            if isinstance(tensor, nn.Parameter):
                return tensor
        return func(*args, **named)
