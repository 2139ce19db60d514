"""The demo's task and model: integer addition, and a small causal transformer that reads it a character at a time.

A problem is six characters, "07+95=", its answer one to three digits and an end mark: "102$". Completions therefore
differ in length, and the characters behind the end mark are padding that no loss may see.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ALPHABET = "0123456789+=$"  # "$" ends an answer and pads behind it
END = ALPHABET.index("$")
PROMPT_LENGTH = 6
ANSWER_LENGTH = 4  # as long as the longest right answer, its end mark included


def encode(text: str) -> list[int]:
    return [ALPHABET.index(character) for character in text]


def decode(tokens: Tensor) -> str:
    return "".join(ALPHABET[token] for token in tokens.tolist())


class Problems:
    """All 10,000 sums of two numbers below 100 in a seeded order; the last `held_out` are never trained on."""

    def __init__(self, seed: int, held_out: int = 1000):
        order = torch.randperm(10_000, generator=torch.Generator().manual_seed(seed))
        sums = [divmod(number, 100) for number in order.tolist()]
        self.prompts = torch.tensor([encode(f"{a:02d}+{b:02d}=") for a, b in sums])
        self.answers = torch.tensor([encode(f"{a + b}"[::-1].ljust(ANSWER_LENGTH, "$")) for a, b in sums])
        self.train_size = len(sums) - held_out

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training problems: (count, PROMPT_LENGTH) prompts and (count, ANSWER_LENGTH) right answers."""
        index = torch.randint(self.train_size, (count,), generator=generator)
        return self.prompts[index], self.answers[index]

    @property
    def held_out(self) -> tuple[Tensor, Tensor]:
        return self.prompts[self.train_size :], self.answers[self.train_size :]


def completions_mask(completions: Tensor) -> Tensor:
    """(B, T) bool: True up to and with the first end mark, False on the padding behind it."""
    ended = (completions == END).cumsum(dim=1)
    return (ended - (completions == END).long()) == 0


def reward(completions: Tensor, answers: Tensor) -> Tensor:
    """(B,): 1 where the answer is right to the last character, else 0."""
    padded = completions.masked_fill(~completions_mask(completions), END)
    return (padded == answers).all(dim=1).float()


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


class Transformer(nn.Module):
    """Causal: tokens (B, L) to logits (B, L, 13) for the token that follows each."""

    def __init__(self, layers: int, width: int, heads: int, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.token = nn.Embedding(len(ALPHABET), width)
        self.position = nn.Embedding(PROMPT_LENGTH + ANSWER_LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, len(ALPHABET), bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))

    def completion_logits(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """(B, T, 13): the logits from which each token of the completions is drawn; a slice, not a copy."""
        return self(torch.cat([prompts, completions[:, :-1]], dim=1))[:, PROMPT_LENGTH - 1 :]

    @torch.no_grad()
    def complete(self, prompts: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, ANSWER_LENGTH) completions, sampled with `generator`, or greedy without one."""
        tokens = prompts
        for _ in range(ANSWER_LENGTH):
            logits = self(tokens)[:, -1]
            if generator is not None:  # Gumbel-max: a tiny change of the logits very rarely changes the sample
                uniform = torch.rand(logits.shape, generator=generator).clamp_(min=1e-20)
                logits = logits - torch.log(-torch.log(uniform))
            tokens = torch.cat([tokens, logits.argmax(dim=-1, keepdim=True)], dim=1)
        completions = tokens[:, PROMPT_LENGTH:]
        return completions.masked_fill(~completions_mask(completions), END)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """(B, T): log-probability of each token."""
    return logits.log_softmax(dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def accuracy(model: Transformer, problems: Problems) -> float:
    """Share of held-out problems that the model, greedily, gets right."""
    prompts, answers = problems.held_out
    return reward(model.complete(prompts), answers).mean().item()
