"""The norm that is trained through: the bits of torch's forward, and the gradient that follows from it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sac_rag.compress.norm import rms_norm


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(7, 24), (3, 5, 8), (1, 576)])
def test_it_is_torchs_norm_and_its_gradient(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    made = torch.Generator().manual_seed(len(shape))
    x, grad = (torch.randn(shape, generator=made).mul(3).to(dtype) for _ in range(2))
    weight = torch.rand(shape[-1], generator=made).to(dtype)
    found, wanted = x.clone().requires_grad_(), x.double().requires_grad_()
    out = rms_norm(found, weight, 1e-5)
    assert torch.equal(out, F.rms_norm(x, weight.shape, weight, 1e-5)) and torch.equal(out, rms_norm(x, weight, 1e-5))
    out.backward(grad)
    F.rms_norm(wanted, weight.shape, weight.double(), 1e-5).backward(grad.double())
    assert found.grad is not None and wanted.grad is not None and found.grad.dtype == dtype
    close = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.grad.double(), wanted.grad, atol=close, rtol=close)


def test_weights_that_are_trained_get_their_gradient() -> None:
    weight = torch.ones(8, requires_grad=True)
    rms_norm(torch.randn(4, 8, requires_grad=True), weight, 1e-5).sum().backward()
    assert weight.grad is not None and bool(weight.grad.abs().sum() > 0)
