"""A trained model as ONNX: it runs where there is no torch, and none of us."""

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ml.training.files import write
from storage.errors import Problem

Inputs = Mapping[str, Tensor]


def export(
    model: nn.Module, inputs: Sequence[Inputs], free: Mapping[str, Mapping[int, str]], path: Path,
    output: str = "output", tolerance: float = 1e-4,
) -> float:  # fmt: skip
    """Write `model` to `path`, and give the largest difference of ONNX Runtime's output from torch's.

    The first of `inputs` is traced; all are compared, so the others should have other sizes. `free` names the
    dimensions that may differ, by input and for the output too. Raises Problem, and leaves nothing, when a difference
    is over the tolerance.
    """
    import onnxruntime

    model = model.eval()
    names = list(inputs[0])

    def save(temporary: Path) -> None:
        # The exporter that traces: the one that reads the graph unrolls recurrent layers to the length it has seen.
        with warnings.catch_warnings(action="ignore"):  # that it may not hold for other sizes: that is compared below
            torch.onnx.export(
                model, tuple(inputs[0].values()), str(temporary), dynamo=False, input_names=names,
                output_names=[output], dynamic_axes={name: dict(axes) for name, axes in free.items()},
                opset_version=18,
            )  # fmt: skip
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        for given in inputs:
            with torch.no_grad():
                expected = model(*given.values()).numpy()
            found = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})[0]
            differences.append(float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf)
        if not max(differences) <= tolerance:
            raise Problem(
                f"The ONNX model for {path} differs from torch's by {max(differences):g}", "Use the run folder itself"
            )

    differences: list[float] = []
    write(path, save)
    return max(differences)


def exporting(description: str, to_onnx: Callable[[Path, Path], float], argv: Sequence[str] | None) -> None:
    """The command line that all families share: `RUN OUT.onnx`. `to_onnx` writes and gives the difference."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of a trained model")
    parser.add_argument("out", type=Path, metavar="OUT.onnx", help="file to write")
    given = parser.parse_args(argv)
    difference = to_onnx(given.run, given.out)
    print(f"{given.out}: differs from torch by {difference:.1g} at most", file=sys.stderr)
