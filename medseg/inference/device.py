"""Which device a prediction runs on."""

from medseg.errors import ConfigError


def choose_device(name: str) -> str:
    """`"auto"`, `"cpu"`, `"cuda"` or `"cuda:N"` -> what torch can use here; `"auto"` takes a GPU if there is one.

    Raises:
        ConfigError: if torch cannot use that device.
    """
    import medseg.quick_torch  # noqa: F401  # isort: skip (before torch)
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if name in ("cpu", *(f"cuda:{number}" for number in range(count))) or (name == "cuda" and count):
        return name
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise ConfigError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N")
    raise ConfigError(f"device {name!r} is not usable, torch sees {count} GPUs; medseg doctor says why, or use cpu")
