"""Modules: a tree of named parameters, and the leaves that a GPT is made of."""

from minitorch_peft.nn.activation import Activation
from minitorch_peft.nn.context import ForwardContext
from minitorch_peft.nn.dropout import Dropout
from minitorch_peft.nn.embedding import Embedding
from minitorch_peft.nn.leaf import Leaf
from minitorch_peft.nn.linear import Linear, TiedLinear
from minitorch_peft.nn.linear_4bit import Linear4bit
from minitorch_peft.nn.lstm import LSTM
from minitorch_peft.nn.module import Module, ModuleList, Parameter, mode_of
from minitorch_peft.nn.norm import LayerNorm, RMSNorm
from minitorch_peft.nn.sequential import Sequential

__all__ = [
    "LSTM",
    "Activation",
    "Dropout",
    "Embedding",
    "ForwardContext",
    "LayerNorm",
    "Leaf",
    "Linear",
    "Linear4bit",
    "Module",
    "ModuleList",
    "Parameter",
    "RMSNorm",
    "Sequential",
    "TiedLinear",
    "mode_of",
]
