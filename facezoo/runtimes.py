"""Graphs of networks in ONNX, and ONNX Runtime or OpenVINO in place of PyTorch while encoding."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facezoo.errors import UnsupportedError, warn_once
from facezoo.folding import Watch
from facezoo.hub.tensors import digest_of
from facezoo.version import __version__

Runtime = Literal["torch", "onnxruntime", "openvino"]
OPSET = 18
"""ONNX operator set. Stay at 20 or below: from 21 on, group norm loses precision in runtimes."""
LEAST_COSINE = {torch.float32: 0.9999, torch.bfloat16: 0.999}
"""Least cosine between the outputs of a runtime and of PyTorch, by precision."""


def check_runtime(runtime: str, device: torch.device, dtype: torch.dtype) -> None:
    """Check that a runtime is installed, and supports a device and a precision.

    Raises:
        ImportError: if its extra is missing.
        UnsupportedError: if it does not support the device or the precision.
        ValueError: if it is unknown.
    """
    if runtime not in get_args(Runtime):
        expected = ", ".join(map(repr, get_args(Runtime)))
        raise ValueError(f"unknown runtime {runtime!r}; expected one of {expected}")
    if runtime == "torch":
        return
    if device.type != "cpu":
        raise UnsupportedError(
            f"runtime={runtime!r} computes on the CPU, and the device is {device}; pass "
            "device='cpu' or leave runtime out"
        )
    supported = LEAST_COSINE if runtime == "openvino" else [torch.float32]
    if dtype not in supported:
        names = " or ".join(str(d).removeprefix("torch.") for d in supported)
        raise UnsupportedError(
            f"runtime={runtime!r} computes in {names} on a CPU, not in "
            f"{str(dtype).removeprefix('torch.')}; pass another dtype or leave runtime out"
        )
    try:
        __import__(runtime)
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"runtime={runtime!r} needs an extra: pip install 'facezoo[{runtime}]'"
        ) from error


def use_runtime(
    module: nn.Module,
    runtime: Runtime,
    *,
    method: str = "forward",
    free: Sequence[int] = (0,),
    like: Sequence[int] | None = None,
) -> None:
    """Let a runtime compute a method of a module while the module encodes on a CPU.

    The graph is made when the method is first called with one tensor (B, C, H, W), in eval mode and
    without gradients. Other calls stay in PyTorch, and so does a module with other weights until
    its new graph is there. Parameters and state dict are not affected.

    Args:
        runtime: ``"torch"`` restores the method.
        free: dimensions of the input that may change from call to call.
        like: shape of the input for the graph, (B, C, H, W); None for that of the first call.
    """
    vars(module).pop(method, None)
    if runtime != "torch":
        setattr(module, method, _InRuntime(module, method, runtime, tuple(free), like))


def write_onnx(
    module: nn.Module,
    path: Path,
    inputs: Tensor,
    name: str,
    outputs: Sequence[str],
    free: Sequence[int],
    multiple: int = 0,
) -> None:
    """Write the graph of a module of one tensor.

    Args:
        module: the module, in eval mode.
        free: dimensions of the input that the graph leaves open.
        multiple: what the open sides of the images are multiples of; 0 if it is not known.
    """
    dim = torch.export.Dim
    sides = {d: multiple * dim(f"side{d}", min=1) if multiple else dim.DYNAMIC for d in free}
    shapes = {d: dim("batch") if d == 0 else sides[d] for d in free}
    # The exporter makes tensors on the default device.
    with warnings.catch_warnings(), torch.no_grad(), torch.device("cpu"):
        warnings.simplefilter("ignore")  # of the exporter about its own parts
        torch.onnx.export(
            module,
            (inputs,),
            path,
            input_names=[name],
            output_names=list(outputs),
            dynamic_shapes=(shapes,),
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            verbose=False,
        )


def open_onnx(
    path: Path, runtime: str, dtype: torch.dtype = torch.float32
) -> Callable[[Tensor], Tensor]:
    """Open a graph of one input and one output in a runtime, on as many threads as torch uses.

    Returns:
        A function of a float32 tensor; several threads may call it.
    """
    threads, lock = torch.get_num_threads(), Lock()
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        return lambda x: torch.from_numpy(session.run(None, {entry.name: x.numpy()})[0])
    import openvino

    # OpenVINO computes in bfloat16 by default where the processor supports it.
    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    settings |= {"PERFORMANCE_HINT": "LATENCY", "CACHE_DIR": str(path.parent)}
    network = openvino.Core().compile_model(str(path), "CPU", settings)
    request = network.create_infer_request()

    def run(x: Tensor) -> Tensor:
        with lock:  # a request serves one thread at a time, and reuses the memory of its output
            return torch.from_numpy(request.infer([x.numpy()], share_inputs=True)[0].copy())

    return run


class _InRuntime:
    """A method of a network that a runtime computes."""

    def __init__(
        self,
        module: nn.Module,
        method: str,
        runtime: Runtime,
        free: tuple[int, ...],
        like: Sequence[int] | None,
    ) -> None:
        self.module, self.method, self.runtime = module, method, runtime
        self.free, self.like = free, like
        self.watch: Watch | None = None
        self.run: Callable[[Tensor], Tensor] | None = None

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not self._applies(*args, **options):
            return self._in_torch(*args, **options)
        (x,) = args
        tensors = list(chain(self.module.parameters(), self.module.buffers()))
        if self.run is None or self.watch is None or not self.watch.unchanged(tensors):
            with torch.inference_mode(False):
                self.watch, self.run = Watch(tensors), self._open(x)
        return self.run(x.float().contiguous()).to(x.dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the graph, which is opened again; a copy of the module has its own."""
        return {**vars(self), "watch": None, "run": None}

    def _applies(self, *args: Any, **options: Any) -> bool:
        return (
            len(args) == 1
            and not options
            and isinstance(args[0], Tensor)
            and args[0].ndim == 4
            and args[0].device.type == "cpu"
            and args[0].dtype in LEAST_COSINE
            and len(args[0]) > 0
            and not torch.is_grad_enabled()
            and not self.module.training
            and not torch.compiler.is_compiling()
        )

    def _in_torch(self, *args: Any, **options: Any) -> Any:
        return getattr(type(self.module), self.method)(self.module, *args, **options)

    def _open(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Open the graph, from the cache if it is there, and compare it with PyTorch.

        Raises:
            UnsupportedError: if the outputs differ.
        """
        shape = list(self.like or x.shape)
        generator = torch.Generator("cpu").manual_seed(0)
        inputs = torch.randn(2, *shape[1:], generator=generator, dtype=torch.float32)
        path = _cached(self.module, [self.method, *shape[1:], *self.free])
        if not path.is_file():
            part = path.with_name(f".{os.getpid()}-{path.name}")
            module = self.module if x.dtype == torch.float32 else deepcopy(self.module).float()
            try:
                plain = _Plain(module, self.method)
                write_onnx(plain, part, inputs, "images", ["output"], self.free)
                part.replace(path)
            except Exception as error:
                raise self._unsupported(f"its graph cannot be written ({error})") from error
            finally:
                part.unlink(missing_ok=True)
        run = open_onnx(path, self.runtime, x.dtype)
        with torch.no_grad():
            expected = self._in_torch(inputs.to(x.dtype)).float().flatten(1)
            cosine = float(F.cosine_similarity(run(inputs).flatten(1), expected).min())
        if not cosine >= LEAST_COSINE[x.dtype]:
            least = LEAST_COSINE[x.dtype]
            raise self._unsupported(f"its outputs have a cosine of {cosine:.5f} (least: {least})")
        return run

    def _unsupported(self, reason: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self.runtime} {version(self.runtime)} does not compute "
            f"{type(self.module).__name__} as PyTorch does: {reason}; load the model with "
            "runtime='torch'"
        )


class _Plain(nn.Module):
    """A method of a network as a float32 module, without runtime."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, images: Tensor) -> Tensor:
        return getattr(type(self.module), self.method)(self.module, images)


def _cached(module: nn.Module, key: Sequence[object]) -> Path:
    """Return the place of a graph: by weights, input and versions; its folder can be written."""
    everything = [type(module).__name__, digest_of(module), *key, __version__, torch.__version__]
    name = f"{hashlib.sha256(repr(everything).encode()).hexdigest()[:24]}.onnx"
    folder = cache_folder()
    try:
        path = folder.expanduser() / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        return path
    except (OSError, RuntimeError) as error:  # RuntimeError: the home folder is unknown
        temporary = _temporary_folder().name
        warn_once(
            f"cannot write to {folder} ({getattr(error, 'strerror', error)}), so converted "
            f"networks are kept in {temporary} until this process ends; set XDG_CACHE_HOME to a "
            "writable folder to convert only once"
        )
        return Path(temporary, name)


def cache_folder() -> Path:
    """Return the folder of graphs: ``facezoo/runtimes`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "facezoo", "runtimes")


@cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="facezoo-runtimes-")
