"""The contract of an optimizer, as a table: every optimizer, every rule, every feature.

``make test`` runs a subset that holds every pair of optimizer and rule, of optimizer and feature, of rule and
feature; the full product is marked slow. A cell left out has its reason in ``REASONS``.
"""

import copy
import inspect
import io
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import combinations, product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import Parameter
from torch.nn.functional import embedding
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from properties import all_of, over
from surefoot.optim.adagrad import Adagrad
from surefoot.optim.clip_updates import clip_updates
from surefoot.optim.clippy_adagrad import ClippyAdagrad
from surefoot.rules import (
    ALL,
    AdaptiveGradientClip,
    Clippy,
    GlobalGradientClip,
    GradientClip,
    NoClip,
    Rule,
    Scope,
    TrustRatio,
    broadcast,
)

LR = 0.125
Grads = list[Tensor]

# The rules

TIGHT: tuple[Rule, ...] = (  # they clip in every step of every optimizer
    GradientClip(1e-4),
    GlobalGradientClip(1e-4),
    AdaptiveGradientClip(1e-5),
    TrustRatio(1e-5),
    Clippy(1e-5, 1e-7),
)
RULES = {repr(rule): rule for rule in (*(kind() for kind in ALL), *TIGHT)}
BESIDE = Clippy(1e-3, 1e-5)  # the rule of another group


# The optimizers


class Subject(NamedTuple):
    """One row of the table."""

    make: Callable[[Any, Rule], Optimizer]  # of groups and, if it takes one, a rule
    native: bool
    takes_sparse: bool
    takes_dense: bool = True
    takes_vectors: bool = True


def native(make: Callable[..., Optimizer]) -> Subject:
    return Subject(make, native=True, takes_sparse=True)


def ruled(groups: list[dict[str, Any]], rule: Rule) -> list[dict[str, Any]]:
    """Return groups with their rule in them, for an optimizer whose constructor takes none."""
    return [{"rule": rule} | group for group in groups]


def torch_optimizers() -> list[type[Optimizer]]:
    found = {each for each in vars(torch.optim).values() if isinstance(each, type) and issubclass(each, Optimizer)}
    return sorted(found - {Optimizer}, key=lambda kind: kind.__name__)


TAKE_SPARSE = ("SGD", "SGD, foreach", "Adagrad", "Adagrad, foreach", "SparseAdam")


def attached() -> dict[str, Subject]:
    """Return all optimizers of torch, by every implementation that they have."""
    table: dict[str, Subject] = {}
    for kind in torch_optimizers():
        name = kind.__name__
        options = inspect.signature(kind).parameters
        ways: dict[str, dict[str, Any]] = {name: {way: False for way in ("foreach", "fused") if way in options}}
        ways |= {f"{name}, {way}": {way: True} for way in ways[name]}
        if name == "SGD":
            ways |= {f"{each}, momentum": chosen | {"momentum": 0.9} for each, chosen in ways.items()}
        for each, chosen in ways.items():
            table[each] = Subject(
                lambda groups, _, kind=kind, chosen=chosen: kind(groups, lr=LR, **chosen),  # pyright: ignore[reportCallIssue]
                native=False,
                takes_sparse=each.removesuffix(", momentum") in TAKE_SPARSE,
                takes_dense=name != "SparseAdam",
                takes_vectors=name not in ("Muon", "SparseAdam"),
            )
    return table


OPTIMIZERS: dict[str, Subject] = {
    "surefoot.Adagrad, kernel": native(lambda groups, rule: Adagrad(groups, LR, rule=rule)),
    "surefoot.Adagrad, eager": native(lambda groups, rule: Adagrad(groups, LR, rule=rule, fused=False)),
    "surefoot.ClippyAdagrad": native(lambda groups, rule: ClippyAdagrad(ruled(groups, rule), LR)),
    "surefoot.ClippyAdagrad.tfrs": native(lambda groups, rule: ClippyAdagrad.tfrs(ruled(groups, rule), LR)),
    **attached(),
}


