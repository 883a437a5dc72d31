"""What a training is at one moment, as plain data on the host: weights, states, random numbers, and the machine."""

import platform
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from surefoot.optim import kernel
from surefoot.optim.unwrap import load_in_place, own_state

Plain = Any
"""Tensors, numbers, strings, None, and tuples, lists and dicts of them: what loads with ``weights_only=True``."""

TENSOR_OVERHEAD = 1024  # bytes that a tensor costs beside its numbers, in memory and in a file, at the most


class Stateful(Protocol):
    """What can be saved and restored: a scheduler, a ``GradScaler``, an average of weights."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


def host_copy(tree: Plain, name: str) -> Plain:
    """Return a copy on the host that later steps do not reach, named tuples as tuples; no wait for the device.

    What is copied from an accelerator may be read after the device has been waited for.

    Args:
        tree: what to copy.
        name: of the tree, for the message.

    Raises:
        TypeError: if something in it is not plain, saying where and what.
    """
    if isinstance(tree, Tensor):
        return _tensor_copy(tree, name)
    if isinstance(tree, Mapping):
        copied = {_key(key, name): host_copy(value, f"{name}[{key!r}]") for key, value in tree.items()}
        return Counter(copied) if isinstance(tree, Counter) else copied  # MultiStepLR's milestones
    if isinstance(tree, list | tuple):
        items = [host_copy(value, f"{name}[{i}]") for i, value in enumerate(tree)]
        return items if isinstance(tree, list) else tuple(items)
    for kind in (bool, int, float, str):
        if isinstance(tree, kind):
            return kind(tree)  # numpy's scalars too are floats
    if tree is None:
        return None
    raise TypeError(
        f"{name} is {_shown(tree)}; expected tensors, numbers, strings, None, and tuples, lists and dicts of them"
    )


def size_of(tree: Plain) -> int:
    """Return how many bytes ``tree`` takes once copied, its tensors' overhead included."""
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size() + TENSOR_OVERHEAD
    if isinstance(tree, Mapping):
        return sum(size_of(value) + 64 for value in tree.values())
    if isinstance(tree, list | tuple):
        return sum(size_of(value) + 8 for value in tree)
    return len(tree) + 64 if isinstance(tree, str) else 32


def live_state(model: nn.Module, optimizers: Sequence[Optimizer], others: Sequence[Stateful]) -> dict[str, Any]:
    """Return the state that a step changes, not yet copied."""
    return {
        "model": dict(model.state_dict()),
        "optimizers": [_without_empty(own_state(optimizer)) for optimizer in optimizers],
        "others": [other.state_dict() for other in others],
    }


def restore(
    state: dict[str, Any],
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    others: Sequence[Stateful] = (),
    *,
    rules: str = "compare",
) -> None:
    """Give the objects the state that ``live_state`` saw; ``state`` itself stays as it is.

    Args:
        state: a copy of what ``live_state`` returned.
        model: of the same architecture.
        optimizers: as many, of the same kinds and groups.
        others: as many.
        rules: ``"compare"``: another rule than the saved one is refused; ``"keep"``: the optimizers' own rules stay.

    Raises:
        ValueError: if the objects do not fit the state.
    """
    for what, given in (("optimizers", optimizers), ("others", others)):
        if len(given) != len(state[what]):
            raise ValueError(f"{what} are {len(given)}; expected {len(state[what])}, as in the capsule")
    state = host_copy(state, "state")  # an optimizer goes on in the very tensors that it loads
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ValueError(f"model does not fit the capsule: {' '.join(str(error).split())}") from None
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        if rules == "keep":
            for group, present in zip(saved["param_groups"], optimizer.param_groups, strict=True):
                group |= {"rule": repr(present["rule"])} if "rule" in present and "rule" in group else {}
        load_in_place(optimizer, saved)
        _restore_types(optimizer, saved)
    for other, saved in zip(others, state["others"], strict=True):
        other.load_state_dict(saved)


