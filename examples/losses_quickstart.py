"""The nine loss functions, each once, on a GPU where there is one: python examples/losses_quickstart.py

Fused calls hand back the gradient with the loss; `*_autograd` goes on into the model by itself; `*_fwd` evaluates.
"""

from __future__ import annotations

import strop
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)

# Four sampled completions of up to eight tokens. Behind a completion's end lies padding: the mask is False there, and
# whatever the tensors hold, NaN included, reaches neither loss nor gradient.
lengths = torch.tensor([[8], [5], [7], [3]], device=device)
mask = torch.arange(8, device=device) < lengths
sampled_with = -2 * torch.rand(4, 8, device=device)  # log-probabilities of the sampled tokens when they were sampled,
policy = sampled_with + 0.1 * torch.randn(4, 8, device=device)  # under the policy now, a few updates later,
reference = sampled_with + 0.1 * torch.randn(4, 8, device=device)  # and under the model that it should stay close to
advantages = torch.tensor([1.0, -0.5, 0.3, -0.8], device=device)  # one a completion
policy[~mask] = float("nan")

for name in ("grpo_loss", "bnpo_loss"):
    inputs = (sampled_with, reference, advantages, mask)
    loss, grad = getattr(strop, name)(policy, *inputs, beta=0.05, eps=0.2)
    leaf = policy.clone().requires_grad_()
    getattr(strop, name + "_autograd")(leaf, *inputs, beta=0.05, eps=0.2).backward()
    evaluated = getattr(strop, name + "_fwd")(policy, *inputs, beta=0.05, eps=0.2)
    torch.testing.assert_close(leaf.grad, grad)
    torch.testing.assert_close(evaluated, loss)
    assert not grad[~mask].any()
    print(f"{name:<11} {loss.item():+.5f}   gradient's norm {grad.norm().item():.5f}, the same through autograd")

student = torch.randn(4, 8, 32_000, device=device)
teacher = student + 0.5 * torch.randn_like(student)
loss, grad = strop.reverse_kl(student, teacher, mask)
leaf = student.clone().requires_grad_()
strop.reverse_kl_autograd(leaf, teacher, mask).backward()
torch.testing.assert_close(leaf.grad, grad)
torch.testing.assert_close(strop.reverse_kl_fwd(student, teacher, mask), loss)
print(f"reverse_kl  {loss.item():+.5f}   gradient's norm {grad.norm().item():.5f}, the same through autograd")

# Logits are large. In place, the gradient takes the student's memory instead of as much again.
loss, grad = strop.reverse_kl(student, teacher, mask, inplace=True)
assert grad.data_ptr() == student.data_ptr()
torch.testing.assert_close(grad, leaf.grad)
print(f"            in place, {student.nbytes / 2**20:.0f} MiB of logits have become their gradient")
