"""The two sums that a fit takes over every merged tensor, in blocks: Σ_k α_k τ_k, and ⟨∂L/∂W, τ_k⟩ of every chunk.

A task vector is used as a block of ``wide`` numbers (fp32; float64 for a float64 model), wherever it came from: held
as such, or computed into one buffer from the stored θ_k and θ_base. The blocks, the order of the sums and the buffers'
alignment are the same for every placement, and so is every bit of the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from emkit.coefficients import chunks_within

BLOCK = {"cpu": 2**18, "cuda": 2**23}  # elements: about a core's cache, and worth sharing among cores; a busy GPU


@dataclass(frozen=True)
class Rows:
    """One tensor, flattened: ``base`` θ_base [n] as stored; ``vectors`` K × [n], the experts' θ_k as stored, or the
    task vectors τ_k themselves where ``given`` (then ``base`` is used for the sum only)."""

    base: torch.Tensor
    vectors: Sequence[torch.Tensor]
    given: bool


class Arithmetic:
    """The sums on one device, with the few blocks of working memory that they need."""

    def __init__(self, device: torch.device | str, wide: torch.dtype, block: int | None = None):
        self.device, self.wide = torch.device(device), wide
        self.block = block or BLOCK.get(self.device.type, BLOCK["cuda"])
        self._buffers: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def merge(self, rows: Rows, alpha: torch.Tensor, bounds: Sequence[int], out: torch.Tensor) -> None:
        """``out`` [n] ← θ_base + Σ_k Σ_s α_{k,s} τ_{k,s}, summed in ``wide`` and rounded once (Eq. 5).

        ``alpha`` float64 [K, m]; ``bounds`` of the m chunks of the flattened tensor, a range where all are rows of one
        length.
        """
        factors = alpha.to(self.wide)
        if isinstance(bounds, range):
            return self._merge_rows(rows, factors, bounds.step, out)
        if self.device.type == "cpu":
            factors = factors.tolist()  # plain numbers: no kernel for each
        for low, high in self._blocks(len(out)):
            base = self._wide("base", rows.base[low:high])
            sums = out[low:high] if out.dtype == self.wide else self._buffer("sums", high - low)
            sums.copy_(base)
            segments = list(chunks_within(bounds, low, high))
            for k in range(len(rows.vectors)):
                tau = self._tau(rows, k, low, high, base)
                for s, part in segments:
                    if self.device.type == "cpu":
                        sums[part].add_(tau[part], alpha=factors[k][s])
                    else:
                        sums[part].addcmul_(tau[part], factors[k, s])
            if out.dtype != self.wide:
                out[low:high] = sums

    @torch.no_grad()
    def contract(self, rows: Rows, gradient: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
        """⟨gradient, τ_k⟩ on every chunk: [n] → float64 [K, m]; products in ``wide``, blocks summed in float64.

        This is ∂L/∂α by the chain rule, for W = θ_base + Σ_k Σ_s α_{k,s} τ_{k,s} and gradient = ∂L/∂W.
        """
        experts, chunks = len(rows.vectors), len(bounds) - 1
        if isinstance(bounds, range):
            return self._contract_rows(rows, gradient, bounds.step)
        parts: list[list] = [[] for _ in range(experts * chunks)]
        for low, high in self._blocks(len(gradient)):
            g = gradient[low:high] if gradient.dtype == self.wide else self._wide("gradient", gradient[low:high])
            base = None if rows.given else self._wide("base", rows.base[low:high])
            segments = list(chunks_within(bounds, low, high))
            for k in range(experts):
                tau = self._tau(rows, k, low, high, base)
                for s, part in segments:
                    parts[k * chunks + s].append(torch.dot(tau[part], g[part]))
        if all(len(part) == 1 for part in parts):  # the usual case of small tensors, in three kernels
            return torch.stack([part[0] for part in parts]).double().reshape(experts, chunks)
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        sums = [torch.stack(part).double().sum() if len(part) > 1 else part[0] if part else zero for part in parts]
        return torch.stack([value.double() for value in sums]).reshape(experts, chunks)

    def _merge_rows(self, rows: Rows, factors: torch.Tensor, n: int, out: torch.Tensor) -> None:
        """:meth:`merge` of a matrix with rows of ``n``, whose ``factors`` [K, m] are one a row."""
        for low, high in self._blocks(len(out), n):
            base = self._wide("base", rows.base[low:high])
            sums = out[low:high] if out.dtype == self.wide else self._buffer("sums", high - low)
            sums.copy_(base)
            for k in range(len(rows.vectors)):
                tau = self._tau(rows, k, low, high, base)
                sums.view(-1, n).addcmul_(tau.view(-1, n), factors[k, low // n : high // n, None])
            if out.dtype != self.wide:
                out[low:high] = sums

    def _contract_rows(self, rows: Rows, gradient: torch.Tensor, n: int) -> torch.Tensor:
        """:meth:`contract` of a matrix with rows of ``n``, each of which is a chunk."""
        found = torch.empty(len(rows.vectors), len(gradient) // n, dtype=torch.float64, device=self.device)
        for low, high in self._blocks(len(gradient), n):
            g = gradient[low:high] if gradient.dtype == self.wide else self._wide("gradient", gradient[low:high])
            base = None if rows.given else self._wide("base", rows.base[low:high])
            for k in range(len(rows.vectors)):
                tau = self._tau(rows, k, low, high, base)
                found[k, low // n : high // n] = torch.linalg.vecdot(tau.view(-1, n), g.view(-1, n))
        return found

    def _blocks(self, n: int, of: int = 1) -> Iterator[tuple[int, int]]:
        """Blocks of ``n`` entries; with ``of`` of whole multiples of so many, at least one."""
        size = max(self.block // of, 1) * of
        return ((low, min(low + size, n)) for low in range(0, n, size))

    def _tau(self, rows: Rows, k: int, low: int, high: int, base: torch.Tensor | None) -> torch.Tensor:
        """τ_k on a block, in ``wide``; it may lie in the buffer that the next call overwrites."""
        vector = rows.vectors[k][low:high]
        if rows.given:
            return vector if vector.dtype == self.wide else self._wide("tau", vector)
        if self.device.type == "cpu":  # there, converting by itself is faster
            return self._wide("tau", vector).sub_(base)
        return torch.sub(vector, base, out=self._buffer("tau", len(vector)))

    def _wide(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return self._buffer(name, len(values)).copy_(values)

    def _buffer(self, name: str, size: int) -> torch.Tensor:
        if name not in self._buffers or len(self._buffers[name]) < size:
            self._buffers[name] = torch.empty(size, dtype=self.wide, device=self.device)
        return self._buffers[name][:size]
