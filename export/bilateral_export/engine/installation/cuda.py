"""The NVIDIA GPUs of this machine, asked of the driver; needs no CUDA toolkit."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from bilateral_export.errors import UserError

# CUdevice_attribute, cuda.h.
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True)
class Device:
    """One GPU, as CUDA_VISIBLE_DEVICES lets this process see it.

    Attributes:
        name: Such as "NVIDIA H200".
        sm: 10 * major + minor of its compute capability, such as 90.
        total_bytes: Its memory.
        free_bytes: What of it no process holds now.
    """

    name: str
    sm: int
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver: the CUDA version it supports, such as (13, 0), and its devices."""

    cuda: tuple[int, int]
    devices: tuple[Device, ...]


def read_driver() -> Driver | None:
    """Return what the driver says, or None without a driver that starts."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    if cuda.cuInit(0) != 0:
        return None
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return Driver(
        (version.value // 1000, version.value % 1000 // 10),
        tuple(_read_device(cuda, index) for index in range(count.value)),
    )


def has_gpu() -> bool:
    """Return whether a GPU is visible to this process."""
    driver = read_driver()
    return driver is not None and bool(driver.devices)


def device_sm() -> int:
    """Return the first visible GPU's SM, such as 90.

    Raises:
        UserError: There is no GPU.
    """
    driver = read_driver()
    if driver is None or not driver.devices:
        raise UserError(
            "no NVIDIA GPU is visible", "A full TensorRT needs one; see CUDA_VISIBLE_DEVICES."
        )
    return driver.devices[0].sm


def _read_device(cuda: ctypes.CDLL, index: int) -> Device:
    device = ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(name, len(name), device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    total, free = ctypes.c_size_t(), ctypes.c_size_t()
    context = ctypes.c_void_p()
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    # Free memory is told only within a context.
    if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0:
        cuda.cuCtxPushCurrent_v2(context)
        cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        cuda.cuCtxPopCurrent_v2(ctypes.byref(context))
        cuda.cuDevicePrimaryCtxRelease_v2(device)
    return Device(name.value.decode(), 10 * major.value + minor.value, total.value, free.value)
