import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
import torch
from medseg.memory import keep_freed_memory

torch.set_num_threads(1)
kept = keep_freed_memory()

def work():
    def once():
        return [torch.ones(16 << 20) for _ in range(2)]  # 64 MB each
    for _ in range(12):  # until the holes between blocks fit
        once()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        once()
    print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[1] == "thread":
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
else:
    work()
"""


def fresh_pages(where: str, **environment: str) -> tuple[bool, int]:
    """Whether the allocator was set in a new process, and the fresh pages that ten rounds of large tensors took."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, where],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    kept, pages = done.stdout.split()
    return kept == "True", int(pages)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
@pytest.mark.parametrize("where", ["main", pytest.param("thread", marks=pytest.mark.slow)])
def test_freed_blocks_are_used_again_instead_of_fresh_pages(where: str) -> None:
    kept, pages = fresh_pages(where)
    usual, usual_pages = fresh_pages(where, MEDSEG_MALLOC="0")
    assert (kept, usual) == (True, False)
    assert usual_pages > 1000
    assert pages < usual_pages / 4


def test_another_system_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from medseg import memory

    monkeypatch.setattr(sys, "platform", "win32")
    assert memory.keep_freed_memory() is False
