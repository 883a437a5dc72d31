"""Several ranks on this machine, over gloo: for tests of what ranks agree on."""

import faulthandler
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

multiprocessing.set_forkserver_preload(["torch._dynamo", "torch.distributed"])  # once for all ranks of all tests


def run_ranks(run: Callable[[int, str], None], folder: Path, world: int = 2) -> None:
    """Call ``run(rank, folder)`` in a process for each rank; what a rank that died was doing is part of the error."""
    try:
        arguments = (run, str(folder), world)
        torch.multiprocessing.start_processes(_run, arguments, nprocs=world, start_method="forkserver")  # pyright: ignore[reportPrivateImportUsage]
    except Exception as error:
        for trace in sorted(folder.glob("rank*.trace")):
            error.add_note(f"{trace.name}:\n{trace.read_text()}")
        raise


def _run(rank: int, run: Callable[[int, str], None], folder: str, world: int) -> None:
    with Path(folder, f"rank{rank}.trace").open("w") as trace:
        faulthandler.enable(trace)
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world)
        run(rank, folder)
        dist.barrier()  # a rank that leaves early closes connections which another one may still need
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # while Python shuts down, a thread of torch that asks for its lock may abort the process