class Run:
    """An optimizer under a rule, by its own means or attached."""

    def __init__(self, subject: Subject, rule: Rule, *groups: dict[str, Any]) -> None:
        self.subject, self.rule = subject, rule
        self.adopt(subject.make(list(groups), rule))

    def adopt(self, optimizer: Optimizer) -> "Run":
        """Take over an optimizer, its hooks not yet in place."""
        self.optimizer = optimizer
        self.params: list[Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self.clipper: Any = optimizer if self.subject.native else clip_updates(optimizer, self.rule)
        return self

    def give(self, grads: Sequence[Tensor | None]) -> None:
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = None if grad is None else grad.clone()

    def step(self, grads: Sequence[Tensor | None]) -> None:
        self.give(grads)
        self.optimizer.step()

    def state(self) -> list[Tensor]:
        """Return copies of weights and states, in order."""
        found = []
        for p in self.params:
            state = self.optimizer.state[p]
            found += [
                p.detach().clone(),
                *(torch.as_tensor(state[k]).clone() for k in sorted(state) if state[k] is not None),
            ]
        return found

    def factors(self) -> list[Tensor]:
        """Return the factors of the last step; under a tight rule some are not 1."""
        told = self.clipper.clip_factors()
        assert set(told) == set(self.params)
        narrow = self.params[0].dtype is torch.bfloat16  # whose updates may round to nothing
        assert self.rule not in TIGHT or narrow or any((told[p] != 1).any() for p in self.params)
        return [told[p] for p in self.params]


def same_bits(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0.0, atol=0.0)


def assert_same(run: Run, other: Run) -> None:
    same_bits(run.state(), other.state())
    same_bits(run.factors(), other.factors())


def parameters(subject: Subject, dtype: torch.dtype = torch.float32) -> list[Parameter]:
    shapes = ((4, 3), (5,), (2, 3, 2), ()) if subject.takes_vectors else ((4, 3), (5, 2), (1, 6))
    return [Parameter(torch.randn(shape, dtype=torch.float64).to(dtype)) for shape in shapes]


def twins(params: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Parameter]:
    return [Parameter(p.detach().clone().to(dtype)) for p in params]


def sparse(p: Tensor, size: float = 1.0) -> Tensor:
    """Draw a sparse gradient of three rows, two of them the same if chance will."""
    rows = torch.randint(p.shape[0], (3,))
    values = (size * torch.randn(3, *p.shape[1:])).to(p.dtype)
    return torch.sparse_coo_tensor(rows[None], values, p.shape, check_invariants=True)


def gradients(subject: Subject, params: Sequence[Tensor], steps: int) -> list[Grads]:
    """Draw gradients whose size jumps between 0.1 and 10, so that default thresholds clip now and then."""
    sizes = (10.0 ** (2 * torch.rand(steps) - 1)).tolist()
    if not subject.takes_dense:
        return [[sparse(p, size) for p in params] for size in sizes]
    return [[(size * torch.randn(p.shape)).to(p.dtype) for p in params] for size in sizes]


def spoil(grads: Grads, value: float) -> Grads:
    """Put one bad number into the second gradient."""
    bad = [grad.clone() for grad in grads]
    (bad[1]._values() if bad[1].is_sparse else bad[1]).view(-1)[0] = value
    return bad


def by_formula(rule: Rule, old: Grads, grads: Grads, plain: Grads) -> tuple[Grads, Grads]:
    """Return eq. (5)'s factors and weights, given where the optimizer alone would have gone; touched rows only."""
    rows: list[Any] = [g.coalesce().indices()[0] if g.is_sparse else ... for g in grads]
    dense = [g.coalesce().values() if g.is_sparse else g for g in grads]
    updates = [(w[i] - v[i]) / LR for w, v, i in zip(old, plain, rows, strict=True)]
    measures = [rule.measure(w[i], g, r, LR) for w, g, r, i in zip(old, dense, updates, rows, strict=True)]
    if rule.scope is Scope.MODEL:
        factors = [rule.factor(rule.combine(torch.stack(measures, -1)))] * len(measures)
    else:
        factors = [rule.factor(measure) for measure in measures]
    weights = [w.clone() for w in old]
    for w, r, factor, i in zip(weights, updates, factors, rows, strict=True):
        w[i] = w[i] - LR * broadcast(factor, r) * r
    return factors, weights


def close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    assert len(found) == len(expected) > 0
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x.detach(), y, rtol=tolerance, atol=tolerance * 1e-3)


