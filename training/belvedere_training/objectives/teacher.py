"""A slow copy of the model whose answers are soft targets, and a queue of its embeddings as further negatives.

Momentum distillation: Li et al. 2021 (arXiv:2107.07651), section 3.4; the queue: He et al. 2020 (arXiv:1911.05722), section 3.1.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from belvedere_training.model.dual import DualStream
from belvedere_training.objectives.gather import gather

# B pairs of this worker, G pairs of all workers, Q places of the queue, A = G + Q candidates, E embedding

MOMENTUM = 0.995


class Teacher(nn.Module):
    """Its state dict holds copy, queue and position, so that a resumed run goes on with the very same targets."""

    image_QE: Tensor
    text_QE: Tensor
    cursor: Tensor
    filled: Tensor

    def __init__(self, student: DualStream, num_places: int, momentum: float = MOMENTUM) -> None:
        super().__init__()
        self.momentum = momentum
        self.model = copy.deepcopy(student).requires_grad_(False).eval()
        width = student.config.embed_dim
        device = student.log_scale.device
        self.register_buffer("image_QE", torch.zeros(num_places, width, device=device))
        self.register_buffer("text_QE", torch.zeros(num_places, width, device=device))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """Move every weight towards the student's: t = m * t + (1 - m) * s. Statistics of batch norms are copied."""
        own = dict(self.model.named_parameters())
        for name, parameter in student.named_parameters():
            own[name].mul_(self.momentum).add_(parameter, alpha=1 - self.momentum)
        buffers = dict(self.model.named_buffers())
        for name, buffer in student.named_buffers():
            buffers[name].copy_(buffer)

    @torch.no_grad()
    def embed(self, pixels_B3SS: Tensor, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's unit vectors."""
        image_BE, text_BE, _ = self.model(pixels_B3SS, tokens_BT)
        return image_BE, text_BE

    @torch.no_grad()
    def remember(self, image_GE: Tensor, text_GE: Tensor) -> None:
        """Write the embeddings of all workers over the oldest ones, round and round; the batch need not divide the queue."""
        places = len(self.image_QE)
        if not places:
            return
        image_GE, text_GE = image_GE[-places:], text_GE[-places:]
        index = (int(self.cursor) + torch.arange(len(image_GE), device=image_GE.device)) % places
        self.image_QE[index], self.text_QE[index] = image_GE.float(), text_GE.float()
        self.cursor.copy_((self.cursor + len(image_GE)) % places)
        self.filled.copy_((self.filled + len(image_GE)).clamp(max=places))

    def queue(self) -> tuple[Tensor, Tensor]:
        """Return the embeddings written so far."""
        count = int(self.filled)
        return self.image_QE[:count], self.text_QE[:count]


def distilled_loss(
    student: tuple[Tensor, Tensor],
    taught: tuple[Tensor, Tensor],
    teacher: Teacher,
    scale: Tensor,
    first: int,
    alpha: float,
    counts: tuple[int, ...] | None = None,
) -> Tensor:
    """Return the contrast against all workers' pairs and the queue; alpha of each target is what the teacher believes.

    student, taught: image and text unit vectors of this worker. The candidates are the teacher's, without gradient.
    """
    taught_G = gather(taught[0], counts).detach(), gather(taught[1], counts).detach()
    candidates_AE = [torch.cat([now, old]) for now, old in zip(taught_G, teacher.queue(), strict=True)]
    teacher.remember(*taught_G)
    losses = []
    for own, other in ((0, 1), (1, 0)):
        logits_BA = scale * student[own] @ candidates_AE[other].T
        hard_BA = torch.zeros_like(logits_BA)
        hard_BA[torch.arange(len(logits_BA)), torch.arange(first, first + len(logits_BA))] = 1
        soft_BA = (scale.detach() * taught[own] @ candidates_AE[other].T).softmax(1)
        target_BA = alpha * soft_BA + (1 - alpha) * hard_BA
        losses.append(-(target_BA * functional.log_softmax(logits_BA, 1)).sum(1).mean())
    return torch.stack(losses).mean()
