"""Weights kept in parts, against the live modules that keep them so."""

import jax
import numpy as np
import pytest
import torch
from torch.nn.utils import parametrizations, prune

from gru_jax import gru
from gru_jax.verify import judge
from gru_jax.weights.containers.pytorch import open_torch
from gru_jax.weights.found import Tensor
from gru_jax.weights.pytorch import importer as pytorch

WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "weight_hh_l1_reverse", "bias_hh_l1")


def lazy(state_dict):
    """Tensors of a state_dict as a file gives them."""
    return {
        name: Tensor(tuple(a.shape), str(a.dtype).removeprefix("torch."), lambda a=a: a.detach().numpy())
        for name, a in state_dict.items()
    }


def reparametrized(change, names=WEIGHTS, dtype=torch.float32):
    torch.manual_seed(0)
    module = torch.nn.GRU(5, 4, 2, bidirectional=True).to(dtype)
    for name in names:
        change(module, name)
    with torch.no_grad():  # As after training: g is no longer the norm of v.
        for parameter in module.parameters():
            parameter.mul_(1 + torch.rand_like(parameter))
    return module.eval()


def spectral(module, name):
    torch.nn.utils.spectral_norm(module, name)
    module.train()
    module(torch.randn(3, 2, 5, dtype=module.bias_ih_l0.dtype))


