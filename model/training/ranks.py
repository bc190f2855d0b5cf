"""Training in several processes, which torchrun starts: every process trains on its part of each batch."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.engines.base import DeviceName
from model.errors import ModelError, TrainingError

# A rank waits for the main one while that decodes a folder of images. torchrun ends all ranks if one has ended.
_TIMEOUT = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a run, and the number of this one. The default is a run in one process.

    The batches and all random numbers of the augmentation are those of a run in one process. All ranks draw them, and
    each rank uses its part.

    Attributes:
        rank: of this process, from 0. Rank 0 is the main one, which reports and writes files.
        size: number of processes.
        joined: whether they are a process group of torch.distributed.
    """

    rank: int = 0
    size: int = 1
    joined: bool = False

    @property
    def main(self) -> bool:
        return self.rank == 0

    def splitting(self, batch: int) -> Self:
        """These ranks, if a batch has an image for each of them. Otherwise every rank takes the whole batch."""
        return self if batch >= self.size else type(self)()

    def part(self, count: int) -> slice:
        """The part of `count` values that is this rank's."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def mean(self, part: Tensor, count: int) -> Tensor:
        """This rank's term of the mean of `count` values: the mean of the terms of all ranks is that of the values.

        Args:
            part: this rank's values, float[N].
            count: of the values of all ranks.
        """
        return part.sum() * (self.size / count)

    def gather(self, part: Tensor, count: int) -> Tensor:
        """The `count` values of all ranks, float[count, ...], from the part of each. Without gradients."""
        if self.size == 1:
            return part
        values = part.new_zeros(count, *part.shape[1:])
        values[self.part(count)] = part
        dist.all_reduce(values)
        return values

    def average(self, value: Tensor) -> float:
        """The mean of a number of each rank."""
        if self.size > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
        return value.item() / self.size

    def follow(self, values: Tensor) -> None:
        """Replace values by those of the main rank, for which the others wait."""
        if self.size > 1:
            dist.broadcast(values, src=0)

    def agree(self, decision: bool) -> bool:
        """The decision of the main rank, for which the others wait."""
        flag = torch.tensor([decision])
        self.follow(flag)
        return bool(flag)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block in the main rank, and then in the others."""
        if not self.main:
            self.agree(False)
        yield
        if self.main:
            self.agree(True)

    def collect(self, state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """A state of each rank, in their order."""
        states = [state] * self.size
        if self.size > 1:
            dist.all_gather_object(states, state)
        return states

    def replicate(self, net: nn.Module, device: torch.device) -> nn.Module:
        """A module that runs `net`, and in the backward pass replaces its gradients by their mean over the ranks."""
        if not self.joined:
            return net
        return DistributedDataParallel(net, device_ids=[device] if device.type == "cuda" else None)


@contextmanager
def joined_ranks(device: DeviceName) -> Iterator[Ranks]:
    """Join the other processes that torchrun has started. In a process without torchrun there is one rank.

    The backend is NCCL for tensors on CUDA devices and gloo for all others. Each rank has the CUDA device of its local
    number. Errors of all ranks but the main one name the rank. An interrupt ends those ranks silently.

    Raises:
        TrainingError: there are more ranks than CUDA devices, or the connection to another rank is lost.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield Ranks()
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        local, devices = dist.get_node_local_rank(), torch.cuda.device_count()
        if local >= devices:
            raise TrainingError(
                f"rank {local} of this machine has no CUDA device, of which there are {devices}: lower --nproc-per-node"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), joined=True)
    try:
        yield ranks
    except ModelError as error:
        if ranks.main:
            raise
        raise TrainingError(f"in rank {ranks.rank}: {error}") from error
    except KeyboardInterrupt as error:
        if ranks.main:
            raise
        raise SystemExit(130) from error
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise TrainingError(
                f"rank {ranks.rank} has lost the connection to another rank: see its error, then continue with the "
                "same command and --resume"
            ) from error
        raise
    finally:
        dist.destroy_process_group()