# The features


def groups(subject: Subject, rule: Rule) -> None:
    """Groups with a rate and a rule of their own step as two optimizers would."""
    params = parameters(subject)
    own = {"lr": 0.5 * LR, "rule": BESIDE}
    run = Run(subject, rule, {"params": params[:2]}, {"params": params[2:]} | own)
    alone = Run(subject, rule, {"params": twins(params[:2])})
    beside = Run(subject, BESIDE, {"params": twins(params[2:]), "lr": 0.5 * LR})
    for grads in gradients(subject, params, 3):
        run.step(grads)
        alone.step(grads[:2])
        beside.step(grads[2:])
        same_bits(run.state(), alone.state() + beside.state())
        told = run.clipper.clip_factors()
        same_bits([told[p] for p in params], alone.factors() + beside.factors())


def closure(subject: Subject, rule: Rule) -> None:
    """A closure is called once, with gradients on, its loss returned, and the gradients that it makes are clipped."""
    params = parameters(subject)
    run, other = Run(subject, rule, {"params": params}), Run(subject, rule, {"params": twins(params)})
    calls: list[Grads] = []

    def backward(grads: Grads) -> float:
        assert torch.is_grad_enabled()
        calls.append(grads)
        run.give(grads)
        return 7.0

    steps = gradients(subject, params, 3)
    for grads in steps:
        run.optimizer.zero_grad()
        assert run.optimizer.step(partial(backward, grads)) == 7.0
        other.step(grads)
        assert_same(run, other)
    assert calls == steps


def scheduler(subject: Subject, rule: Rule) -> None:
    """A scheduler is accepted, and its rate obeyed."""
    params = parameters(subject)
    run, other = Run(subject, rule, {"params": params}), Run(subject, rule, {"params": twins(params)})
    schedule = LambdaLR(run.optimizer, lambda epoch: 0.5**epoch)
    for t, grads in enumerate(gradients(subject, params, 4)):
        other.optimizer.param_groups[0]["lr"] = LR * 0.5**t
        for each in (run, other):
            each.step(grads)
        schedule.step()
        assert_same(run, other)


def resume(subject: Subject, rule: Rule) -> None:
    """A state saved to a file and loaded without unpickling goes on bit-equal for 20 steps."""
    params = parameters(subject)
    run = Run(subject, rule, {"params": params})
    for grads in gradients(subject, params, 5):
        run.step(grads)
    torch.save(run.optimizer.state_dict(), file := io.BytesIO())
    file.seek(0)
    other = Run(subject, rule, {"params": twins(params)})
    other.optimizer.load_state_dict(torch.load(file, weights_only=True))
    for grads in gradients(subject, params, 20):
        run.step(grads)
        other.step(grads)
        assert_same(run, other)


