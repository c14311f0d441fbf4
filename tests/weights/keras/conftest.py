"""What the tests of Keras share."""

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
import keras


@pytest.fixture(autouse=True, scope="module")
def zeros_at_first():
    """New layers begin with zeros, for JAX would compile a program to draw each shape. All tests set other weights."""
    draw = lambda self, shape, dtype=None, **options: keras.ops.zeros(shape, dtype)
    with pytest.MonkeyPatch.context() as patch:
        for kind in (keras.initializers.Orthogonal, keras.initializers.VarianceScaling):
            patch.setattr(kind, "__call__", draw)
        yield
