"""A training loop with the fused form, loss and gradient in one pass: python examples/fused_step.py

`loss, grad = strop.grpo_loss(...)` has done the loss's backward already. `logprobs.backward(grad)` goes on from there
into the model. The same steps through autograd end with the same weights.
"""

from __future__ import annotations

import copy

import strop
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
B, T, V, H = 8, 16, 100, 32

model = torch.nn.Sequential(torch.nn.Embedding(V, H), torch.nn.Linear(H, V)).to(device)  # a small "language model"
reference = copy.deepcopy(model).requires_grad_(False)
through_autograd = copy.deepcopy(model)

tokens = torch.randint(V, (B, T + 1), device=device)
mask = torch.arange(T, device=device) < torch.randint(1, T + 1, (B, 1), device=device)  # completions end early
advantages = torch.randn(B, device=device)


def logprobs_of(policy: torch.nn.Module) -> torch.Tensor:
    return policy(tokens[:, :-1]).log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)


with torch.no_grad():
    old = logprobs_of(reference)  # what the tokens were sampled with, here the reference itself
optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (model, through_autograd)]

for step in range(5):
    for optimizer in optimizers:
        optimizer.zero_grad()

    logprobs = logprobs_of(model)
    loss, grad = strop.grpo_loss(logprobs.detach(), old, old, advantages, mask, beta=0.05)
    logprobs.backward(grad)

    same = strop.grpo_loss_autograd(logprobs_of(through_autograd), old, old, advantages, mask, beta=0.05)
    same.backward()

    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(loss, same.detach())
    print(f"step {step}: loss {loss.item():+.6f} fused, {same.item():+.6f} through autograd")

for one, other in zip(model.parameters(), through_autograd.parameters(), strict=True):
    torch.testing.assert_close(one, other)
print("The weights agree.")
