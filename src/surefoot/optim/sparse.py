"""Sparse gradients of any kind, as what rules and optimizers here take: touched rows."""

import torch
from torch import Tensor


def by_row(grad: Tensor) -> Tensor:
    """Return a sparse gradient coalesced and sparse in its first dimension alone.

    Duplicates are summed. Where it is sparse in more dimensions, as ``to_sparse()`` makes it, a row that it touches
    anywhere is a touched row, whose other numbers are 0. What has no rows, a gradient of one number, becomes dense; a
    dense gradient stays as it is.

    >>> grad = torch.tensor([[0.0, 0.0], [0.0, 7.0]]).to_sparse()
    >>> by_row(grad).indices(), by_row(grad).values()
    (tensor([[1]]), tensor([[0., 7.]]))
    """
    if not grad.is_sparse:
        return grad
    if not grad.sparse_dim():
        return grad.to_dense()
    grad = grad.coalesce()
    if grad.sparse_dim() == 1:
        return grad
    rows, places = _places(grad)
    values = grad.values().new_zeros((len(rows), *grad.shape[1:])).index_put_(places, grad.values())
    kind = {"dtype": grad.dtype, "device": grad.device}
    return torch.sparse_coo_tensor(rows[None], values, grad.shape, is_coalesced=True, check_invariants=False, **kind)


def at_its_places(by_rows: Tensor, grad: Tensor) -> Tensor:
    """Return what belongs to each stored number of a coalesced sparse gradient, of numbers for its touched rows.

    Args:
        by_rows: of the shape of ``by_row(grad).values()``.
        grad: as ``coalesce()`` returns it.
    """
    return by_rows if grad.sparse_dim() == 1 else by_rows[_places(grad)[1]]


def _places(grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the rows that a coalesced gradient touches, and where in these its numbers stand."""
    first, *others = grad.indices().unbind()
    rows, within = first.unique(return_inverse=True)
    return rows, (within, *others)
