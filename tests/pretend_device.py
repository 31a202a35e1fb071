"""A pretend accelerator: tensors of the device ``pretend`` are in the host's memory, and every wait of the host is recorded.

Call ``register`` once, in a process of its own: a device belongs to the whole process. It differs from the CPU as a GPU does.

- Tensors of two devices do not mix, except scalars of the CPU. There are two devices, ``pretend:0`` and ``pretend:1``.
- Work is queued. A tensor copied to the host with ``non_blocking=True`` is wrong until the queue has come as far; an event tells.
- The host waits where it reads a value, where values decide the shape of a result, and for a copy without ``non_blocking=True``.
- Random numbers come from a generator of each device.
"""

import sys
from collections import deque
from contextlib import contextmanager

import torch
from torch.utils._pytree import tree_flatten, tree_map

TYPE = "pretend"
READS = {"_local_scalar_dense", "equal", "allclose", "is_nonzero"}
SHAPED_BY_VALUES = {"nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
FACTORIES = ("arange", "arange.start", "arange.start_step", "linspace", "randperm", "randperm.generator", "eye", "eye.m")


class Queue:
    """What was issued and what is done: the device is ``lag`` operations behind, or less after the host has waited."""

    lag = 60

    def __init__(self):
        self.issued = self.done = 0
        self.copies = deque()  # (number, target, value) of copies to the host
        self.waits = []

    def issue(self):
        self.issued += 1
        self._advance(self.issued - self.lag)
        return self.issued

    def wait(self, why):
        self.waits.append(f"{why} in {_caller()}")
        self._advance(self.issued)

    def copy(self, target, value):
        """Fill a tensor of the host when the queue has come as far; until then it is wrong everywhere."""
        target.copy_(~value if value.dtype == torch.bool else value + 1 if not value.is_floating_point() else torch.nan)
        self.copies.append((self.issued, target, value))

    def _advance(self, done):
        self.done = max(self.done, done)
        while self.copies and self.copies[0][0] <= self.done:
            _, target, value = self.copies.popleft()
            target.copy_(value)


QUEUE = Queue()
_generators = [torch.Generator().manual_seed(0) for _ in range(2)]
_current = 0


@contextmanager
def host_waits():
    """The waits of the host in a block, in words."""
    before, QUEUE.waits = QUEUE.waits, []
    try:
        yield QUEUE.waits
    finally:
        QUEUE.waits = before


def _caller():
    frame = sys._getframe()
    while frame.f_back and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"


class PretendTensor(torch.Tensor):
    """A tensor of the device; ``values`` are on the CPU."""

    @staticmethod
    def __new__(cls, values, device):
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, values.size(), device=device, **layout)
        made.values = values.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self):
        return f"{self.values!r} on {self.device}"

    def __reduce_ex__(self, protocol):
        return _loaded, (self.values.clone(), str(self.device), self.requires_grad)


def _loaded(values, device, requires_grad):
    return PretendTensor(values, torch.device(device)).requires_grad_(requires_grad)


def _on_host(value):
    return value.values if isinstance(value, PretendTensor) else value


def _run(func, args, kwargs):
    QUEUE.issue()
    name = func.overloadpacket.__name__
    if name in ("_to_copy", "copy_"):
        return {"_to_copy": _to_copy, "copy_": _copy_}[name](func, *args, **kwargs)
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    devices = {tensor.device for tensor in tensors if tensor.dim() or tensor.device.type != "cpu"}
    device = kwargs.get("device")
    device = torch.device(device) if device is not None else next(iter(devices), None)
    if len(devices) > 1 and name not in INDEXED:
        raise RuntimeError(f"{name}: expected all tensors on one device, got {sorted(map(str, devices))}")
    if name in READS | SHAPED_BY_VALUES or (name in INDEXED and _waits_for_index(*args)) or _repeats(func, kwargs):
        QUEUE.wait(name)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu") if device.type == TYPE else device}
    with _drawing_from(device, func, kwargs):
        made = func(*tree_map(_on_host, args), **tree_map(_on_host, kwargs))
    given = {id(_on_host(tensor)): tensor for tensor in tensors}
    for tensor in tensors:
        if tensor.shape != _on_host(tensor).shape:  # as ``unsqueeze_`` changes it
            with torch._C._DisableTorchDispatch():
                tensor.data = PretendTensor(tensor.values, tensor.device)
    if device is None or device.type != TYPE:
        return made
    return tree_map(lambda m: given.get(id(m), PretendTensor(m, _full(device))) if isinstance(m, torch.Tensor) else m, made)


