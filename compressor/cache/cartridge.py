"""A cache whose keys and values are parameters: it begins as that of a text's first tokens, and is fitted to all."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kompakt.compressor.cache.context import CacheContext
from kompakt.compressor.errors import ConfigError, InputError
from kompakt.compressor.models.causal_lm import CausalLM
from kompakt.compressor.models.key_value_caches import cache_argument, new_cache
from kompakt.compressor.parts import CachePart
from kompakt.compressor.soft.decoder import body_of


class Cartridge(nn.Module):
    """Keys and values of ``n_positions`` places that a frozen decoder reads behind the beginning of a prompt.

    Keys have the rotation with which the decoder made them. They are free parameters from then on, which no place in
    a prompt changes; only the first ``n_frozen`` positions stay as they were made.

    Args:
        lm: The decoder.
        context: The text, with the tokens that stand before it in a prompt.
        n_positions: How many of its first tokens the cache begins as.
        n_frozen: How many of these are never changed.

    Raises:
        ConfigError: If there would be nothing to fit.
        InputError: If the text has fewer tokens.

    Source: Eyuboglu et al. 2025, "Cartridges: Lightweight and general-purpose long context representations via
    self-study", section 3.2.
    """

    beginning: torch.Tensor
    frozen: torch.Tensor

    def __init__(self, lm: CausalLM, context: CacheContext, *, n_positions: int, n_frozen: int = 1) -> None:
        super().__init__()
        if not 0 <= n_frozen < n_positions:
            raise ConfigError(
                f"n_positions must be positive and n_frozen less than it, got {n_positions} and {n_frozen}"
            )
        if n_positions > len(context.ids):
            raise InputError(
                f"the text has {len(context.ids)} tokens, which leaves nothing to fit into {n_positions} positions: "
                "ask for fewer"
            )
        self.lm = lm
        self.context = context
        first = len(context.before)
        made = _own_cache(lm, [*context.before, *context.ids[:n_positions]])
        self.register_buffer("beginning", made[..., :first, :])
        self.register_buffer("frozen", made[..., first : first + n_frozen, :])
        # steps of 2e-2 and smaller get lost in 16 bits
        self.trained = nn.Parameter(made[..., first + n_frozen :, :].float().clone())

    @property
    def n_positions(self) -> int:
        """Places of the cache."""
        return int(self.frozen.shape[-2] + self.trained.shape[-2])

    @property
    def entries(self) -> torch.Tensor:
        """Keys, then values: ``[2, L, H_kv, n_positions, D_head]``, in the decoder's number format."""
        return torch.cat([self.frozen, self.trained.to(self.frozen)], dim=-2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return what follows each token ``[B, T]`` read behind the cache: logits ``[B, T, V]``.

        Rows are filled up behind their end, where a causal model does not look.
        """
        model = self.lm.model
        n_rows, n_tokens = ids.shape
        whole = torch.cat([self.beginning, self.entries], dim=-2)
        cache = new_cache()
        for layer in range(whole.shape[1]):
            keys, values = (one.expand(n_rows, *one.shape) for one in (whole[0, layer], whole[1, layer]))
            cache.update(keys, values, layer)
        start = whole.shape[-2]
        output: Any = model(
            input_ids=ids,
            attention_mask=ids.new_ones(n_rows, start + n_tokens),
            position_ids=torch.arange(start, start + n_tokens, device=ids.device).expand(n_rows, -1),
            **cache_argument(model, cache),
            use_cache=True,
        )
        logits: torch.Tensor = output.logits
        return logits

    def part(self) -> CachePart:
        """Return the cache as it is, for ``TransformersBackend`` and ``save_cache``."""
        keys, values = self.entries.detach().cpu().clone()
        return CachePart(tuple(keys), tuple(values), self.lm.fingerprint, self.context.source, "as-is")


def distillation_loss(logits: torch.Tensor, top_ids: torch.Tensor, top_log_p: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of each position with a teacher's most probable tokens, ``[N]``, in nats.

    The teacher's probabilities are used as they are: they do not sum to 1, since only the largest are known.

    Args:
        logits: The student's, ``[N, V]``.
        top_ids: The teacher's most probable tokens, ``[N, K]``.
        top_log_p: The logarithms of their probabilities, ``[N, K]``.

    Source: Eyuboglu et al. 2025, "Cartridges", section 4.2.
    """
    scores = logits.float()
    log_q = scores.gather(-1, top_ids) - scores.logsumexp(dim=-1, keepdim=True)
    return -(top_log_p.exp() * log_q).sum(dim=-1)


def _own_cache(lm: CausalLM, ids: list[int]) -> torch.Tensor:
    """Return a decoder's keys and values of tokens from position 0 on, ``[2, L, H_kv, T, D_head]``."""
    body, cache = body_of(lm), new_cache()
    tokens = torch.tensor([ids], device=lm.model.device)
    with torch.no_grad():
        body(input_ids=tokens, attention_mask=torch.ones_like(tokens), **cache_argument(body, cache), use_cache=True)
    layers: list[Any] = list(cache.layers)
    return torch.stack([torch.stack([getattr(layer, name)[0] for layer in layers]) for name in ("keys", "values")])
