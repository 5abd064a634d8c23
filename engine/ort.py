"""ONNX Runtime on the CPU: the portable backend. Nothing else imports onnxruntime."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from vitrify.engine import native_library
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import BackendError, SpecError
from vitrify.engine.memory import release_free_memory
from vitrify.engine.session import Array, Backend, Plan, Session, check_signature
from vitrify.engine.specs import GraphSpec, TensorSpec

__all__ = ["KernelMode", "OrtCpuBackend", "installed_flavour"]

KernelMode = Literal["auto", "native", "portable"]

_LOG = logging.getLogger(__name__)
_DTYPE_OF_ORT = {dtype.ort: dtype for dtype in DType}


def installed_flavour() -> str:
    """The installed distribution, `onnxruntime` or `onnxruntime-gpu`.

    Raises BackendError naming the commands when there is none, or when both share (and break) one directory.
    """
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    if not found:
        raise BackendError(
            "ONNX Runtime is not installed; run: pip install 'vitrify[cpu]' (CPU) or pip install 'vitrify[cuda]' (NVIDIA GPU)"
        )
    if len(found) > 1:
        raise BackendError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; run: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then exactly one of: "
            "pip install 'vitrify[cpu]', pip install 'vitrify[cuda]'"
        )
    return found[0]


def _import_onnxruntime() -> Any:
    installed_flavour()
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"ONNX Runtime is installed but does not load: {error}; reinstall it: pip install 'vitrify[cpu]'"
        ) from error
    return onnxruntime


class OrtCpuBackend(Backend):
    """Sessions on the CPU that share one thread pool.

    kernels: "auto" runs our native kernels where the op library is installed, else the ops' bodies;
        "native" insists (BackendError without the library); "portable" always runs the bodies.
    ops: what an artifact's graphs use, op → version. Where the library lacks one of them, "auto" leaves the whole library out and
        says so once, "native" is a BackendError.
    threads: threads of a pool shared by every session of the process (None: one per CPU that the process may use). ONNX Runtime
        makes that pool once: a later backend that asks for another number is a BackendError.
    Raises SpecError for an unknown `kernels` and for `threads` that are no number of threads.
    """

    name = "cpu"

    def __init__(self, *, kernels: KernelMode = "auto", threads: int | None = None, ops: Mapping[str, int] | None = None) -> None:
        if kernels not in get_args(KernelMode):
            raise SpecError(f"kernels={kernels!r} is unknown; known: {', '.join(get_args(KernelMode))}")
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise SpecError(f"threads={threads!r}: expected a whole number of at least 1, or None for one per core")
        self._ort = _import_onnxruntime()
        _POOL.ensure(self._ort, threads)
        library = native_library.path() if kernels != "portable" else None
        if kernels == "native" and library is None:
            raise BackendError(
                "kernels='native' was asked for, but this installation has no op library; reinstall vitrify with a C++ compiler, "
                "or use kernels='portable'"
            )
        if kernels == "auto" and library is None:
            _say_portable()
        if library is not None:
            lacking = _lacking(ops or {}, native_library.ops())
            if lacking and kernels == "native":
                raise BackendError(
                    f"kernels='native' was asked for, but {lacking}; install the vitrify that compiled the artifact, "
                    "export it again with this one, or use kernels='portable'"
                )
            if lacking:
                _say_lacking(lacking)
                library = None
        self._library = library
        self._native_ops = dict(native_library.ops()) if library is not None else {}

    @property
    def native_ops(self) -> Mapping[str, int]:
        return self._native_ops

    def open(self, path: Path, spec: GraphSpec) -> Session:
        return self._open(os.fspath(path), spec, self._options())

    def open_bytes(self, model: bytes, folder: Path, spec: GraphSpec) -> Session:
        """Open a graph held in memory; its external data lies in `folder`."""
        options = self._options()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.fspath(folder))
        return self._open(model, spec, options)

    def _options(self) -> Any:
        options = self._ort.SessionOptions()
        options.use_per_session_threads = False
        options.log_severity_level = 4  # an error's text comes with its exception, and is not to stand on stderr twice
        # Activations come from an arena that a session keeps: without it every step maps and unmaps its pages anew
        # (measured: 1.17 × the step). Weights stay outside, where a prepacked original is freed at once.
        options.enable_cpu_mem_arena = True
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        if self._library is not None:
            options.register_custom_ops_library(str(self._library))
        return options

    def _open(self, model: str | bytes, spec: GraphSpec, options: Any) -> Session:
        try:
            session = self._ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BackendError(
                f"{spec.path}: ONNX Runtime {self._ort.__version__} cannot open it: {str(error).strip()[:500]}"
            ) from error
        release_free_memory()
        return _OrtSession(session, spec, self._ort.OrtValue)


@lru_cache(maxsize=1)
def _say_portable() -> None:
    """Once per process."""
    _LOG.warning("no op library is installed: our ops run as their portable bodies; reinstall vitrify with a C++ compiler")


def _lacking(needed: Mapping[str, int], offered: Mapping[str, int]) -> str:
    """What the library does not offer of the ops needed, for a message; empty if nothing."""
    missing = {name: version for name, version in sorted(needed.items()) if offered.get(name) != version}
    if not missing:
        return ""
    wanted = ", ".join(f"{name} {version}" for name, version in missing.items())
    has = ", ".join(f"{name} {offered[name]}" for name in missing if name in offered) or "none of them"
    return f"the artifact needs the ops {wanted} and the op library has {has}"


@lru_cache(maxsize=16)
def _say_lacking(lacking: str) -> None:
    """Once per process and finding."""
    _LOG.warning(
        "%s: our ops run as their portable bodies; install the vitrify that compiled the artifact, or export it again", lacking
    )


class _Pool:
    """ONNX Runtime's thread pool: one for the process, made once; pools per session would fight over the cores."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: int | None = None

    def ensure(self, ort: Any, threads: int | None) -> None:
        with self._lock:
            if self._threads is None:
                count = threads if threads is not None else len(os.sched_getaffinity(0))
                ort.set_global_thread_pool_sizes(count, 1)
                self._threads = count
            elif threads is not None and threads != self._threads:
                raise BackendError(
                    f"threads={threads} was asked for, but this process already runs ONNX Runtime on {self._threads}: "
                    "the pool is made once, by the first load(); pass the number there"
                )


