"""From a configuration to a model: the package's own ranker, or what a user's function returns."""

from itertools import islice

import torch
from torch import Tensor, nn

from surefoot.errors import InputError
from surefoot.lab import extensions
from surefoot.lab.data.prepared import PreparedLog
from surefoot.lab.data.schema import Log, Schema
from surefoot.lab.models.layers import CrossNetwork, FeatureEmbedding, MixtureOfExperts, SharedBottom
from surefoot.lab.models.ranker import LabelUnits, LinearRanker, Ranker, task_heads
from surefoot.lab.study.config import ModelConfig
from surefoot.optim.embedding_tables import split_parameters

_FIRST_ROWS = 64


def build_model(config: ModelConfig, log: Log | PreparedLog) -> nn.Module:
    """Return the model for a log's columns, its weights drawn from torch's global generator.

    A model of the user's own has been tried on the log's first rows.

    Raises:
        InputError: if the user's function cannot be found or fails, or what it returns cannot be trained on the log.
    """
    if config.factory is None:
        return ranker(config, log.schema)
    try:
        build = extensions.find(config.factory)
    except InputError as error:
        raise InputError(f"model.factory {error}") from error
    about = f"model.factory {config.factory!r}"
    if not callable(build):
        raise InputError(f"{about} is of type {type(build).__name__}; expected a function")
    try:
        model = build(log.schema, **config.arguments)
    except Exception as error:  # whatever the user's function does
        given = "".join(f", {key}={value!r}" for key, value in config.arguments.items())
        raise InputError(f"{about}: called with (schema{given}) it failed: {extensions.told(error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{about} returned an object of type {type(model).__name__}; expected a torch.nn.Module")
    _try_on_first_rows(model, log, about)
    if not split_parameters(model).dense:
        raise InputError(f"{about} returned a model without weights other than embedding tables; expected dense layers")
    return model


def fit_label_units(model: nn.Module, log: Log | PreparedLog) -> None:
    """Start a model at each task's constant: that of the oldest partition, which is trained on and never scored."""
    labels = [piece.labels for piece in islice(log.pieces(0, 1 << 16), 4)]  # 262,144 rows tell a mean well enough
    for module in model.modules():
        if isinstance(module, LabelUnits):
            module.fit(labels, log.schema.tasks)


def ranker(config: ModelConfig, schema: Schema) -> nn.Module:
    """Return the package's own ranker for a log's columns."""
    if config.bottom == "linear":
        return LinearRanker(schema)
    rows, widths = [column.rows for column in schema.categorical], [column.width for column in schema.categorical]
    width = len(rows) * config.embedding_dim + len(schema.dense)
    tasks = len(schema.tasks)
    if config.bottom == "experts":
        bottom = MixtureOfExperts(width, config.hidden, tasks, experts=config.experts)
    else:
        bottom = SharedBottom(width, config.hidden, tasks)
    return Ranker(
        embedding=FeatureEmbedding(rows, config.embedding_dim, widths=widths),
        interaction=CrossNetwork(width, config.cross_layers) if config.cross_layers else nn.Identity(),
        bottom=bottom,
        heads=task_heads(schema.tasks, [width, *config.hidden][-1]),
        units=LabelUnits(tasks),
    )


@torch.no_grad()
def _try_on_first_rows(model: nn.Module, log: Log | PreparedLog, about: str) -> None:
    """Refuse a model whose outputs for the log's first rows are not one finite number a row and task."""
    rows = next(log.pieces(0, _FIRST_ROWS))
    given = f"categorical {tuple(rows.categorical.shape)} {rows.categorical.dtype}, dense {tuple(rows.dense.shape)}"
    try:
        outputs = model.eval()(rows.categorical, rows.dense)
        model.train()
    except Exception as error:  # whatever the user's model does
        raise InputError(f"{about}: its model, called with {given}, failed: {extensions.told(error)}") from error
    expected = (len(rows.labels), len(log.schema.tasks))
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"{about}: its model returned an object of type {type(outputs).__name__}; expected one tensor "
            f"{expected}: rows, tasks"
        )
    if tuple(outputs.shape) != expected or not outputs.is_floating_point():
        raise InputError(
            f"{about}: its model returned a tensor {tuple(outputs.shape)} of {outputs.dtype}; expected {expected}, "
            "rows and tasks, of real numbers"
        )
    if not outputs.isfinite().all():
        row, task = outputs.isfinite().logical_not().nonzero()[0].tolist()
        raise InputError(
            f"{about}: its model returned {outputs[row, task].item()} for row {row} and task "
            f"{log.schema.tasks[task].name}, before any step; expected finite numbers"
        )
