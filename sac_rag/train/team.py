"""Data parallelism for training: the processes that `train/launch.py` or `torchrun` started, or just this one."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from sac_rag.errors import ConfigError


@dataclass(frozen=True)
class Team:
    """This process's `rank` among `size`; rank 0 alone writes files."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Team:
        """The team that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR), alone without one."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            # A process that ends with the group's threads alive aborts now and then, though its work is done.
            atexit.register(dist.destroy_process_group)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def mine(self, parts: int) -> range:
        """Which micro-batches of a step this process computes; raises ConfigError when there are too few."""
        if parts < self.size:
            raise ConfigError(f"accumulate is {parts} for {self.size} processes; give each at least one micro-batch")
        return range(self.rank, parts, self.size)

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over the team, in one transfer."""
        if self.size == 1:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(flat)
        for p, g in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = g.view_as(p)

    def add(self, values: Sequence[float]) -> list[float]:
        """Sums of a few numbers over the team."""
        if self.size == 1:
            return list(values)
        t = torch.tensor(values, dtype=torch.float64)
        if dist.get_backend() == "nccl":
            t = t.cuda()
        dist.all_reduce(t)
        return t.tolist()

    def meet(self) -> None:
        """Wait for the others."""
        self.any(False)

    def any(self, mine: bool) -> bool:
        """Whether any process says yes; a call is a meeting point."""
        return bool(self.add([float(mine)])[0])
