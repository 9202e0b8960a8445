import importlib.metadata
import shutil
import subprocess
from types import SimpleNamespace

import psutil
import pytest
import torch

from medseg import doctor
from medseg.errors import ConfigError

H200 = "NVIDIA H200 with driver 580.159.03"


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor, "driver_gpus", lambda: "")


@pytest.fixture
def two_gpus(monkeypatch):
    gpu = SimpleNamespace(name="NVIDIA H200", total_memory=139 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _number: gpu)


def test_report_says_what_there_is(no_gpu):
    found = dict(doctor.report())
    assert list(found) == ["medseg", "system", "Python", "CPU", "memory", "disk", "torch", "GPU", "training"]
    assert "not a medical device" in found["medseg"]
    assert found["memory"].startswith(f"{psutil.virtual_memory().total / 2**30:.1f} GiB, ")
    assert found["torch"].startswith(torch.__version__)
    assert all("\n" not in finding for finding in found.values())


def test_machine_without_a_gpu_uses_the_cpu(no_gpu):
    assert doctor.gpu_finding() == "none; medseg runs on the CPU"


def test_usable_gpus_are_named(two_gpus):
    assert doctor.gpu_finding() == "NVIDIA H200 (139.0 GiB), NVIDIA H200 (139.0 GiB)"


def test_gpu_that_a_cpu_build_cannot_use_is_told(no_gpu, monkeypatch):
    monkeypatch.setattr(doctor, "driver_gpus", lambda: H200)
    monkeypatch.setattr(torch.version, "cuda", None)
    finding = doctor.gpu_finding()
    assert finding.startswith(f"{H200} is there, but torch cannot use it: this is torch's CPU build")
    assert "https://pytorch.org/get-started/locally" in finding


def test_gpu_that_a_cuda_build_cannot_use_is_told(no_gpu, monkeypatch):
    monkeypatch.setattr(doctor, "driver_gpus", lambda: H200)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "its CUDA 13.0 needs a newer driver, or CUDA_VISIBLE_DEVICES hides" in doctor.gpu_finding()


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (0, "NVIDIA H200, 580.159.03\n", H200),
        (0, "NVIDIA A, 1\nNVIDIA B, 1\n", "NVIDIA A with driver 1; NVIDIA B with driver 1"),
        (9, "NVIDIA-SMI has failed because it couldn't communicate with the driver\n", ""),
    ],
)
def test_driver_is_asked(monkeypatch, status, text, expected):
    monkeypatch.setattr(shutil, "which", lambda _name: "nvidia-smi")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=status, stdout=text))
    assert doctor.driver_gpus() == expected


def test_driver_that_hangs_is_no_driver(monkeypatch):
    def hang(command, **_options):
        raise subprocess.TimeoutExpired(command, 30)

    monkeypatch.setattr(shutil, "which", lambda _name: "nvidia-smi")
    monkeypatch.setattr(subprocess, "run", hang)
    assert doctor.driver_gpus() == ""


def test_no_driver_is_asked_where_there_is_none(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert doctor.driver_gpus() == ""


def test_missing_extra_is_named_with_its_command(no_gpu, monkeypatch):
    version = importlib.metadata.version

    def without_mlflow(package):
        if package == "mlflow":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", without_mlflow)
    assert dict(doctor.report())["training"] == "not possible, mlflow missing: pip install 'medseg[train]'"


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1", "cpu"])
def test_device_that_is_there_is_taken(two_gpus, name):
    assert doctor.choose_device(name) == name


def test_auto_takes_the_gpu_if_there_is_one(two_gpus):
    assert doctor.choose_device("auto") == "cuda"


def test_auto_takes_the_cpu_otherwise(no_gpu):
    assert doctor.choose_device("auto") == "cpu"


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_gpu_that_torch_does_not_see_is_refused(no_gpu, name):
    with pytest.raises(ConfigError, match=rf"device '{name}' is not usable, torch sees 0 GPUs; medseg doctor says why"):
        doctor.choose_device(name)


def test_gpu_number_that_is_not_there_is_refused(two_gpus):
    with pytest.raises(ConfigError, match="device 'cuda:2' is not usable, torch sees 2 GPUs"):
        doctor.choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "CUDA", "cuda:x", "cuda:-1", ""])
def test_unknown_device_is_refused(two_gpus, name):
    with pytest.raises(ConfigError, match=r"is unknown; use auto, cpu, cuda or cuda:N"):
        doctor.choose_device(name)
