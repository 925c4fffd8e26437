"""Unfused attention against torch's fused kernel."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

from trainers.model.attention import UNFUSED


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_attention_equals_the_fused_kernel_up_to_rounding(
    masked: bool, scaling: float | None, monkeypatch: Any
) -> None:
    torch.manual_seed(0)
    module: Any = SimpleNamespace(is_causal=False)
    mask = (torch.arange(7) < torch.tensor([[7], [4], [1]]))[:, None, None, :].expand(3, 1, 7, 7) if masked else None
    whole = [torch.randn(3, 2, 7, 8) for _ in range(3)]
    # With gradients in bfloat16 the fused kernel is not called.
    monkeypatch.setattr("trainers.model.attention.sdpa_attention_forward", None)
    results = []
    fused: Any = sdpa_attention_forward
    for attention, dtype in ((fused, torch.float32), (AttentionInterface()[UNFUSED], torch.bfloat16)):
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in whole]
        output, _ = attention(module, *inputs, mask, scaling=scaling)
        output.float().square().sum().backward()
        results.append(
            [output.detach().float(), *(tensor.grad.float() for tensor in inputs if tensor.grad is not None)]
        )
    assert len(results[1]) == 4
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.08)


def test_dropout_and_causal_masks_are_applied() -> None:
    torch.manual_seed(0)
    attention = AttentionInterface()[UNFUSED]
    query, key, value = (torch.randn(1, 1, 4, 8, dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    module: Any = SimpleNamespace(is_causal=True)
    first = attention(module, query, key, value, None)[0][:, 0]
    torch.testing.assert_close(first, value[:, :, 0], rtol=0.01, atol=0.01)
    module.is_causal = False
    outputs = [attention(module, query, key, value, None, dropout=0.5)[0] for _ in range(2)]
    assert not torch.equal(*outputs)
