"""The processes of one training, as torchrun starts them: rank 0 leads, the others compute their share of its calls."""

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

# The variable that names the file in which rank 0 leaves its exit code.
EXIT_CODE_FILE = "RANK_0_EXIT_CODE_FILE"


def join(timeout: timedelta) -> None:
    """Meet the other processes, if ``WORLD_SIZE`` says that there are any; none waits longer than ``timeout`` for one.

    Raises:
        ValueError: torchrun's variables do not fit together, or this machine has fewer GPUs than processes.
        RankLostError: the others were not met.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    backend = "gloo"
    if torch.cuda.is_available():
        local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= devices:
            raise ValueError(f"LOCAL_RANK is {local}, this machine has {devices} GPUs: start one process for each")
        torch.cuda.set_device(local)
        # Calls go over the CPU: a rank that waits for one hears at once that rank 0 is gone.
        backend = "cpu:gloo,cuda:nccl"
    with _together():
        distributed.init_process_group(backend, timeout=timeout)


def rank() -> int:
    """Which process this is; 0 leads."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def broadcast_call(*call: Any) -> None:
    """On rank 0: have the others do the same; elsewhere, and alone, nothing."""
    if size() > 1 and rank() == 0:
        with _together():
            distributed.broadcast_object_list([call], src=0)


def receive_call() -> Call | None:
    """On the others: what rank 0 tells next; None at the end."""
    heard: list[Call] = [()]
    with _together():
        distributed.broadcast_object_list(heard, src=0)
    return heard[0] or None


def leave() -> None:
    """End well: rank 0 lets the others go."""
    if distributed.is_initialized():
        broadcast_call()
        distributed.destroy_process_group()


def leave_word(code: ExitCode) -> None:
    """On rank 0: whatever becomes of the other processes now, this is how the training ended."""
    if rank() == 0 and (path := os.environ.get(EXIT_CODE_FILE)):
        Path(path).write_text(str(int(code)))


def copy_from_first(tensors: Iterable[torch.Tensor]) -> None:
    """Make all ranks' tensors those of rank 0."""
    if size() > 1:
        with _together(), torch.no_grad():
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, in place, on each of them."""
    if size() > 1:
        with _together():
            distributed.all_reduce(tensor)
    return tensor


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(error) from error
