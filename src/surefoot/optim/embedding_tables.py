"""Which parameters are embedding tables: they get their own learning rate, and the paper does not clip them."""

import re
from typing import NamedTuple

from torch import nn

_TABLES_OF_TORCHREC = re.compile("(Fused|Sharded|)Embedding(Bag)?Collection")  # by name, without importing torchrec


class SplitParameters(NamedTuple):
    """A model's parameters by name: dense layers and embedding tables."""

    dense: dict[str, nn.Parameter]
    embedding: dict[str, nn.Parameter]


def split_parameters(model: nn.Module) -> SplitParameters:
    """Separate the embedding tables from all other parameters; the paper clips only the others."""
    tables = embedding_tables(model)
    named = dict(model.named_parameters())
    return SplitParameters(
        {name: p for name, p in named.items() if p not in tables},
        {name: p for name, p in named.items() if p in tables},
    )


def embedding_tables(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of the model's embedding tables, recognised by their module's class.

    >>> embedding_tables(nn.Linear(2, 1))
    set()
    """
    return {param for module in model.modules() if _is_table(module) for param in module.parameters()}


def _is_table(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return True
    return any(_TABLES_OF_TORCHREC.fullmatch(base.__name__) for base in type(module).__mro__)