CHANGES = {
    "weight_norm, old": (lambda m, n: torch.nn.utils.weight_norm(m, n), WEIGHTS),
    "weight_norm, old, whole": (lambda m, n: torch.nn.utils.weight_norm(m, n, dim=None), WEIGHTS),
    "weight_norm, old, columns": (lambda m, n: torch.nn.utils.weight_norm(m, n, dim=1), WEIGHTS[:3]),
    "weight_norm, new": (lambda m, n: parametrizations.weight_norm(m, n), WEIGHTS),
    "weight_norm, new, whole": (lambda m, n: parametrizations.weight_norm(m, n, dim=None), WEIGHTS),
    "weight_norm, new, columns": (lambda m, n: parametrizations.weight_norm(m, n, dim=1), WEIGHTS[:3]),
    "spectral_norm": (spectral, WEIGHTS[:3]),
    "pruned": (lambda m, n: prune.random_unstructured(m, n, 0.4), WEIGHTS),
    "pruned twice": (lambda m, n: [prune.l1_unstructured(m, n, 2), prune.random_unstructured(m, n, 0.4)], WEIGHTS),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", CHANGES)
def test_weights_in_parts_compute_what_the_live_module_computes(kind, dtype, tmp_path):
    module = reparametrized(*CHANGES[kind], dtype=getattr(torch, dtype))
    torch.save({"rnn": module.state_dict()}, tmp_path / "rnn.pt")
    grus, refused = pytorch.find(open_torch(tmp_path / "rnn.pt").by_name)
    assert (list(grus), refused) == (["rnn."], {})
    found = grus["rnn."]
    assert set(found.names) == {f"rnn.{name}" for name in module.state_dict()}

    rng = np.random.default_rng(0)
    x, h_0, d_output, d_h_n = (rng.standard_normal(s) for s in ((6, 3, 5), (4, 3, 4), (6, 3, 8), (4, 3, 4)))
    run = lambda module, kind: [a.detach().numpy() for a in module(*(torch.tensor(a, dtype=kind) for a in (x, h_0)))]
    own = run(module, getattr(torch, dtype))
    reference = run(module.double(), torch.float64)
    ours = gru(found.read(), *(jax.numpy.asarray(a, dtype) for a in (x, h_0)), precision="highest")
    original = found.original(dtype, x, h_0, d_output, d_h_n)
    for name, a, b, c in zip(("output", "h_n"), ours, own, reference, strict=True):
        assert judge(name, a, b, c).passed, judge(name, a, b, c)
        assert judge(name, original[name], b, c).passed


def test_spectral_norm_and_weight_norm_differ_from_the_stored_parts():
    """The proof above would be empty if the parts were the weights already."""
    module = reparametrized(*CHANGES["spectral_norm"])
    params = pytorch.find(lazy(module.state_dict()))[0][""].read()
    assert np.abs(params["l0"]["kernel_hh"].T - module.weight_hh_l0_orig.detach().numpy()).max() > 0.1


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_row_of_zeros_is_nan_as_in_pytorch():
    module = reparametrized(lambda m, n: torch.nn.utils.weight_norm(m, n), WEIGHTS[1:2])
    with torch.no_grad():
        module.weight_hh_l0_v[2] = 0
    kernel = pytorch.find(lazy(module.state_dict()))[0][""].read()["l0"]["kernel_hh"]
    assert np.isnan(kernel).sum(axis=0).tolist() == [0, 0, 4, *[0] * 9]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_cell_with_weights_in_parts_is_found():
    cell = torch.nn.utils.weight_norm(torch.nn.GRUCell(5, 4), "weight_hh")
    grus, _ = pytorch.find(lazy(cell.state_dict()))
    expected = cell.weight_hh.detach().numpy()
    np.testing.assert_allclose(grus[""].read()["l0"]["kernel_hh"].T, expected, rtol=3e-7)
    assert grus[""].framework == "torch.nn.GRUCell"


class Doubled(torch.nn.Module):
    """A parametrization of somebody's own."""

    def forward(self, w):
        """Twice what the file holds."""
        return 2 * w


def parametrized(parametrization):
    module = torch.nn.GRU(5, 4)
    torch.nn.utils.parametrize.register_parametrization(module, "weight_hh_l0", parametrization, unsafe=True)
    return module.state_dict()


def changed(**changes):
    state_dict = dict(torch.nn.GRU(5, 4).state_dict())
    orig = state_dict.pop("weight_hh_l0")
    return state_dict | {"weight_hh_l0_orig": orig} | changes


SQUARE = torch.nn.GRU(12, 4)
torch.nn.utils.spectral_norm(SQUARE, "weight_ih_l0")


@pytest.mark.parametrize(
    ("state_dict", "message"),
    [
        (
            parametrized(Doubled()),
            r"weight_hh_l0 is kept as parametrizations.weight_hh_l0.original, and what they make is not in the file: "
            r"call torch.nn.utils.parametrize.remove_parametrizations",
        ),
        (parametrized(torch.nn.Identity()), "what they make is not in the file"),
        (parametrizations.orthogonal(torch.nn.GRU(5, 4), "weight_hh_l0").state_dict(), "is not in the file"),
        (parametrizations.spectral_norm(torch.nn.GRU(5, 4), "weight_hh_l0").state_dict(), "is not in the file"),
        (changed(), "weight_hh_l0 is kept as weight_hh_l0_orig, and what"),
        (changed(weight_hh_l0=torch.ones(12, 4)), "weight_hh_l0 is kept as weight_hh_l0, weight_hh_l0_orig, and"),
        (changed(weight_hh_l0_mask=torch.ones(12, 1)), r"has shape \[12, 4\] and its mask \[12, 1\]"),
        (
            changed(weight_hh_l0_u=torch.ones(4), weight_hh_l0_v=torch.ones(12)),
            r"parts of shapes \[12, 4\], \[4\] and \[12\], which do not show spectral_norm along dim 0",
        ),
        (SQUARE.state_dict(), "do not show spectral_norm along dim 0"),
        (
            {f"parametrizations.weight_hh_l0.original{i}": torch.ones(12, 4 - 2 * i) for i in range(2)},
            r"kept in parts of shapes \[12, 4\] and \[12, 2\], not weight_norm's",
        ),
    ],
)
def test_parts_that_no_rule_explains_are_refused(state_dict, message):
    grus, refused = pytorch.find(lazy(state_dict))
    assert not grus
    (reason,) = refused.values()
    assert "\n" not in reason
    with pytest.raises(ValueError, match=message):
        raise ValueError(reason)
