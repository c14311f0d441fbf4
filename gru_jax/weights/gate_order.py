"""The one table of gate orders: the order in which each framework stores the three gates.

r is the reset gate, z the update gate, n the new gate. ONNX and Keras call the new gate h, Haiku calls it a.
"""

import numpy as np

OURS = "rzn"
ORDERS = {
    "pytorch": "rzn",  # torch.nn.GRU: W_ir | W_iz | W_in
    "nnx": "rzn",  # flax.nnx.GRUCell: dense_i, dense_h
    "equinox": "rzn",  # equinox.nn.GRUCell: weight_ih, weight_hh
    "onnx": "zrn",  # GRU operator: W[zrh]
    "keras": "zrn",  # keras.layers.GRU: kernel, recurrent_kernel
    "haiku": "zrn",  # haiku.GRU: w_i, w_h; its z is 1 - z of PyTorch's
}


def to_ours(array: np.ndarray, framework: str, axis: int = -1) -> np.ndarray:
    """Puts the three gates along `axis` into the order r, z, n.

    >>> to_ours(np.array([0, 0, 1, 1, 2, 2]), "onnx")
    array([1, 1, 0, 0, 2, 2])
    """
    return _permute(array, ORDERS[framework], OURS, axis)


def from_ours(array: np.ndarray, framework: str, axis: int = -1) -> np.ndarray:
    """The inverse of `to_ours`."""
    return _permute(array, OURS, ORDERS[framework], axis)


def _permute(array: np.ndarray, source: str, target: str, axis: int) -> np.ndarray:
    parts = dict(zip(source, np.split(array, 3, axis=axis), strict=True))
    return np.concatenate([parts[gate] for gate in target], axis=axis)