def found_inf(subject: Subject, rule: Rule) -> None:
    """A step with a bad gradient never was: under GradScaler as without, at first as later."""
    params = parameters(subject)
    run, never = Run(subject, rule, {"params": params}), Run(subject, rule, {"params": twins(params)})
    scalers = {each: torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100) for each in (run, never)}

    def scaled(run: Run, grads: Grads) -> None:
        scaler = scalers[run]
        scale = scaler.scale(torch.ones(())).item()
        run.give([scale * grad for grad in grads])
        scaler.step(run.optimizer)
        scaler.update()

    def skipped(take: Callable[[], None]) -> None:
        before = run.state()
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # that a step was skipped
            take()
        if len(run.state()) == len(before):  # before the first step, some have no state yet
            same_bits(run.state(), before)
        same_bits([p.detach() for p in run.params], [p.detach() for p in never.params])

    steps = gradients(subject, params, 3)
    skipped(lambda: scaled(run, spoil(steps[0], torch.inf)))
    for i, grads in enumerate(steps):
        for each in (run, never):
            scaled(each, grads)
        assert_same(run, never)
        skipped(lambda grads=grads: scaled(run, spoil(grads, torch.inf)))
        if i == 1:
            count = run.clipper.skipped_steps
            skipped(lambda grads=grads: run.step(spoil(grads, torch.nan)))
            assert run.clipper.skipped_steps == count + 1
    assert scalers[run].get_scale() == 2.0**6
    assert scalers[never].get_scale() == 2.0**10


def takes_or_refuses_sparse(subject: Subject, rule: Rule) -> None:
    """Touched rows move as eq. (5) has it, others not; an optimizer that takes no sparse gradient says so, unharmed."""
    params = [Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((4, 3), (5, 2))]
    run = Run(subject, rule, {"params": params})
    if not subject.takes_sparse:
        before = twins(params)
        with pytest.raises((RuntimeError, ValueError), match="sparse"):
            run.step([sparse(p) for p in params])
        same_bits([p.detach() for p in params], [p.detach() for p in before])
        run.step([torch.randn_like(p) for p in params])
        assert all(p.isfinite().all() and not torch.equal(p, q) for p, q in zip(params, before, strict=True))
        return
    plain = subject.make([{"params": (others := twins(params))}], NoClip())
    for p, q in zip(params, others, strict=True):
        rows = torch.tensor([[len(p) - 1, 1, len(p) - 1]])
        p.grad = torch.sparse_coo_tensor(
            rows, torch.randn(3, p.shape[1], dtype=p.dtype), p.shape, check_invariants=True
        )
        q.grad = p.grad.clone()
    old = [p.detach().clone() for p in params]
    plain.step()
    run.optimizer.step()
    grads = [p.grad for p in params if p.grad is not None]
    factors, weights = by_formula(rule, old, grads, [q.detach() for q in others])
    close(run.factors(), factors, 1e-6)
    close(params, weights, 1e-12)
    for p, w in zip(params, old, strict=True):
        assert torch.equal(p[[0, 2]], w[[0, 2]])


def wide(grad: Tensor) -> Tensor:
    return (grad.coalesce() if grad.is_sparse else grad).float()  # duplicates are summed in the gradient's type


def bf16(subject: Subject, rule: Rule) -> None:
    """Narrow weights stay narrow, and their factors and native accumulators are those of float32."""
    params = parameters(subject, torch.bfloat16)
    run = Run(subject, rule, {"params": params})
    plain = subject.make([{"params": (others := twins(params, torch.float32 if subject.native else None))}], NoClip())
    old = [p.detach().float() for p in params]
    steps = gradients(subject, params, 3)
    for q, g in zip(others, steps[0], strict=True):
        q.grad = g.to(q.dtype)
    plain.step()
    run.step(steps[0])
    factors, weights = by_formula(rule, old, [wide(g) for g in steps[0]], [q.detach().float() for q in others])
    close(run.factors(), factors, 1e-4)
    close([p.float() for p in params], weights, 2.0**-8)  # half a unit in the last place
    for grads in steps[1:]:
        run.step(grads)
        assert {factor.dtype for factor in run.factors()} == {torch.float32}
    for p in params:
        assert p.dtype is torch.bfloat16
        assert p.isfinite().all()
        assert not subject.native or run.optimizer.state[p]["sum"].dtype is torch.float32


