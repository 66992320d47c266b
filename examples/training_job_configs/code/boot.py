"""A boot file: fits a small regression on several workers with torch.distributed and saves the model at train_url.

The service runs it on each worker with --data_url, --train_url, --num_gpus and the configuration's parameters, and
with --init_method, --rank and --world_size if there are several workers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_url", type=Path, required=True)
    parser.add_argument("--train_url", type=Path, required=True)
    parser.add_argument("--num_gpus", type=int, default=0)
    parser.add_argument("--learning_rate", type=float, default=0.1)
    parser.add_argument("--num_steps", type=int, default=200)
    parser.add_argument("--init_method")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world_size", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.world_size > 1:
        backend = "nccl" if args.num_gpus else "gloo"
        dist.init_process_group(backend, init_method=args.init_method, rank=args.rank, world_size=args.world_size)
    device = torch.device("cuda" if args.num_gpus else "cpu")
    rows = [json.loads(line) for line in (args.data_url / "points.jsonl").read_text().splitlines()]
    points = torch.tensor([[row["x"], row["y"]] for row in rows], device=device)[args.rank :: args.world_size]

    torch.manual_seed(0)
    model = nn.Linear(1, 1).to(device)
    trained: nn.Module = DistributedDataParallel(model) if args.world_size > 1 else model
    optimizer = torch.optim.SGD(trained.parameters(), lr=args.learning_rate)
    for step in range(args.num_steps):
        loss = nn.functional.mse_loss(trained(points[:, :1]), points[:, 1:])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if step % 50 == 0 or step == args.num_steps - 1:
            print(f"worker {args.rank} of {args.world_size}: step {step}, loss {loss.item():.6f}")

    if args.rank == 0:
        torch.save(model.state_dict(), args.train_url / "model.pt")
        result = {"slope": model.weight.item(), "intercept": model.bias.item(), "loss": loss.item()}
        (args.train_url / "result.json").write_text(json.dumps(result) + "\n")
    if args.world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