def _full(device):
    return device if device.index is not None else torch.device(TYPE, _current)


def _waits_for_index(own, indices, value=None, *rest):
    """Whether rows are taken by a mask, other than to fill them with one value, or by an index of the host."""
    indices = [index for index in indices if index is not None]
    is_mask = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
    return (is_mask and (value is None or value.numel() > 1)) or any(index.device != own.device for index in indices)


def _repeats(func, kwargs):
    return func is torch.ops.aten.repeat_interleave.Tensor and kwargs.get("output_size") is None


@contextmanager
def _drawing_from(device, func, kwargs):
    """Random numbers of a device come from its own generator."""
    if device is None or device.type != TYPE or torch.Tag.nondeterministic_seeded not in func.tags:
        yield
        return
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"expected a generator of {TYPE}, got one of the CPU")
    generator, host = _generators[_full(device).index], torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(host)


def _to_copy(func, own, *, device=None, non_blocking=False, pin_memory=None, **kwargs):
    target = own.device if device is None else torch.device(device)
    values = func(_on_host(own), **kwargs)
    if own.device.type == target.type == TYPE:
        return PretendTensor(values, _full(target))
    if not non_blocking:
        QUEUE.wait(f"a copy to {target.type}")
    elif target.type == "cpu":
        QUEUE.copy(values, values.clone())
    return PretendTensor(values, _full(target)) if target.type == TYPE else values


def _copy_(func, own, source, non_blocking=False):
    crosses = own.device.type != source.device.type
    if crosses and not non_blocking:
        QUEUE.wait(f"a copy to {own.device.type}")
    if crosses and non_blocking and own.device.type == "cpu":
        QUEUE.copy(own, _on_host(source).to(own.dtype).expand(own.shape).clone())
    else:
        _on_host(own).copy_(_on_host(source))
    return own


class Event:
    """In place of ``torch.Event``, which asks a device written in Python for nothing."""

    def __init__(self, device=None, *, enable_timing=False):
        self.device, self.enable_timing, self._number = torch.device(device), enable_timing, None

    def record(self, stream):
        assert stream.device.type == self.device.type == TYPE, f"an event of {self.device} was recorded on {stream.device}"
        self._number = QUEUE.issue()

    def query(self):
        return self._number is None or self._number <= QUEUE.done

    def synchronize(self):
        QUEUE.wait("an event")

    def elapsed_time(self, other):
        """As many milliseconds as operations were issued in between."""
        assert all(event.enable_timing and event.query() for event in (self, other))
        return float(other._number - self._number)


class Module:
    """``torch.pretend``."""

    def is_available(self):
        return True

    def is_initialized(self):
        return True

    def device_count(self):
        return len(_generators)

    def current_device(self):
        return _current

    @contextmanager
    def device(self, device):
        global _current
        before, _current = _current, _full(torch.device(device)).index
        try:
            yield
        finally:
            _current = before

    def get_rng_state(self, device=TYPE):
        return _generators[_full(torch.device(device)).index].get_state()

    def set_rng_state(self, state, device=TYPE):
        _generators[_full(torch.device(device)).index].set_state(state)

    def manual_seed(self, seed):
        _generators[_current].manual_seed(seed)

    def manual_seed_all(self, seed):
        for generator in _generators:
            generator.manual_seed(seed)

    def synchronize(self, device=None):
        QUEUE.wait("synchronize")

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def _is_in_bad_fork(self):
        return False


_libraries = []


def register():
    """Make ``torch.device("pretend")`` known to this process."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    if _libraries:
        return
    _setup_privateuseone_for_python_backend(TYPE, backend_module=Module())
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # as for an operation that autocast leaves alone
    for name in FACTORIES:  # others are made of ``empty``
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        aten.impl(name, lambda *args, op=op, **kwargs: _run(op, args, kwargs), "PrivateUse1")
    torch.Event, torch.Tensor.pin_memory = Event, lambda tensor, device=None: tensor.clone()
    torch.serialization.add_safe_globals([_loaded])
    _libraries.extend([every, aten])
