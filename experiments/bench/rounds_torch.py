"""What ``rounds.py`` compares with: ByzFL, and loops over clients in PyTorch. A program of its own,
because it needs ``torch`` and ``byzfl``, and JAX and PyTorch in one process compete for threads.

It reads commands "<workload> <rounds>" from standard input and answers each with the seconds taken.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn


class DNN(nn.Module):
    """Fang et al.'s network, 266,060 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 30, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(30, 50, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(1250, 200), nn.ReLU(), nn.Linear(200, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Softmax(nn.Module):
    """Multinomial logistic regression. (ByzFL's own puts a sigmoid before the cross-entropy.)"""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.reshape(len(x), -1))


Shares = list[tuple[torch.Tensor, torch.Tensor]]


def byzfl_rounds(shares: Shares, batch: int, f: int, device: str) -> Callable[[], None]:
    """ByzFL's own clients, server and TrMean, in the loop of its benchmark (``DSGD``, no attack)."""
    import byzfl
    from torch.utils.data import DataLoader, TensorDataset

    byzfl.fed_framework.models.softmax = Softmax
    common = {"model_name": "softmax", "device": device, "learning_rate": 0.1}
    common |= {"weight_decay": 0.0, "milestones": [], "learning_rate_decay": 1.0}
    clients = [
        byzfl.Client(
            common
            | {
                "optimizer_name": "SGD",
                "loss_name": "CrossEntropyLoss",
                "LabelFlipping": False,
                "nb_labels": 10,
                "momentum": 0.0,
                "training_dataloader": DataLoader(TensorDataset(x, y), batch, shuffle=True),
                "store_per_client_metrics": False,
            }
        )
        for x, y in shares
    ]
    server = byzfl.Server(
        common
        | {
            "optimizer_name": "SGD",
            "test_loader": DataLoader(TensorDataset(*shares[0]), 1000),
            "aggregator_info": {"name": "TrMean", "parameters": {"f": f}},
            "pre_agg_list": [],
        }
    )

    def one_round() -> None:
        model = server.get_dict_parameters()
        for client in clients:
            client.set_model_state(model)
        for client in clients:
            client.compute_gradients()
        server.update_model_with_gradients([c.get_flat_gradients_with_momentum() for c in clients])

    return one_round


def torch_rounds(
    shares: Shares, model: nn.Module, batch: int, steps: int, f: int | None, device: str
) -> Callable[[], None]:
    """The obvious loop over clients: batches by index, gradients or deltas into a matrix."""
    model = model.to(device)
    parameters = list(model.parameters())
    shares = [(x.to(device), y.to(device)) for x, y in shares]
    loss = nn.CrossEntropyLoss()

    def one_round() -> None:
        start = nn.utils.parameters_to_vector(parameters).detach().clone()
        updates = []
        for x, y in shares:
            nn.utils.vector_to_parameters(start, parameters)
            for _ in range(steps):
                rows = torch.randperm(len(x), device=device)[:batch]
                gradients = torch.autograd.grad(loss(model(x[rows]), y[rows]), parameters)
                with torch.no_grad():
                    for p, g in zip(parameters, gradients, strict=True):
                        p -= 0.01 * g
            updates.append(nn.utils.parameters_to_vector(parameters).detach() - start)
        matrix = torch.stack(updates)
        if f is None:
            update = matrix.mean(dim=0)
        else:
            update = matrix.sort(dim=0).values[f:-f].mean(dim=0)
        nn.utils.vector_to_parameters(start + update, parameters)

    return one_round


def main() -> None:
    file, device = sys.argv[1], sys.argv[2]
    batch, f, threads = (int(word) for word in sys.argv[3:])
    torch.set_num_threads(threads)
    with np.load(file) as data:
        x, y, index = (torch.from_numpy(data[name]) for name in ("x", "y", "index"))
    shares = [(x[rows].permute(0, 3, 1, 2).contiguous(), y[rows].long()) for rows in index]
    ways = {
        "byzfl": lambda: byzfl_rounds(shares, batch, f, device),
        "lr": lambda: torch_rounds(shares, Softmax(), batch, 1, f, device),
        "dnn": lambda: torch_rounds(shares, DNN(), batch, 1, f, device),
        "dnn-5-steps": lambda: torch_rounds(shares, DNN(), batch, 5, None, device),
    }
    made: dict[str, Callable[[], None]] = {}
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # only "byzfl" needs it
        versions["byzfl"] = importlib.metadata.version("byzfl")
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        name, rounds = line.split()
        if name not in made:
            made[name] = ways[name]()
        start = time.perf_counter()
        for _ in range(int(rounds)):
            made[name]()
        if device != "cpu":
            torch.cuda.synchronize()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
