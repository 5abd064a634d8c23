"""diffusers' transformer through torch.compile: Inductor for fixed sizes, weights frozen so that it may pack them."""

from __future__ import annotations

from typing import Any

import torch

from vitrify.bench.peers.eager import Eager

__all__ = ["Compiled", "freeze_weights"]


def freeze_weights() -> None:
    """Let Inductor take weights for constants in inference: without it a Linear is not packed."""
    config: Any = torch._inductor.config
    config.freezing = True


class Compiled(Eager):
    """Compiles at the first step, in the default mode."""

    def open(self) -> None:
        super().open()
        freeze_weights()
        self._model = torch.compile(self._model, dynamic=False)  # type: ignore[assignment]
