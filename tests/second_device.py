"""A second device without one: its tensors live on the CPU, but an operation on tensors of both is refused.

What CUDA refuses, this refuses too, so that a tensor forgotten on the CPU is found on a machine without a GPU. It
stands on torch's experimental Python backend for the key PrivateUse1, and can be registered once in a process.
"""
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map

NAME = "elsewhere"
# Operations that CUDA allows to mix: copies between devices, and an index that is on the CPU.
MIXING = {"aten::_to_copy", "aten::copy_", "aten::index", "aten::index_put", "aten::index_put_",
          "aten::_index_put_impl_"}


class Elsewhere(torch.Tensor):
    """A tensor of the second device around the one on the CPU that holds its numbers."""

    @staticmethod
    def __new__(cls, real):
        made = torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            device=torch.device(NAME, 0))
        made.real_ = real.detach()
        return made

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, new):
        torch.Tensor.data.__set__(self, new)
        self.real_ = new.real_

    def __repr__(self):
        return f"Elsewhere({self.real_})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, operation.name().split(".")[0]
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        here = [x for x in tensors if not isinstance(x, cls) and x.dim()]  # a number may come from the CPU, as on CUDA
        if here and len(here) < len(tensors) and name not in MIXING:
            raise RuntimeError(f"{name}: tensors on the CPU and elsewhere")
        made = operation(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu":
            return made
        made = tree_map(lambda x: cls(x) if isinstance(x, torch.Tensor) else x, made)
        return return_and_correct_aliasing(operation, args, kwargs, made)


def _on_cpu(x):
    if isinstance(x, Elsewhere):
        return x.real_
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == NAME else x


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


def register():
    """Make the device known to torch: `tensor.to(NAME)`, `torch.zeros(3, device=NAME)`."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    kernels, autocast = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    for name in ("empty.memory_format", "empty_strided", "eye", "eye.m", "arange", "arange.start", "arange.start_step",
                 "linspace", "randperm", "randperm.generator"):
        kernels.impl(name, _factory(*f"{name}.default".split(".")[:2]), "PrivateUse1")
    autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # bf16 runs, in fp32
    register.kept = kernels, autocast  # registered as long as they are referenced


def _factory(packet, overload):
    operation = getattr(getattr(torch.ops.aten, packet), overload)

    def make(*args, **kwargs):
        return Elsewhere(operation(*args, **kwargs | {"device": torch.device("cpu"), "pin_memory": None}))
    return make
