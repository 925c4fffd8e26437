"""The processes (ranks) of one distributed training, started by torchrun.

Rank 0 leads: it broadcasts its calls to the encoder, and the worker ranks compute their share of each.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from trainers.errors import RankLostError
from trainers.exit_codes import ExitCode

Call = tuple[Any, ...]

# Environment variable with the path of the file to which rank 0 writes its exit code.
EXIT_CODE_FILE = "RANK_0_EXIT_CODE_FILE"


def init_process_group(timeout: timedelta) -> None:
    """Join the process group if ``WORLD_SIZE`` is above 1; every collective operation fails after ``timeout``.

    Raises:
        ValueError: torchrun's variables are inconsistent, or this machine has fewer GPUs than processes.
        RankLostError: the other ranks did not join.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    backend = "gloo"
    if torch.cuda.is_available():
        local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= devices:
            raise ValueError(f"LOCAL_RANK is {local}, this machine has {devices} GPUs: start one process for each")
        torch.cuda.set_device(local)
        # Calls are broadcast on the CPU: there a waiting rank notices at once that rank 0 is gone.
        backend = "cpu:gloo,cuda:nccl"
    with _collective():
        distributed.init_process_group(backend, timeout=timeout)


def rank() -> int:
    """This process's rank; 0 leads, and is also the rank of a single process."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def broadcast_call(*call: Any) -> None:
    """On rank 0: send a call to the worker ranks, an empty one to end them. On other ranks a no-op."""
    if world_size() > 1 and rank() == 0:
        with _collective():
            distributed.broadcast_object_list([call], src=0)


def receive_call() -> Call | None:
    """On a worker rank: wait for rank 0's next call; None at the end."""
    received: list[Call] = [()]
    with _collective():
        distributed.broadcast_object_list(received, src=0)
    return received[0] or None


def destroy_process_group() -> None:
    """Leave the process group after success; on rank 0 this also ends the worker ranks."""
    if distributed.is_initialized():
        broadcast_call()
        distributed.destroy_process_group()


def write_exit_code(code: ExitCode) -> None:
    """On rank 0: write the training's exit code for ``trainers.torchrun``, whatever happens to the other ranks."""
    if rank() == 0 and (path := os.environ.get(EXIT_CODE_FILE)):
        Path(path).write_text(str(int(code)))


def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite the tensors of all ranks with those of rank 0, in place."""
    if world_size() > 1:
        with _collective(), torch.no_grad():
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, in place and on each of them."""
    if world_size() > 1:
        with _collective():
            distributed.all_reduce(tensor)
    return tensor


@contextmanager
def _collective() -> Iterator[None]:
    # torch raises RuntimeErrors of many kinds when a peer dies or times out.
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(error) from error