def compiled(subject: Subject, rule: Rule) -> None:
    """torch.compile around a whole training step changes no bit of a native step.

    Of torch's own optimizers it compiles the steps too, which then round in their own way.
    """
    params = parameters(subject)[:2]
    run, other = Run(subject, rule, {"params": params}), Run(subject, rule, {"params": twins(params)})

    def losses(run: Run, inputs: Grads) -> list[Tensor]:
        if subject.takes_dense:
            return [(p.square() * x).sum() for p, x in zip(run.params, inputs, strict=True)]
        ids = [x.flatten().long().abs() % len(x) for x in inputs]
        return [embedding(i, p, sparse=True).square().sum() for p, i in zip(run.params, ids, strict=True)]

    def train(run: Run, inputs: Grads) -> None:
        torch.stack(losses(run, inputs)).sum().backward()
        run.optimizer.step()
        run.optimizer.zero_grad()

    torch._dynamo.reset()  # pyright: ignore[reportPrivateImportUsage]
    graph = torch.compile(train, backend="eager")
    for _ in range(2):
        inputs = [3 * torch.randn(p.shape) for p in params]
        with warnings.catch_warnings(action="ignore"):  # torch's own deprecations, on first use
            graph(run, inputs)
        train(other, inputs)
        if subject.native:
            assert_same(run, other)
    close(run.state(), other.state(), 1e-4)
    close(run.factors(), other.factors(), 1e-4)


