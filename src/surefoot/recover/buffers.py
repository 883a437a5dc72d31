"""A model's buffers, the statistics of a batch norm above all: a step that was skipped leaves them as they were."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surefoot.optim.nonfinite import readable

_SMALL = 1 << 16  # numbers; larger ones are copied only if torch says that they have changed
_MAY_BE_NAN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class _Kept:
    """One buffer as it was after the last step that counted."""

    buffer: Tensor  # the model's own
    version: int  # which torch counts up with a change in place, but for those that its batch norm makes
    values: Tensor  # a copy

    def fits(self, buffer: Tensor) -> bool:
        """Return whether the copy can be put in its place: a model may have been moved, or a buffer made anew."""
        mine, its = ((t.shape, t.dtype, t.device) for t in (self.values, buffer))
        return mine == its


class Buffers:
    """Keeps the buffers of a model, to give them back after a forward pass that led to no step.

    The forward pass of a batch norm takes a batch into its running averages before anybody knows whether there will be
    a step; a single NaN stays there for good. Large ones that nothing has changed since the last call cost no copy.

    Args:
        model: whose buffers, persistent or not, of whatever type.

    >>> norm = nn.BatchNorm1d(1)
    >>> buffers = Buffers(norm)
    >>> _ = norm(torch.tensor([[1.0], [torch.nan]]))
    >>> buffers.settle(skipped=False)  # a value that is not finite is never kept
    >>> norm.running_mean, norm.num_batches_tracked
    (tensor([0.]), tensor(0))
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [(module._buffers, name) for module in model.modules() for name in module._buffers]
        owners = [id(buffers) for buffers, _ in self._places]
        self._beside = [[j for j, other in enumerate(owners) if other == owner] for owner in owners]
        self._kept: list[_Kept | None] = [None] * len(self._places)
        self.keep()

    @torch.no_grad()
    def keep(self) -> None:
        """Take the buffers as they are now."""
        self._take(list(range(len(self._places))))

    @torch.no_grad()
    def settle(self, skipped: bool | Tensor) -> None:
        """Give back what was kept if the step was skipped, or if a buffer that was finite is not so any more.

        Otherwise keep the buffers as they are now.

        Args:
            skipped: whether it was; a 0-d tensor on a device is not waited for.
        """
        changed = [i for i in range(len(self._places)) if self._may_have_changed(i)]
        if not changed:
            return
        present = [(i, self._kept[i], self._buffer(i)) for i in changed]
        alike = {i: (kept, b) for i, kept, b in present if kept is not None and b is not None and kept.fits(b)}
        pairs = list(alike.values())
        bad = skipped if skipped is True else _either(skipped, _spoiled(pairs))
        if isinstance(bad, Tensor) and not readable(bad):
            for kept, buffer in pairs:
                buffer.copy_(torch.where(bad.to(buffer.device), kept.values, buffer))
        elif bad:
            for i, (kept, _) in alike.items():
                buffers, name = self._places[i]
                buffers[name] = kept.buffer.copy_(kept.values)
        self._take(changed)

    def _buffer(self, place: int) -> Tensor | None:
        buffers, name = self._places[place]
        return buffers.get(name)

    def _may_have_changed(self, place: int) -> bool:
        kept = self._kept[place]
        if kept is None or kept.values.numel() <= _SMALL:
            return kept is not None or self._buffer(place) is not None
        return any(self._has_changed(i) for i in self._beside[place])

    def _has_changed(self, place: int) -> bool:
        buffer, kept = self._buffer(place), self._kept[place]
        if buffer is None or kept is None:
            return buffer is not kept
        return buffer is not kept.buffer or buffer._version != kept.version

    def _take(self, places: Sequence[int]) -> None:
        copies: list[Tensor] = []
        values: list[Tensor] = []
        for i in places:
            kept, buffer = self._kept[i], self._buffer(i)
            if buffer is None:
                self._kept[i] = None
            elif kept is not None and kept.fits(buffer):
                kept.buffer, kept.version = buffer, buffer._version
                copies.append(kept.values)
                values.append(buffer)
            else:
                self._kept[i] = _Kept(buffer, buffer._version, buffer.detach().clone())
        if copies:
            torch._foreach_copy_(copies, values)  # pyright: ignore[reportPrivateImportUsage]


def _spoiled(pairs: Sequence[tuple[_Kept, Tensor]]) -> bool | Tensor:
    """Return whether a buffer that was finite is not so any more; as a 0-d tensor where reading it would be a wait."""
    pairs = [(kept, buffer) for kept, buffer in pairs if buffer.dtype in _MAY_BE_NAN and buffer.numel()]
    if not pairs:
        return False
    finite = _finite([buffer for _, buffer in pairs])
    if readable(finite) and bool(finite.all()):
        return False
    spoiled = (~finite & _finite([kept.values for kept, _ in pairs])).any()
    return bool(spoiled) if readable(spoiled) else spoiled


def _finite(several: list[Tensor]) -> Tensor:
    """Return for each tensor whether all of it is finite, (tensors,), on the first one's device."""
    norms = torch._foreach_norm(several, torch.inf)  # pyright: ignore[reportPrivateImportUsage]
    if len({(norm.dtype, norm.device) for norm in norms}) == 1:
        return torch.stack(list(norms)).isfinite()
    return torch.stack([norm.isfinite().to(norms[0].device) for norm in norms])


def _either(a: bool | Tensor, b: bool | Tensor) -> bool | Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a | b.to(a.device)
    return a if b is False else b if a is False else True
