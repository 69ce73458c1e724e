"""The cross-entropy of the vocabulary, which is the widest layer, in a way that a CPU's caches like.

On a CPU the logits of a batch are some 50 MB that are written and read again six times over. Here they are made, turned
into their own gradient and used up a few rows at a time, while they are in the cache; what is kept is the gradient
of the rows and of the weights. Nothing is computed twice. (The trick is that of Cut Cross-Entropy, Wijmans et al. 2024,
and of the Liger kernels, Hsu et al. 2024.)
"""

from typing import Any

import torch
from torch import Tensor, nn

from ml.translation.subwords import PAD

_ROWS = 128  # of logits at a time: with 6,000 columns 3 MB


def cross_entropy(hidden: Tensor, weights: Tensor, wanted: Tensor, smoothing: float) -> Tensor:
    """The mean over what is not padding of the label-smoothed cross-entropy (Szegedy et al. 2016).

    Hidden (B, T, W), the output layer's weights (vocabulary, W), wanted numbers (B, T).
    """
    if hidden.device.type == "cpu" and hidden.dtype == torch.float32:
        filled = wanted != PAD
        return _Chunked.apply(hidden[filled], weights, wanted[filled], smoothing)  # type: ignore[no-any-return, no-untyped-call]
    logits = nn.functional.linear(hidden, weights)
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD, label_smoothing=smoothing
    )


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weights: Tensor, wanted: Tensor, smoothing: float) -> Tensor:
        rows, vocabulary = len(hidden), len(weights)
        learning = ctx.needs_input_grad[0]
        of_hidden = torch.empty_like(hidden) if learning else None
        of_weights = torch.zeros_like(weights) if learning else None
        logits = hidden.new_empty(min(_ROWS, rows), vocabulary)
        total = hidden.new_zeros(())
        for first in range(0, rows, _ROWS):
            some, right = hidden[first : first + _ROWS], wanted[first : first + _ROWS, None]
            each = torch.mm(some, weights.t(), out=logits[: len(some)])
            said, most = each.gather(1, right), each.amax(dim=1, keepdim=True)
            mean = each.mean(dim=1, keepdim=True) if smoothing else 0.0
            sums = each.sub_(most).exp_().sum(dim=1, keepdim=True)
            total += (most + sums.log() - (1 - smoothing) * said - smoothing * mean).sum()
            if of_hidden is not None and of_weights is not None:
                # The gradient of the logits: what the model says less what it should say.
                each.div_(sums)
                if smoothing:
                    each.sub_(smoothing / vocabulary)
                each.scatter_add_(1, right, each.new_full((len(some), 1), smoothing - 1))
                torch.mm(each, weights, out=of_hidden[first : first + _ROWS])
                of_weights.addmm_(each.t(), some)
        if learning:
            ctx.save_for_backward(of_hidden, of_weights)
            ctx.rows = rows
        return total / rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_hidden, of_weights = ctx.saved_tensors
        share = gradients[0] / ctx.rows
        return of_hidden * share, of_weights * share, None, None
