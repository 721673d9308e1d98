"""Which device a model runs on and in which precision; what is queued on a GPU; memory that ends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from autodistill_sam3.errors import DeviceError, OutOfMemoryError, SettingError
from autodistill_sam3.stages import current, stage

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "bf16", "fp16", "fp32"]
T = TypeVar("T")

# Held while code or a graph for a GPU is made: compiling may wait for the whole device, which must not be while another
# thread captures, as unused memory must not be given back; what is compiled already refuses to run while another thread
# compiles.
MAKING_CODE = threading.RLock()

# Streams beside the queue that no thread uses at the moment. Memory that was used in one is never used in another, so
# that there must not be more than threads.
_idle_streams: dict[str, list[Any]] = {}
# More than 20 prompts and 20 masks an image take with three batches in flight: 9 GB were reserved, weights included, at
# batch 8 (docs/performance.md).
_BYTES_PER_IMAGE = 1.7e9

# What torch says when memory ends, in a plain RuntimeError, outside its own caching allocator.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "ALLOC_FAILED", "out of memory")


def select_device(device: str | None = None) -> torch.device:
    """The device to run on.

    Args:
        device: A torch device name such as `"cpu"`, `"cuda:1"` or `"mps"`. None takes the first of CUDA, MPS and CPU
            that is there.

    Raises:
        DeviceError: The name is unknown, or this machine has no such device.

    Example:
        >>> select_device("cpu")
        device(type='cpu')
    """
    import torch

    has_mps = torch.backends.mps.is_available()
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        selected = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"Expected a device such as 'cpu' or 'cuda:1', received {device!r}") from error
    available = torch.cuda.device_count()
    if selected.type == "cuda" and (selected.index or 0) >= available:
        raise DeviceError(f"Expected one of the {available} CUDA devices of this machine, received {device!r}")
    if selected.type == "mps" and not has_mps:
        raise DeviceError("This machine has no MPS device; pass device='cpu'")
    if selected.type == "cuda" and selected.index is None:
        # By its number, since each thread has a current device of its own.
        return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_initialized() else 0)
    return selected


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to, or None for ``float32``.

    Args:
        precision: `"auto"` takes bf16 on GPUs that compute in it, fp16 on those that do not, fp32 on CPU and MPS.
        device: Where the model runs.

    Raises:
        SettingError: The precision is unknown.
    """
    import torch

    if precision not in get_args(Precision):
        raise SettingError(f"Expected precision to be one of {get_args(Precision)}, received {precision!r}")
    if precision == "auto":
        if device.type != "cuda":
            return None
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if has_bf16 else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]


def precision_name(precision: Precision, device: torch.device) -> str:
    """What "auto" stands for on a device: "bf16", "fp16" or "fp32".

    Raises:
        SettingError: The precision is unknown.
    """
    import torch

    dtype = autocast_dtype(precision, device)
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32") if dtype else "fp32"


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[None]:
    """A context in which torch computes in `dtype`; nothing when it is None."""
    import torch

    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context without autocast, for the few places that need all bits."""
    import torch

    return torch.autocast(device.type, enabled=False)


@contextlib.contextmanager
def gpu_stage(name: str, device: torch.device) -> Iterator[None]:
    """Add the time that a device needs for the block's work to a stage, if anybody records; nothing waits for it."""
    import torch

    times = current()
    if times is None or device.type != "cuda":
        with stage(name):
            yield
        return
    origin, start, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))  # type: ignore[no-untyped-call]
    if times.origin is None:
        origin.record(torch.cuda.current_stream(device))
        times.origin = origin
    start.record(torch.cuda.current_stream(device))
    yield
    end.record(torch.cuda.current_stream(device))

    def interval() -> tuple[float, float] | None:
        if not (times.origin.query() and end.query()):  # type: ignore[no-untyped-call]
            return None
        return times.origin.elapsed_time(start) / 1000, times.origin.elapsed_time(end) / 1000

    times.add_gpu(name, interval)


@contextlib.contextmanager
def queue(device: torch.device, stream: torch.cuda.Stream | None) -> Iterator[None]:
    """A context in which this thread adds to what another one has queued on a GPU.

    Args:
        device: Where.
        stream: From :func:`queue_of`, in the other thread.
    """
    import torch

    if stream is None:
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield


