"""The trees of gru_jax itself under joined names: "encoder.rnn.l0.kernel_ih", or "cell.kernel_ih" for a single cell."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax.params import GRUConfig, check_params
from gru_jax.weights import trees
from gru_jax.weights.found import Found, Tensor, require


def find(tensors: Mapping[str, Tensor]) -> trees.Search:
    """Finds every GRUParams and CellParams. Their names don't tell reset_after, which keeps its default."""
    groups: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        path, _, key = name.rpartition(".")
        prefix, dot, cell = path.rpartition(".")
        if re.fullmatch(r"(kernel|bias)_(ih|hh)", key):
            in_layer = re.fullmatch(r"l[0-9]{1,6}(_reverse)?", cell)
            prefix, cell = (prefix + dot, cell) if in_layer else (name.removesuffix(key), "")
            groups.setdefault(prefix, {}).setdefault(cell, {})[key] = tensor
    grus, refused = {}, {}
    for prefix, cells in groups.items():
        try:
            if any("kernel_hh" in keys and keys["kernel_hh"].dtype == "int8" for keys in cells.values()):
                raise TypeError("its kernels are int8: quantized parameters, which quantized.load loads.")
            grus[prefix] = _found(prefix, cells)
        except (ValueError, TypeError) as error:
            refused[prefix] = trees.one_line(error)
    return grus, refused


def _found(prefix: str, held: Mapping[str, Mapping[str, Tensor]]) -> Found:
    """Checks that the tensors under `prefix` make one GRU, by cell, where "" is a single one."""
    names = {f"{prefix}{cell}{'.' if cell else ''}{key}": t for cell, keys in held.items() for key, t in keys.items()}
    trees.check_dtypes("gru_jax", names)
    cells = {"l0": held[""]} if list(held) == [""] else held
    abstract = lambda tensor: jax.ShapeDtypeStruct(tensor.shape, jnp.dtype(tensor.dtype))
    shapes: Any = {cell: {key: abstract(tensor) for key, tensor in keys.items()} for cell, keys in cells.items()}
    config = check_params("gru_jax", shapes)
    read = lambda: {cell: {key: tensor.read() for key, tensor in keys.items()} for cell, keys in cells.items()}
    return Found(
        config,
        read=lambda: trees.to_jax("gru_jax", read()),
        original=lambda *run: _run_torch(config, read(), *run),
        framework="torch.nn.GRU",
        names=tuple(names),
    )


def _run_torch(
    config: GRUConfig, cells: Mapping[str, trees.Arrays], dtype: str, *inputs: np.ndarray
) -> dict[str, np.ndarray]:
    """Runs PyTorch's GRU on the same numbers."""
    torch = require("torch", "torch")
    sizes = (config.input_size, config.hidden_size, config.num_layers, config.bias)
    module = torch.nn.GRU(*sizes, bidirectional=config.bidirectional).to(getattr(torch, dtype))
    tensor = lambda array: torch.tensor(np.ascontiguousarray(array, dtype))
    ours = {f"{key.replace('kernel', 'weight')}_{cell}": (cell, key) for cell, keys in cells.items() for key in keys}
    module.load_state_dict({name: tensor(cells[cell][key].T) for name, (cell, key) in ours.items()}, strict=True)
    x, h_0, d_output, d_h_n = map(tensor, inputs)
    output, h_n = module(x.requires_grad_(), h_0.requires_grad_())
    weights = dict(module.named_parameters())
    d_x, d_h_0, *rest = torch.autograd.grad((output, h_n), [x, h_0, *weights.values()], (d_output, d_h_n))
    results = {"output": output, "h_n": h_n, "d_x": d_x, "d_h_0": d_h_0}
    results = {name: value.detach().numpy().copy() for name, value in results.items()}
    gradients = {"/".join(ours[name]): gradient.numpy().T for name, gradient in zip(weights, rest, strict=True)}
    return results | {f"d_{name}": gradient.copy() for name, gradient in gradients.items()}
