"""Turns sparse gradients of any layout into touched rows, the form that rules and optimizers here use."""

import torch
from torch import Tensor


def by_row(grad: Tensor) -> Tensor:
    """Return a sparse gradient coalesced, and sparse in its first dimension only.

    Duplicates are summed. If the gradient is sparse in more dimensions, as after ``to_sparse()``, each row with a
    stored number is a touched row, and its other numbers are 0. A sparse 0-d gradient has no rows and becomes dense; a
    dense gradient is returned as it is.

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
    """Return, for each stored number of a coalesced sparse gradient, the number of ``by_rows`` at the same place.

    Args:
        by_rows: numbers for the touched rows, in the shape of ``by_row(grad).values()``.
        grad: as ``coalesce()`` returns it.
    """
    return by_rows if grad.sparse_dim() == 1 else by_rows[_places(grad)[1]]


def _places(grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the touched rows of a coalesced gradient, and the indices of its stored numbers in these rows."""
    first, *others = grad.indices().unbind()
    rows, within = first.unique(return_inverse=True)
    return rows, (within, *others)