def queue_of(device: torch.device) -> torch.cuda.Stream | None:
    """Where this thread's work on a GPU goes; None on other devices."""
    import torch

    return torch.cuda.current_stream(device) if device.type == "cuda" else None


@contextlib.contextmanager
def finished(device: torch.device) -> Iterator[None]:
    """A context that is left when all that this thread queued on a GPU is done, also by an exception."""
    import torch

    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.current_stream(device)
    try:
        with torch.cuda.device(device):
            yield
    finally:
        stream.synchronize()


def mark(device: torch.device) -> torch.cuda.Event | None:
    """A point behind all that this thread has queued on a GPU so far; None on other devices."""
    import torch

    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types for it
    event.record(torch.cuda.current_stream(device))
    return event


def follow(event: torch.cuda.Event | None, *tensors: torch.Tensor) -> None:
    """Have what this thread queues next wait for a point.

    Args:
        event: From :func:`mark`.
        tensors: Made before it in another stream, and from now on used in this one alone.
    """
    import torch

    if event is None:
        return
    stream = torch.cuda.current_stream(tensors[0].device) if tensors else torch.cuda.current_stream()
    event.wait(stream)
    for tensor in tensors:
        tensor.record_stream(stream)


@contextlib.contextmanager
def aside(device: torch.device, after: torch.cuda.Event | None = None) -> Iterator[None]:
    """A context in which this thread's work goes past what is queued on a GPU, the next batch, say.

    Tensors of the queue must outlive their use here, so results are waited for in the context. What is made here for
    the queue goes through :func:`follow`.

    Args:
        device: Where.
        after: What to wait for all the same.
    """
    import torch

    if device.type != "cuda":
        yield
        return
    idle = _idle_streams.setdefault(str(device), [])
    try:
        stream = idle.pop()
    except IndexError:
        stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]  # torch has no types
    try:
        # The device as well: leaving a stream goes back to the one of the device before.
        with torch.cuda.device(device), torch.cuda.stream(stream):
            follow(after)
            yield
    finally:
        idle.append(stream)


def batch_that_fits(device: torch.device, largest: int) -> int:
    """The images that a batch may have so that three batches at once fit the memory that is free, at full size.

    Args:
        device: With the models loaded.
        largest: Halved until it fits, down to 1. On a CPU it is 1, since batches gain nothing there.
    """
    import torch

    if device.type == "cpu":
        return 1
    if device.type != "cuda" or not torch.cuda.is_available():
        # Of what is not CUDA's, or is another machine's, the memory is not known.
        return largest
    free = torch.cuda.mem_get_info(device)[0]
    batch = largest
    while batch > 1 and batch * _BYTES_PER_IMAGE > free:
        batch //= 2
    return batch


def with_memory_errors(compute: Callable[[], T], release: Callable[[], None] | None = None) -> T:
    """The result of `compute`; if memory ends, what was computed is let go, so that less can be tried.

    Args:
        compute: May end the memory.
        release: Lets go of what is kept between calls.

    Raises:
        OutOfMemoryError: The device's memory, or the machine's, ended.
    """
    import torch

    try:
        return compute()
    except (MemoryError, RuntimeError) as error:
        is_ours = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not is_ours and not any(text in str(error) for text in _OUT_OF_MEMORY):
            raise
        reason = str(error).partition("\n")[0]
    # Only here, where the exception no longer holds the tensors of the frames that it went through.
    if release is not None:
        release()
    if torch.cuda.is_available():
        with MAKING_CODE:
            torch.cuda.empty_cache()
    raise OutOfMemoryError(f"Out of memory: {reason} Use a smaller batch_size, fewer prompts, or precision='bf16'.")


def cast_weights(modules: Iterable[torch.nn.Module | None], dtype: torch.dtype | None) -> None:
    """Store in `dtype` what autocast would cast to it at every use: the same numbers, half the memory.

    Args:
        modules: Whose linear layers and convolutions are cast; not what computes in full precision all the same.
        dtype: None leaves them as they are.
    """
    from torch import nn

    if dtype is None:
        return
    for module in modules:
        for part in module.modules() if module is not None else ():
            if isinstance(part, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                part.to(dtype)
