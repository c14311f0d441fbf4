"""Runs PyTorch's own GRU and GRUCell on given weights, and computes their gradients."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gru_jax.params import GRUConfig
from gru_jax.weights.found import Tensor, require
from gru_jax.weights.pytorch.names import our_name


def run(
    config: GRUConfig,
    tensors: Mapping[str, Tensor],
    dtype: str,
    x: np.ndarray,
    h_0: np.ndarray,
    d_output: np.ndarray,
    d_h_n: np.ndarray,
) -> dict[str, np.ndarray]:
    """`Found.original` for the tensors of a module, by their names in it: "weight_ih_l0", or a cell's "weight_ih"."""
    torch = require("torch", "torch")
    kind = getattr(torch, dtype)
    module = _module(torch, config, tensors, kind)
    given = {name: torch.tensor(np.asarray(a), dtype=kind) for name, a in (("x", x), ("h_0", h_0))}
    wanted = {name: tensor.requires_grad_() for name, tensor in given.items()} | dict(module.named_parameters())
    if isinstance(module, torch.nn.GRU):
        output, h_n = module(wanted["x"], wanted["h_0"])
    else:
        output, h_n = _loop(torch, module, wanted["x"], wanted["h_0"])
    pairs = [(output, d_output), (h_n, d_h_n)]
    loss = sum((a * torch.tensor(np.asarray(cotangent), dtype=kind)).sum() for a, cotangent in pairs)
    gradients = dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True))
    results = {"output": output, "h_n": h_n, **{f"d_{name}": gradients.pop(name) for name in given}}
    results |= {"d_" + "/".join(our_name(name)): gradient.t() for name, gradient in gradients.items()}
    return {name: a.detach().numpy().copy() for name, a in results.items()}


def _module(torch: Any, config: GRUConfig, tensors: Mapping[str, Tensor], kind: Any) -> Any:
    """Builds the module in the dtype `kind`. Draws no random numbers: that would change PyTorch's global generator."""
    sizes = {"input_size": config.input_size, "hidden_size": config.hidden_size, "bias": config.bias, "dtype": kind}
    if "weight_ih" in tensors:
        module = torch.nn.GRUCell(**sizes, device="meta")
    else:
        layers = {"num_layers": config.num_layers, "bidirectional": config.bidirectional}
        module = torch.nn.GRU(**sizes, **layers, device="meta")
    module = module.to_empty(device="cpu")
    arrays = {name: tensor.read() for name, tensor in tensors.items()}
    # PyTorch does not take bfloat16 from NumPy; float32 holds it, and float16, exactly.
    wide = {name: a.astype(np.float32) if a.dtype in (jnp.bfloat16, np.float16) else a for name, a in arrays.items()}
    module.load_state_dict({name: torch.tensor(a) for name, a in wide.items()}, strict=True)
    return module


def _loop(torch: Any, cell: Any, x: Any, h_0: Any) -> tuple[Any, Any]:
    """Runs a GRUCell over time, as its users do."""
    h, states = h_0[0], []
    for x_t in x:
        h = cell(x_t, h)
        states.append(h)
    return torch.stack(states), h[None]
