"""One rank of a preflight whose second rank takes eight times as long for a product: it computes each eight times.

A busy neighbour would not do: the best of five short products falls into a slice of time of its own. Nor would older
instructions, which on some processors take only twice as long.
"""

import os
import sys

import torch

from tools.slurm.preflight import main

product = torch.mm


def eightfold(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return [product(left, right) for _ in range(8)][-1]


if os.environ["RANK"] == "1":
    torch.mm = eightfold

os._exit(main(sys.argv[1:]))