def torch_random_state() -> dict[str, Any]:
    """Return the states of torch's global generators, on the CPU and on CUDA."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else ()
    return {"torch": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state(device) for device in devices]}


def random_state() -> dict[str, Any]:
    """Return the states of the global generators: torch's on the CPU and on CUDA, numpy's, Python's."""
    name, key, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - the loop's own draws
    version_, internal, next_gauss = random.getstate()
    return {
        **torch_random_state(),
        "numpy": (str(name), torch.from_numpy(np.asarray(key, np.int64)), int(position), int(has_gauss), float(gauss)),
        "python": (version_, torch.from_numpy(np.array(internal, np.int64)), next_gauss),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set the global generators to what ``random_state`` or ``torch_random_state`` returned."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, saved in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(saved, device)
    if "numpy" in state:
        name, key, *rest = state["numpy"]
        np.random.set_state((name, key.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if "python" in state:
        version_, internal, next_gauss = state["python"]
        random.setstate((version_, tuple(internal.tolist()), next_gauss))


def first_difference(left: Plain, right: Plain, name: str) -> str | None:
    """Return the name of the first part in which two trees on the host differ, tensors bit for bit; None if in none.

    Args:
        left: a tree.
        right: another.
        name: of the trees: where the name of the part begins.
    """
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        same = (left.shape, left.dtype) == (right.shape, right.dtype)
        return None if same and torch.equal(*map(_bits, (left, right))) else name
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        if left.keys() != right.keys():
            return f"the keys of {name}"
        pairs = [(left[key], right[key], f"{name}[{key!r}]") for key in left]
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        if len(left) != len(right):
            return f"the length of {name}"
        pairs = [(*pair, f"{name}[{i}]") for i, pair in enumerate(zip(left, right, strict=True))]
    else:
        return None if repr(left) == repr(right) else name  # of floats: NaN is NaN, and -0.0 is not 0.0
    return next((found for pair in pairs if (found := first_difference(*pair)) is not None), None)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the global generators, the number of threads and torch's settings as they were found."""
    generators, threads = random_state(), torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        set_random_state(generators)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def facts() -> dict[str, Any]:
    """Return what decides the last bits of a step beside the data: versions, processor, threads, settings."""
    return {
        "versions": {name: _version(name) for name in ("surefoot", "torch", "numpy")}
        | {"python": platform.python_version()},
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "vector_width": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "kernel": kernel.available(),  # surefoot.Adagrad's pass on the CPU
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _tensor_copy(tensor: Tensor, name: str) -> Tensor:
    tensor = tensor.detach()
    if tensor.layout is not torch.strided or hasattr(tensor, "to_local"):
        kind = "sharded" if hasattr(tensor, "to_local") else str(tensor.layout)
        raise TypeError(f"{name} is a {kind} tensor; expected whole, strided ones")
    if tensor.device.type == "cpu":
        return tensor.clone()
    pinned = tensor.device.type == "cuda" and torch.cuda.is_available()
    host = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
    return host.copy_(tensor, non_blocking=True)


def _without_empty(state: dict[str, Any]) -> dict[str, Any]:
    """Leave out the empty states that whoever looked at a parameter without one has made by looking."""
    return {**state, "state": {key: value for key, value in state["state"].items() if value}}


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _key(key: Any, name: str) -> str | int:
    if not isinstance(key, str | int):
        raise TypeError(f"{name} has the key {key!r}; expected strings and whole numbers as keys")
    return key


def _shown(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}".replace("a builtins.", "a ")


def _restore_types(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Give every state the type it was saved with: torch casts them to the weights' type."""
    keys = chain.from_iterable(group["params"] for group in saved["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for key, param in zip(keys, params, strict=True):
        for name, value in saved["state"].get(key, {}).items():
            present = optimizer.state[param].get(name)
            if isinstance(present, Tensor) and isinstance(value, Tensor) and present.dtype != value.dtype:
                optimizer.state[param][name] = value.to(present.device)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", "unknown"))


def _processor() -> str:
    """Return the processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
