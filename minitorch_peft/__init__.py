"""A from-scratch teaching framework for efficient adaptation of language models."""

from minitorch_peft.autograd.function import Function, set_debug
from minitorch_peft.autograd.gradcheck import gradcheck
from minitorch_peft.autograd.report import GradcheckError
from minitorch_peft.autograd.tensor import Tensor, is_grad_enabled, no_grad, tensor
from minitorch_peft.ops.methods import install as _install_methods

_install_methods()

__version__ = "0.1.0"

__all__ = [
    "Function",
    "GradcheckError",
    "Tensor",
    "gradcheck",
    "is_grad_enabled",
    "no_grad",
    "set_debug",
    "tensor",
]
