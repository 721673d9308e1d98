"""The same work on a GPU many times over: captured once, and replayed as a whole."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch

from autodistill_sam3.devices import MAKING_CODE


def run_and_undo(function: Callable[[], None], state: Sequence[torch.Tensor]) -> None:
    """Run a function for the sake of what it leaves elsewhere, and give tensors the values that they had before."""
    before = [tensor.clone() for tensor in state]
    function()
    for tensor, value in zip(state, before, strict=True):
        tensor.copy_(value)


class StepGraphs:
    """Runs functions, on CUDA as graphs; elsewhere as they are.

    A function reads and writes tensors that stay where they are, makes nothing that outlives it, and never waits for
    the GPU. Replaying needs no Python and launches some hundred kernels at once. All results are a graph's, the first
    one too: launched one by one, another kernel may be chosen, and the last bits may differ.

    To capture one, torch waits for the whole device, gives unused memory back to it and in older versions collects
    garbage: that may take tenths of a second, once for each key. Other threads may use the GPU meanwhile, in streams of
    their own, but must not wait for the device as a whole.

    Args:
        device: Where.
        kept: How many graphs there are at most; that which was not used the longest goes.
    """

    def __init__(self, device: torch.device, kept: int) -> None:
        self._device = device
        self._kept = kept
        self._graphs: OrderedDict[Hashable, torch.cuda.CUDAGraph] = OrderedDict()
        self._stream: torch.cuda.Stream | None = None

    def run(self, key: Hashable, function: Callable[[], None], state: Sequence[torch.Tensor]) -> None:
        """Have the work of a function done once, on this thread's queue.

        Args:
            key: Functions of the same key do the same.
            function: Not called if there is a graph. To make one it is called twice: run and undone, then captured.
            state: What the function both reads and changes, for undoing it. What else it writes must come out the
                same if it is written twice.
        """
        if self._device.type != "cuda":
            function()
            return
        if key not in self._graphs:
            with MAKING_CODE:
                self._graphs[key] = self._captured(function, state)
                if len(self._graphs) > self._kept:
                    self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        self._graphs[key].replay()

    def clear(self) -> None:
        """Forget all graphs, before the tensors go that they work on."""
        with MAKING_CODE:
            self._graphs.clear()

    def _captured(self, function: Callable[[], None], state: Sequence[torch.Tensor]) -> torch.cuda.CUDAGraph:
        if self._stream is None:
            # A graph keeps the priority of the stream in which it was captured: that of `devices.aside`.
            self._stream = torch.cuda.Stream(self._device, priority=-1)  # type: ignore[no-untyped-call]  # no types
        here = torch.cuda.current_stream(self._device)
        # The first call makes what libraries make once, which cannot be captured. Capturing runs nothing.
        self._stream.wait_stream(here)
        try:
            with torch.cuda.stream(self._stream):
                run_and_undo(function, state)
        finally:
            # Also if memory ends, since whoever waits for this thread's queue means this work, too.
            here.wait_stream(self._stream)
        # The graphs never run at the same time and leave nothing in their memory, so that all can use the same.
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local")
        with capture:
            function()
        return graph
