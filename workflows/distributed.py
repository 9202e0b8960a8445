"""One training in several processes, a GPU each, as `torchrun` starts them; without it every function is of one.

Each process loads and computes its share of every batch; gradients are averaged, losses over the batch see all of it,
and each process judges its share of the cases. The first process alone tracks and writes. One that fails tells the
first, which closes the run as FAILED and ends all.
"""

import json
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from medseg.errors import ConfigError
from workflows.failure import failure_line

logger = logging.getLogger(__name__)

LET_GO_S = 0.5
PATIENCE = timedelta(hours=2)  # the first one may draw pictures meanwhile
FAILED, HEARD = "medseg/failed", "medseg/heard"
ASKED_EVERY_S = 0.5
HEARD_WITHIN = timedelta(seconds=30)

Content = TypeVar("Content")
_store: Any = None  # torch's; what a process has to say reaches the others while they wait


def start() -> None:
    """Meet the other processes: over NCCL if there are GPUs, else gloo. Without `torchrun` there are none.

    Raises:
        ConfigError: if there are more processes than GPUs.
    """
    from torch.distributed.rendezvous import rendezvous  # not in every build of torch

    global _store
    if "LOCAL_RANK" not in os.environ:
        logger.warning(
            "one process only; for several start with: torchrun --nproc_per_node=GPUS -m monai.bundle run ..."
        )
        return
    gpus, wanted = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
    if 0 < gpus < wanted:
        raise ConfigError(f"torchrun: {wanted} processes for {gpus} GPUs; set --nproc_per_node={gpus}")
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, number, count = next(rendezvous("env://"))
    store.set_timeout(PATIENCE)
    distributed.init_process_group(
        "nccl" if gpus else "gloo",
        store=store,
        rank=number,
        world_size=count,
        timeout=PATIENCE,
    )
    _store = store
    if is_first():
        logger.info("%d processes on %s", count, "GPUs" if gpus else "the CPU")
    else:
        logging.disable(logging.INFO)  # the first one says it


def stop() -> None:
    """Leave together."""
    if have_met():
        distributed.barrier()
        # gloo's thread has yet to let go of the barrier's tensor, for which it needs Python's lock; torch 2.13 joins
        # that thread with the lock held if the wrapped network is the group's last owner: both would wait for ever
        time.sleep(LET_GO_S)
        distributed.destroy_process_group()


def have_met() -> bool:
    """Whether this is one of several processes, or was started as such."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Number of this process; 0 is the first."""
    return distributed.get_rank() if have_met() else 0


def processes() -> int:
    """How many there are."""
    return distributed.get_world_size() if have_met() else 1


def is_first() -> bool:
    """Whether this process tracks and writes."""
    return rank() == 0


def device() -> torch.device:
    """This process's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def first(action: Callable[[], None]) -> None:
    """Let the first process act before the others do, such as making files that those then find."""
    if is_first():
        action()
    wait()
    if not is_first():
        action()


def wait() -> None:
    """Go on when all have come here."""
    if have_met():
        distributed.barrier()


def share(samples: Sequence[Content]) -> list[Content]:
    """This process's part of the cases; where there are fewer cases than processes, some are judged twice."""
    return list(samples[rank() :: processes()] or samples[:1])


def own_batch(batch_size: int) -> int:
    """Samples of a batch that this process computes.

    Raises:
        ConfigError: if the processes cannot share a batch evenly.
    """
    count = processes()
    if batch_size % count:
        raise ConfigError(f"batch_size: is {batch_size}, which {count} processes cannot share; make it a multiple")
    return batch_size // count


def parallel(network: nn.Module) -> nn.Module:
    """The network as the step calls it: its gradients become the mean over all processes."""
    if processes() == 1:
        return network
    # 1x1 kernels have several strides for one layout in memory, which torch remarks on
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(network)


def same_tensors(tensors: Iterable[Tensor]) -> None:
    """Write the first process's values over those of the others, in tensors such as running statistics."""
    if processes() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def mean(values: dict[str, float]) -> dict[str, float]:
    """Mean over the processes of each figure."""
    found = gathered(values)
    return {name: sum(each[name] for each in found) / len(found) for name in values}


def gathered(content: Content) -> list[Content]:
    """What each process has, in their order."""
    if processes() == 1:
        return [content]
    found: list[Any] = [None] * processes()
    distributed.all_gather_object(found, content)
    return found


def from_first(content: Content | None) -> Content:
    """What the first process has."""
    held = [content]
    if processes() > 1:
        distributed.broadcast_object_list(held, 0)
    return held[0]  # type: ignore[return-value]


@contextmanager
def telling_the_first() -> Iterator[None]:
    """Around the work of the others: an error is told to the first process, which ends all with one line."""
    try:
        yield
    except Exception as error:
        if _store is None:
            raise
        _store.set(FAILED, json.dumps({"line": failure_line(error), "traceback": traceback.format_exc()}))
        try:
            _store.wait([HEARD], HEARD_WITHIN)
        except RuntimeError:  # the first one is gone
            raise error from None
        sys.exit(1)


@contextmanager
def hearing_the_others(close: Callable[[str, str], None]) -> Iterator[None]:
    """Around the work of the first process, which may wait in vain for one that has failed.

    Args:
        close: gets the line and the traceback of another process's error, closes the run; the process ends after it.
    """
    if _store is None or processes() == 1:
        yield
        return
    over = threading.Event()
    listening = threading.Thread(target=_listen, args=(_store, close, over), daemon=True)
    listening.start()
    try:
        yield
    except Exception:
        if not over.is_set() and _told(_store):
            listening.join()  # it ends the process
        raise
    finally:
        over.set()


def _told(store: Any) -> bool:
    """Whether another has failed; an error of this process may be nothing but the loss of that one."""
    try:
        store.wait([FAILED], timedelta(seconds=2))
    except RuntimeError:
        return False
    return True


def _listen(store: Any, close: Callable[[str, str], None], over: threading.Event) -> None:
    while not over.wait(ASKED_EVERY_S):
        if store.check([FAILED]):
            told = json.loads(store.get(FAILED))
            close(told["line"], told["traceback"])
            store.set(HEARD, "1")
            sys.stdout.flush()
            sys.stderr.write(f"{told['line']}\n")
            sys.stderr.flush()
            os._exit(1)  # the main thread may be within a library's wait for the other