_POOL = _Pool()


class _OrtSession(Session):
    def __init__(self, session: Any, spec: GraphSpec, ort_value: Any) -> None:
        super().__init__(spec)
        self._ort_value = ort_value
        self._session: Any = session
        if session.get_providers() != ["CPUExecutionProvider"]:
            raise BackendError(f"{spec.path}: got providers {session.get_providers()}, expected the CPU")
        check_signature(spec, _tensors(spec.path, session.get_inputs()), _tensors(spec.path, session.get_outputs()))
        self.types = {t.name: t.dtype.onnx for t in (*spec.inputs, *spec.outputs)}
        self.inputs = {t.name for t in spec.inputs}

    def plan(self, dims: Mapping[str, int]) -> Plan:
        return _OrtPlan(self, dims)

    @property
    def raw(self) -> Any:
        if self._session is None:
            raise BackendError(f"{self.spec.path}: the session is closed")
        return self._session

    def wrap(self, array: Array, onnx_type: int) -> Any:
        """An OrtValue over the array's own memory."""
        # ONNX Runtime knows no numpy type for bfloat16: such memory is shown as integers, its type told apart.
        return self._ort_value.ortvalue_from_numpy_with_onnx_type(array.view(f"u{array.itemsize}"), onnx_type)

    def close(self) -> None:
        self._session = None
        release_free_memory()


class _OrtPlan(Plan):
    def __init__(self, session: _OrtSession, dims: Mapping[str, int]) -> None:
        super().__init__(session.spec, dims)
        self._run = session.raw.run_with_iobinding
        self._binding = session.raw.io_binding()
        self._types, self._inputs = session.types, session.inputs
        self._wrap = session.wrap

    def _bind(self, name: str, array: Array) -> None:
        bind = self._binding.bind_input if name in self._inputs else self._binding.bind_output
        # The type by its ONNX number: ONNX Runtime knows no numpy type for bfloat16.
        bind(name, "cpu", 0, self._types[name], list(array.shape), array.ctypes.data)

    def _binder(self, name: str, array: Array) -> Callable[[], object]:
        value = self._wrap(array, self._types[name])  # shares the array's memory
        bind = self._binding.bind_ortvalue_input if name in self._inputs else self._binding.bind_ortvalue_output
        return functools.partial(bind, name, value)

    def run(self) -> None:
        try:
            self._run(self._binding)
        except Exception as error:
            raise BackendError(f"{self.spec.path} failed with dims {self.dims}: {str(error).strip()[:500]}") from error


def _tensors(path: str, nodes: list[Any]) -> tuple[TensorSpec, ...]:
    result = []
    for node in nodes:
        if node.type not in _DTYPE_OF_ORT:
            raise SpecError(f"{path}: {node.name!r} has type {node.type}, which is unsupported")
        result.append(TensorSpec(node.name, _DTYPE_OF_ORT[node.type], tuple(node.shape)))
    return tuple(result)
