"""AdamW for weights in half precision: it steps copies in float32, and the weights follow, rounded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

GRADIENTS_OF_ANOTHER_TYPE = hasattr(torch.Tensor, "grad_dtype")  # PyTorch 2.10 was the first with it


class MasterWeightAdamW(torch.optim.AdamW):
    """AdamW on float32 copies of the trainable weights (Micikevicius et al. 2017, arXiv:1710.03740, section 3.1).

    A step of relative size 1e-4 is lost on a weight in bfloat16, whose neighbours are 4e-3 to 8e-3 apart. Here it is
    taken on the copy, in which steps add up, and the weight is the copy rounded. Gradients are float32, and so is their
    sum over micro-batches. Weights that are float32 already are stepped as they are.

    Libraries that do it do it otherwise: Accelerate's mixed precision and PyTorch's FSDP keep the model itself in
    float32, from which sampling in half precision needs another copy; torchao rounds stochastically instead; Apex and
    DeepSpeed need their own engines or kernels.

    The optimizer's parameters are the copies: a scheduler, and a checkpoint by ``state_dict``, work as for AdamW.

    Args:
        parameters: Of a model, of which those that have gradients are trained; 18 bytes for each number in bfloat16:
            weight 2, copy 4, gradient 4, moments 8.
        lr: Learning rate.
        **settings: Of AdamW.

    Raises:
        ValueError: PyTorch is older than 2.10, which first let gradients have another type than weights.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, **settings: Any) -> None:
        self._weights = [parameter for parameter in parameters if parameter.requires_grad]
        for weight in self._weights:
            if weight.dtype != torch.float32:
                if not GRADIENTS_OF_ANOTHER_TYPE:
                    raise ValueError(f"bfloat16 needs PyTorch 2.10 or newer to be trained, this is {torch.__version__}")
                weight.grad_dtype = torch.float32
        self._masters = [w if w.dtype == torch.float32 else w.detach().float() for w in self._weights]
        super().__init__(self._masters, lr=lr, **settings)

    def step(self, closure: Any = None) -> Any:
        """Step the copies and round the weights to them; a closure is called first, as by any optimizer."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        pairs = [pair for pair in zip(self._weights, self._masters, strict=True) if pair[0] is not pair[1]]
        for weight, master in pairs:
            master.grad = weight.grad
        super().step()
        for weight, master in pairs:
            master.grad = None
            with torch.no_grad():
                weight.copy_(master)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, which are the weights'."""
        super().zero_grad(set_to_none)  # of groups that were added later
        for weight in self._weights:
            if set_to_none:
                weight.grad = None
            elif weight.grad is not None:
                weight.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return AdamW's state with the copies beside it, as they are more than the weights."""
        return {**super().state_dict(), "masters": list(self._masters)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state over, and round the weights to its copies.

        Raises:
            ValueError: It has none.
        """
        rest = dict(state_dict)
        if "masters" not in rest:
            raise ValueError("the saved optimizer has no float32 copies of the weights: was agent.dtype another one?")
        masters: list[torch.Tensor] = rest.pop("masters")
        super().load_state_dict(rest)
        with torch.no_grad():
            for weight, master, saved in zip(self._weights, self._masters, masters, strict=True):
                master.copy_(saved)
                weight.copy_(saved)


def adamw(model: torch.nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """AdamW without weight decay on what is trainable of a model, with float32 copies where that is in half precision.

    Args:
        model: Its adapters are all that has gradients where it has any.
        learning_rate: Of the first step.

    Raises:
        ValueError: Nothing is trainable; or see `MasterWeightAdamW`.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"{type(model).__name__} has no weights with gradients, expected some to train")
    kind = torch.optim.AdamW if all(p.dtype == torch.float32 for p in trainable) else MasterWeightAdamW
    return kind(trainable, lr=learning_rate, weight_decay=0.0)
