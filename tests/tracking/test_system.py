import os
import threading
import time

import psutil
import pytest
import torch

from medseg.tracking import start_run, system
from medseg.tracking.system import Watch, system_load


def test_load_has_mlflows_names_and_true_sizes():
    psutil.cpu_percent()
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        pass
    load = system_load()
    assert 0 < load["system/cpu_utilization_percentage"] <= 100
    own = psutil.Process(os.getpid()).memory_info().rss / 1e6
    assert load["system/process_memory_megabytes"] == pytest.approx(own, rel=0.1)
    assert 0 < load["system/system_memory_usage_percentage"] < 100
    assert load["system/system_memory_usage_megabytes"] < psutil.virtual_memory().total / 1e6


def test_watch_tells_until_it_is_stopped(monkeypatch):
    monkeypatch.setattr(system, "SAMPLE_S", 0.01)
    told = []
    twice = threading.Event()

    def tell(load):
        told.append(load)
        if len(told) == 2:
            twice.set()

    watch = Watch(tell, name="a")
    assert twice.wait(10)
    watch.stop()
    number = len(told)
    time.sleep(0.1)
    assert len(told) == number


def test_watch_that_cannot_tell_ends_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(system, "SAMPLE_S", 0.01)

    def tell(load):
        raise ValueError

    watch = Watch(tell, name="a")
    watch._thread.join(10)
    assert not watch._thread.is_alive()
    assert "the system's load is not recorded any more (ValueError)" in caplog.text


def test_load_is_recorded_with_the_run_and_ends_with_it(tmp_path, monkeypatch, new_store):
    monkeypatch.setattr(system, "SAMPLE_S", 0.05)
    run = start_run(runs_dir=new_store(tmp_path), experiment="unet_liver")
    while not run.history():
        time.sleep(0.05)
    run.finish("FINISHED")
    kept = run._outbox.client.get_metric_history(run.run_id, "system/cpu_utilization_percentage")
    assert kept
    assert not any(thread.name == f"system of {run.folder.name}" for thread in threading.enumerate())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_load_of_a_gpu_that_is_used_is_measured():
    held = torch.zeros(2**28, device="cuda")  # 1 GiB
    load = system_load()
    assert load["system/gpu_0_memory_usage_megabytes"] > held.nbytes / 1e6
    assert 0 < load["system/gpu_0_memory_usage_percentage"] <= 100
