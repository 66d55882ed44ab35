"""Two workers with half of the batch each must get the gradient that one worker gets from all of it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from belvedere_platform.ports import free_port
from belvedere_training.gradcache import Embedded, cached_backward, chunks
from belvedere_training.objectives.contrastive import alike, contrastive_loss
from belvedere_training.objectives.gather import gather

ROWS = 8


class Pair(nn.Module):
    """Two projections and a temperature, as the model has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(6, 4), nn.Linear(5, 4)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        image_BE, text_BE = functional.normalize(self.image(image)), functional.normalize(self.text(text))
        return image_BE, text_BE, self.log_scale.exp()


def gradients(rank: int, counts: tuple[int, ...], chunk_size: int = ROWS) -> dict[str, Any]:
    size, first = len(counts), sum(counts[:rank])
    weight = counts[rank] * size / ROWS
    generator = torch.Generator().manual_seed(1)
    image, text = torch.randn(ROWS, 6, generator=generator), torch.randn(ROWS, 5, generator=generator)
    same_GG = alike([0, 1, 2, 3, 4, 5, 6, 0], [*"abcdefg", "c"])
    rows = slice(first, first + counts[rank])
    pair = Pair()
    network = DistributedDataParallel(pair) if size > 1 else pair
    own_image, own_text = image[rows], text[rows]

    def embed(chunk: slice, last: bool) -> Embedded:
        return Embedded(*network(own_image[chunk], own_text[chunk]))

    def loss_of(image_BE: torch.Tensor, text_BE: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return contrastive_loss(
            image_BE,
            text_BE,
            scale,
            all_image_GE=gather(image_BE, counts),
            all_text_GE=gather(text_BE, counts),
            same_GG=same_GG,
            first=rows.start,
            label_smoothing=0.05,
        )

    if chunk_size < len(own_image):
        no_sync = network.no_sync if isinstance(network, DistributedDataParallel) else nullcontext
        rows_of_chunks = chunks(len(own_image), chunk_size)
        cached_backward(embed, loss_of, rows_of_chunks, pair, factor=weight, no_sync=no_sync)
    else:
        (weight * loss_of(*network(own_image, own_text))).backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad for name, parameter in pair.named_parameters()}


def worker(rank: int, size: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    found = [gradients(rank, counts, chunk) for counts in ((4, 4), (5, 3)) for chunk in (ROWS, 2)]
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_get_the_gradient_of_one(tmp_path: Path) -> None:
    port = free_port()
    spawn(worker, args=(2, port, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    expected = gradients(0, (ROWS,))
    for rank in (0, 1):
        for found in torch.load(tmp_path / f"{rank}.pt", weights_only=True):  # evenly and not, at once and in chunks
            for name, gradient in expected.items():
                torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def test_alone_the_rows_stay_as_they_are() -> None:
    rows = torch.randn(3, 2)
    assert gather(rows) is rows