def copies(subject: Subject, rule: Rule) -> None:
    """A copy or a pickle goes on by itself and stays equal; an attached one is attached anew, as torch drops hooks."""
    params = parameters(subject)
    run = Run(subject, rule, {"params": params})
    steps = gradients(subject, params, 6)
    for grads in steps[:3]:
        run.step(grads)
    again: list[Callable[[Optimizer], Optimizer]] = [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
    others = [copy.copy(run).adopt(duplicate(run.optimizer)) for duplicate in again]
    before = run.state()
    for other in others:
        for grads in steps[3:]:
            other.step(grads)
        same_bits(run.state(), before)
    for grads in steps[3:]:
        run.step(grads)
    for other in others:
        assert_same(run, other)


FEATURES: dict[str, Callable[[Subject, Rule], None]] = {
    "groups": groups,
    "closure": closure,
    "scheduler": scheduler,
    "resume": resume,
    "found_inf": found_inf,
    "sparse": takes_or_refuses_sparse,
    "bf16": bf16,
    "compile": compiled,
    "pickle": copies,
}
SLOW = ("compile",)


# The table

Cell = tuple[str, str, str]  # optimizer, rule, feature

REASONS: dict[tuple[str, str], str] = {
    ("LBFGS", feature): "its line search steps many times in one step; clip_updates refuses it" for feature in FEATURES
}
CELLS: list[Cell] = [
    (name, rule, feature) for name, rule, feature in product(OPTIMIZERS, RULES, FEATURES) if name != "LBFGS"
]


def pairs(cell: Cell) -> set[tuple[tuple[int, str], ...]]:
    return set(combinations(enumerate(cell), 2))


def pairwise(cells: Iterable[Cell]) -> list[Cell]:
    """Return few cells that hold every pair: by optimizer and rule the feature that adds most, then what is missing."""
    heads: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        heads.setdefault(cell[:2], []).append(cell)
    missing = {pair for several in heads.values() for cell in several for pair in pairs(cell)}
    used: Counter[str] = Counter()
    chosen: list[Cell] = []

    def choose(cell: Cell) -> None:
        chosen.append(cell)
        used[cell[2]] += 1
        missing.difference_update(pairs(cell))

    for several in heads.values():
        choose(max(several, key=lambda cell: (len(missing & pairs(cell)), -used[cell[2]])))
    for several in heads.values():
        for cell in several:
            if missing & pairs(cell):
                choose(cell)
    return chosen


PAIRWISE = pairwise(cell for cell in CELLS if cell[2] not in SLOW)
QUICK = [feature for feature in FEATURES if feature not in SLOW]


def fill(cell: Cell) -> None:
    name, rule, feature = cell
    FEATURES[feature](OPTIMIZERS[name], RULES[rule])


def test_the_table_holds_every_optimizer_of_torch_and_every_rule() -> None:
    names = {name.split(", ")[0] for name in OPTIMIZERS}
    assert {kind.__name__ for kind in torch_optimizers()} <= names
    assert names >= {"Adadelta", "AdamW", "Muon", "Rprop", "SparseAdam", "LBFGS", "surefoot.Adagrad"}
    assert sum(name.endswith(("foreach", "fused")) for name in OPTIMIZERS) >= 14
    assert {type(rule) for rule in RULES.values()} == set(ALL)
    assert {type(rule) for rule in TIGHT} == set(ALL) - {NoClip}
    assert len(RULES) == 2 * len(ALL) - 1
    assert len(FEATURES) == 9


def test_every_cell_left_out_has_its_reason() -> None:
    left_out = set(product(OPTIMIZERS, FEATURES)) - {(name, feature) for name, _, feature in CELLS}
    assert left_out == REASONS.keys()
    assert all(REASONS.values())
    whole = {(name, feature) for name, feature in product(OPTIMIZERS, FEATURES) if (name, feature) not in REASONS}
    assert len(CELLS) == len(set(CELLS)) == len(whole) * len(RULES)


def test_the_reason_for_leaving_out_lbfgs_holds() -> None:
    optimizer = OPTIMIZERS["LBFGS"].make([{"params": [Parameter(torch.ones(2))]}], NoClip())
    with pytest.raises(TypeError, match="optimizer is LBFGS, whose line search steps many times in one step"):
        clip_updates(optimizer, Clippy())


def test_the_subset_holds_every_pair() -> None:
    expected = {pair for cell in CELLS if cell[2] not in SLOW for pair in pairs(cell)}
    assert {pair for cell in PAIRWISE for pair in pairs(cell)} == expected
    assert len(PAIRWISE) == len(set(PAIRWISE)) < len(CELLS) / 6
    assert set(PAIRWISE) < set(CELLS)
    assert {cell[2] for cell in PAIRWISE} == set(QUICK)


@over("feature", QUICK)
def test_a_feature_of_the_contract(feature: str) -> None:
    @all_of("cell", {" | ".join(cell): cell for cell in PAIRWISE if cell[2] == feature})
    def holds(cell: Cell) -> None:
        fill(cell)

    holds()


@pytest.mark.slow
@all_of("rule", {rule: rule for rule in RULES})
@over("column", {" | ".join((name, feature)): (name, feature) for name, _, feature in dict.fromkeys(CELLS)})
def test_every_rule_of_the_contract(column: tuple[str, str], rule: str) -> None:
    name, feature = column
    fill((name, rule, feature))


# No number is read on the host

DEVICE = "cuda" if torch.backends.cuda.is_built() else "cpu"  # some of torch's shape functions want a real build
NO_WAIT = {
    **{name: subject for name, subject in OPTIMIZERS.items() if subject.native},
    **{name: OPTIMIZERS[name] for name in ("Adam, fused", "AdamW, fused", "Adagrad, fused")},
}


def fake_steps(subject: Subject, rule: Rule) -> None:
    """Take steps on fake tensors, which have no values: whatever reads one on the host raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        params = [Parameter(torch.empty(shape, device=DEVICE)) for shape in ((4, 3), (5,), (2, 3, 2), (), (300, 300))]
        params += [Parameter(torch.empty(3, device=DEVICE)) for _ in range(4)]  # with those above enough to be gathered
        run = Run(subject, rule, {"params": params})
        for _ in range(2):  # the first makes the states
            run.step([torch.empty_like(p) for p in params])
        assert set(run.clipper.clip_factors()) == set(params)
        assert all(factor.device.type == DEVICE for factor in run.clipper.clip_factors().values())


@all_of("rule", [kind() for kind in ALL])  # without values, a tight rule does the same
@over("subject", NO_WAIT)
def test_no_number_is_read_on_the_host(subject: Subject, rule: Rule) -> None:
    fake_steps(subject, rule)


def test_a_number_read_on_the_host_would_be_seen() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones((), device=DEVICE).item()
