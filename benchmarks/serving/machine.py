"""The hardware and the versions of a measurement."""

import os
import platform
from importlib import metadata

import torch

from model.training.loop import cpu_name, git_commit

_PACKAGES = (
    "fastapi",
    "httptools",
    "litserve",
    "mosec",
    "numpy",
    "openvino",
    "pillow",
    "python-multipart",
    "starlette",
    "torch",
    "torchvision",
    "uvicorn",
    "uvloop",
)


def hardware() -> dict[str, str | int | float | None]:
    """Processor, cores, memory, GPU if there is one, and operating system."""
    return {
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def versions() -> dict[str, str | None]:
    """Versions of Python, of this repository and of the packages of the servers; None if not installed."""
    return {
        "python": platform.python_version(),
        "tenfold": git_commit(),
        **{name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
