"""Tables of your own: cells (any grid of settings) x seeds, resumed, shared, with their origin.

A study is data and one function. Cells are plain dicts of settings, a *run* is a cell with its ``seed``,
and ``program`` makes what computes the runs that share a compiled program:

    cells = study.grid(rule=["mean", "krum"], attack=["none", "full"])
    program = study.together(plan, inputs, measure)
    mine = study.Study(Path("results/mine"), cells, ("rule", "attack"), program, seeds=range(5))
    rows = study.run(mine)

``plan`` says what one run is (``Plan``), ``inputs`` what differs between its seeds (arrays), ``measure``
what is kept of its history. ``run`` reads what is on disk, computes the rest, and returns one row per
run: settings, seed, result, seconds and provenance. ``fedjax_robust.report`` makes tables and figures of
rows. A killed study goes on at the first missing run. See ``notebooks/your_own_table.ipynb``.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import shlex
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fedjax_robust import checks, engine, report
from fedjax_robust.types import FederatedData, Simulation

Array = jax.Array
Settings = Mapping[str, Any]
"""A cell's or (with ``seed``) a run's settings: numbers, text, None, or lists and dicts of them."""
History = dict[str, np.ndarray]
Result = Mapping[str, Any]
Compute = Callable[[Sequence[Settings]], Iterable[Result]]
"""Runs that share a program -> one result for each, in order; each is saved when it arrives."""
Cell = TypeVar("Cell")


class Study(NamedTuple):
    """All runs of one table or figure, and how they are computed."""

    folder: Path
    """Where they go: one file per finished run in ``cells``."""
    cells: Sequence[Settings]
    """Without ``seed``. All that determines a result belongs here: a stored run is compared with it."""
    keys: tuple[str, ...]
    """The settings that tell cells apart, which name their files."""
    program: Callable[[Settings], Compute]
    """A cell's settings (without what ``varies``) -> what computes its runs, compiled once. Called once
    for all runs that share it; ``together`` and ``one_by_one`` make such functions."""
    seeds: Sequence[int] = (0,)
    varies: tuple[str, ...] = ()
    """Settings that need no program of their own, such as numbers that are traced."""
    at_once: int | None = None
    """Runs in one call; None = all that share a program. Every call has as many, the last one repeats."""
    jobs: int = 1
    """Programs beside each other, in threads; see ``threads``."""
    values: tuple[str, ...] = ("error",)
    """The results whose mean and spread are shown when a cell is finished."""


class Plan(NamedTuple):
    """One run, as the arguments of ``fedjax_robust.run``."""

    sim: Simulation
    data: FederatedData
    rounds: int
    evaluate: Any = None
    every: int = 1
    """Rounds between evaluations."""
    params: Any = None


# --- Cells ---------------------------------------------------------------------------------------


def grid(fixed: Settings | None = None, **values: Sequence[Any]) -> list[dict[str, Any]]:
    """All combinations of the named values, the last one fastest, each after the ``fixed`` settings."""
    product = itertools.product(*values.values())
    return [{**(fixed or {}), **dict(zip(values, cell, strict=True))} for cell in product]


def share(cells: Sequence[Cell], part: str | None) -> list[Cell]:
    """The cells that machine i of N computes, ``part`` = "i/N": i, i + N, ..., from 1; all for None.

    Raises:
      ValueError: if ``part`` is not "i/N" with 1 <= i <= N.
    """
    if part is None:
        return list(cells)
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", part)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"--cell needs i/N with 1 <= i <= N, such as 3/16, got {part!r}")
    return list(cells[int(match[1]) - 1 :: int(match[2])])


def run_name(run: Settings, keys: Sequence[str]) -> str:
    """The name of a run's file, made of these keys and the seed: ``attack=Full,rule=Krum,seed=0``."""

    def word(value: Any) -> str:
        text = f"{value:g}" if isinstance(value, float) else str(value)
        return re.sub(r"[^\w.+-]", "_", text, flags=re.ASCII)

    return ",".join(f"{key}={word(run[key])}" for key in (*keys, "seed"))


def threads(small: bool = True) -> int:
    """How many programs to run beside each other: small models leave cores of a CPU idle."""
    return (os.cpu_count() or 1) if small and jax.default_backend() == "cpu" else 1


def client_chunk(given: int | None, small: bool = False) -> int | None:
    """Clients to train at a time: as given, else all for small models; of networks one on a CPU, whose
    cache holds one client's batch (half the time of all at once), and ten on an accelerator, whose memory
    100 clients of a residual network do not fit (ten keep it as busy: 4 % more cycles for a TPU)."""
    if given is not None or small:
        return given
    return 1 if jax.default_backend() == "cpu" else 10


def key(purpose: int, seed: int) -> Array:
    """The key of a seed for one purpose, a number that no other purpose of the study has."""
    return jax.random.fold_in(jax.random.key(purpose), seed)


# --- Running -------------------------------------------------------------------------------------


def run(study: Study, part: str | None = None) -> list[dict[str, Any]] | None:
    """Compute the runs that are missing; those on disk are read.

    Args:
      study: what to run.
      part: "i/N": compute only that share of the cells, so that N machines work on one study.

    Returns:
      One row for each run, cell by cell: its settings, ``seed``, results, ``seconds`` and
      ``report.provenance()``. None if only a share was computed: then the same without ``part``, when
      all files are there, gathers the rows.

    Raises:
      ValueError: if two runs have one name, cells lack a key or have a ``seed``, ``part`` is wrong,
        a program returns too few results, or a run on disk was computed with other settings.
    """
    _check(study)
    cells = share(study.cells, part)
    runs = [{**cell, "seed": int(seed)} for cell in cells for seed in study.seeds]
    names = [run_name(one, study.keys) for one in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"several runs have the name {twice[0]!r}; add what tells them apart to keys={study.keys}"
        )
    found: dict[int, dict[str, Any]] = {}
    for i, name in enumerate(names):
        stored = report.load_cell(study.folder, name, runs[i])
        if stored is not None:
            found[i] = stored
    provenance = report.provenance()
    groups: dict[Hashable, list[int]] = {}
    for i, one in enumerate(runs):
        if i not in found:
            groups.setdefault(_program_key(one, study.varies), []).append(i)
    lock, size = threading.Lock(), len(study.seeds)

    with tqdm(total=len(runs), initial=len(found), unit="run") as bar:

        def told(cell: int) -> None:
            own = [found[i] for i in range(cell * size, (cell + 1) * size) if i in found]
            if len(own) == size:
                bar.write(_line(cells[cell], study.keys, own, study.values))

        def keep(i: int, result: Result, seconds: float) -> None:
            kept = {"seconds": seconds, **result, **provenance}
            kept = report.save_cell(study.folder, names[i], runs[i], kept)
            with lock:
                found[i] = kept
                bar.update()
                told(i // size)

        def compute(group: list[int]) -> None:
            left_out = ("seed", *study.varies)
            first = {k: v for k, v in runs[group[0]].items() if k not in left_out}
            program = study.program(first)
            step = min(study.at_once or len(group), len(group))
            for start in range(0, len(group), step):
                # Every call has the same number of runs, so that it compiles once.
                own = [group[min(i, len(group) - 1)] for i in range(start, start + step)]
                before = time.perf_counter()
                for i, result in zip(own, program([runs[i] for i in own]), strict=True):
                    if i not in found:
                        keep(i, result, time.perf_counter() - before)
                        before = time.perf_counter()

        for cell in range(len(cells)):
            told(cell)
        if study.jobs == 1:  # not in a thread: contexts such as jax.default_device end there
            for group in groups.values():
                compute(group)
        else:
            with ThreadPoolExecutor(study.jobs) as pool:
                waiting = [pool.submit(compute, group) for group in groups.values()]
                try:
                    for done in waiting:
                        done.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    if part is not None:
        print(f"share {part} is in {study.folder}/cells; the same command without it gathers all")
        return None
    return [{**runs[i], **found[i]} for i in range(len(runs))]


def _check(study: Study) -> None:
    checks.static_count("a study", 1, jobs=study.jobs)
    if study.at_once is not None:
        checks.static_count("a study", 1, at_once=study.at_once)
    if not study.cells or not len(study.seeds):
        raise ValueError("a study needs at least one cell and one seed; say what to run")
    for cell in study.cells:
        if "seed" in cell:
            raise ValueError("cells have no seed of their own; give the study seeds=...")
        if missing := [name for name in study.keys if name not in cell]:
            raise ValueError(f"a cell lacks the keys {missing}, it has {sorted(cell)}")


def _program_key(settings: Settings, varies: Sequence[str]) -> Hashable:
    return tuple((k, repr(v)) for k, v in sorted(settings.items()) if k not in (*varies, "seed"))


def _line(
    cell: Settings, keys: Sequence[str], results: Sequence[Result], values: Sequence[str]
) -> str:
    """A finished cell, its mean and its spread over the seeds: the sample standard deviation."""
    words = [" ".join(f"{cell[name]!s:13s}" for name in keys)]
    for name in values:
        numbers = [float(result[name]) for result in results if name in result]
        if numbers:
            spread = f" +- {np.std(numbers, ddof=1):.3f}" if len(numbers) > 1 else ""
            words.append(f"{name} {np.mean(numbers):.3f}{spread}")
    return " ".join(words)


# --- Programs ------------------------------------------------------------------------------------


def together(
    plan: Callable[[Settings, Any], Plan],
    inputs: Callable[[Settings], Any],
    measure: Callable[[History], Result],
    numbers: Sequence[str] = (),
) -> Callable[[Settings], Compute]:
    """``Study.program`` that computes its runs in one compiled program, with traced seeds.

    Args:
      plan: settings without the seed and what varies, but with the ``numbers``, and a run's inputs ->
        what to run. It is traced.
      inputs: a run -> a pytree of arrays, of equal shapes in all runs (partitions may differ in width).
        Arrays that are the same object in all of them, such as a pool, are held once.
      measure: a run's history, as NumPy arrays -> what to keep.
      numbers: settings, among ``Study.varies``, that are traced float32 scalars in ``plan``.
    """

    def program(cell: Settings) -> Compute:
        # One program for all calls; what is the same in all runs of one is the same in those of another.
        def all_runs(
            keys: Array, values: dict[str, Array], shared: Any, own: Any, tree: Any
        ) -> Any:
            def one(key: Array, values: dict[str, Array], own: Any) -> dict[str, Array]:
                at = plan({**cell, **values}, tree.join(shared, own))
                return _history(at, key)

            return each(one, (keys, values, own))

        compiled = jax.jit(all_runs, static_argnames="tree")

        def compute(runs: Sequence[Settings]) -> Iterable[Result]:
            started = time.perf_counter()
            shared, own, tree = _split([inputs(one) for one in runs])
            keys = jnp.stack([jax.random.key(one["seed"]) for one in runs])
            values = {name: jnp.array([float(one[name]) for one in runs]) for name in numbers}
            histories = jax.device_get(compiled(keys, values, shared, own, tree=tree))
            seconds = (time.perf_counter() - started) / len(runs)
            for i in range(len(runs)):
                history = {name: np.asarray(v)[i] for name, v in histories.items()}
                yield {**measure(history), "seconds": seconds}

        return compute

    return program


def one_by_one(
    plan: Callable[[Settings, Any], Plan],
    inputs: Callable[[Settings], Any],
    measure: Callable[[History], Result],
    folder: Path,
    keys: Sequence[str],
) -> Callable[[Settings], Compute]:
    """``Study.program`` for long runs: one after the other, each with a progress bar and a checkpoint.

    Args:
      plan: the whole run, with its seed, and its inputs -> what to run. Nothing is traced.
      inputs: a run -> a pytree of arrays.
      measure: a run's history, as NumPy arrays -> what to keep.
      folder: the study's; checkpoints are in ``folder``/checkpoints.
      keys: the settings that name a run, those of ``Study``.
    """

    def compute(runs: Sequence[Settings]) -> Iterable[Result]:
        for one in runs:
            at = plan(one, inputs(one))
            checkpoint = folder / "checkpoints" / f"{run_name(one, keys)}.npz"
            history = _history(
                at, jax.random.key(one["seed"]), progress=True, checkpoint=checkpoint
            )
            yield measure(jax.device_get(history))
            checkpoint.unlink(missing_ok=True)  # by now the result is on disk

    return lambda cell: compute


def _history(at: Plan, key: Array, **options: Any) -> Any:
    return engine.run(
        at.sim,
        key,
        at.data,
        at.rounds,
        params=at.params,
        evaluate=at.evaluate,
        evaluate_every=at.every,
        **options,
    )[1]


def each(one: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """``one(*arguments)`` for each entry along the leading axes of the arguments' leaves, in one program.

    All at once on an accelerator. On a CPU one after the other: its cache holds the batches of one run
    but not those of several, which took three times as long together.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda own: one(*own), arguments)
    return jax.vmap(one)(*arguments)


class _Tree(NamedTuple):
    """How runs' inputs are put together again; hashable, so that it can be static."""

    structure: Any
    is_shared: tuple[bool, ...]

    def join(self, shared: Sequence[Any], own: Sequence[Any]) -> Any:
        from_shared, from_own = iter(shared), iter(own)
        leaves = [next(from_shared if s else from_own) for s in self.is_shared]
        return jax.tree.unflatten(self.structure, leaves)


def _split(trees: Sequence[Any]) -> tuple[list[Any], list[Array], _Tree]:
    """Leaves that are one object in all trees, the others stacked, and how to join them."""
    structures = {jax.tree.structure(tree) for tree in trees}
    if len(structures) > 1:
        raise ValueError(f"inputs of runs in one program need one structure, got {structures}")
    leaves = list(zip(*(jax.tree.leaves(tree) for tree in _padded(trees)), strict=True))
    is_shared = tuple(all(leaf is same[0] for leaf in same) for same in leaves)
    own = [same for same, shared in zip(leaves, is_shared, strict=True) if not shared]
    for same in own:
        if len(shapes := {np.shape(leaf) for leaf in same}) > 1:
            raise ValueError(
                f"inputs of runs in one program need equal shapes, got {sorted(shapes)}; pad them, or "
                "give the runs programs of their own: at_once=1"
            )
    shared_leaves = [same[0] for same, shared in zip(leaves, is_shared, strict=True) if shared]
    return shared_leaves, [jnp.stack(same) for same in own], _Tree(structures.pop(), is_shared)


def _padded(trees: Sequence[Any]) -> list[Any]:
    """Partitions at the same place padded to one width. What is padded belongs to nobody."""

    def is_partition(x: Any) -> bool:
        return isinstance(x, FederatedData)

    def pad(data: Any, *others: Any) -> Any:
        if not is_partition(data):
            return data
        examples, rows, sizes = data
        width = max(other[1].shape[1] for other in (data, *others))
        rows = jnp.pad(jnp.asarray(rows), ((0, 0), (0, width - rows.shape[1])))
        return FederatedData(examples, rows, sizes)

    return [
        jax.tree.map(pad, tree, *trees, is_leaf=is_partition) if len(trees) > 1 else tree
        for tree in trees
    ]


# --- What is measured ----------------------------------------------------------------------------


def errors(history: History, name: str = "test_error") -> dict[str, float]:
    """The last and the lowest value of an evaluation: ``error``, ``best_error``.

    Args:
      history: of ``fedjax_robust.run``.
      name: of the evaluation's result.
    """
    values = np.asarray(history[name], float)
    return {"error": float(values[-1]), "best_error": float(values.min())}


def malicious_selected(history: History) -> dict[str, float]:
    """For rules that select rows: the share of a history's rounds that selected a malicious one."""
    if "selected" not in history:
        return {}
    bad = np.any(history["selected"] & history["malicious"], axis=-1)
    return {"malicious_selected": float(bad.mean())}


def without(rows: Sequence[Settings], *names: str) -> list[dict[str, Any]]:
    """Rows without some columns, such as curves.

    Args:
      rows: one mapping each.
      *names: what to leave out; a row need not have it.
    """
    return [{k: v for k, v in row.items() if k not in names} for row in rows]


def evaluated(rounds: int, every: int) -> np.ndarray:
    """The rounds after which ``fedjax_robust.run(rounds=rounds, evaluate_every=every)`` evaluates."""
    done = np.arange(every, rounds + 1, every)
    return done if len(done) and done[-1] == rounds else np.append(done, rounds)


# --- Command line --------------------------------------------------------------------------------


@dataclasses.dataclass
class Args:
    """Options that every study has; a script adds its own in a subclass."""

    seeds: int | None = None
    """Trials; default the study's."""
    rounds: int | None = None
    """Rounds instead of the study's."""
    data_dir: Path | None = None
    """Folder of the data sets; default FEDJAX_ROBUST_DATA, else where TFDS keeps its own."""
    out: Path = Path("results")
    """Where results go."""
    cell: str | None = None
    """Compute only the i-th of N shares of the cells, i/N, so that N machines work on one table; then
    the same command without it gathers their files."""
    smoke: bool = False
    """Few of everything and one seed, to see that it works; the numbers mean nothing."""


def main(args: type[Any], run: Callable[[Any], Any]) -> None:
    """A script's entry: parse the command line and run, with compiled programs kept on disk.

    Args:
      args: a dataclass of options, ``Args`` or a subclass.
      run: what to do with them.
    """
    import tyro

    given = tyro.cli(args)
    check_args(given)
    use_compilation_cache()
    run(given)


def check_args(args: Args) -> None:
    """ValueError for args with seeds, rounds or chunks below 1, or with a share that is none."""
    for name in ("seeds", "rounds", "clients", "client_chunk"):
        if getattr(args, name, None) is not None:
            checks.static_count("the command line", 1, **{name: getattr(args, name)})
    share((), args.cell)


def command(script: str | Path, args: Any) -> str:
    """The command that runs a script again, without the folders of this machine.

    Args:
      script: its path, of which the part from the top of its checkout is shown.
      args: a dataclass of options, of which those are shown that are not their defaults.
    """
    path = Path(script).resolve()
    top = next((p for p in path.parents if (p / "pyproject.toml").exists()), path.parent)
    words = ["python", path.relative_to(top).as_posix()]
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if value != field.default and not isinstance(value, Path) and field.name != "cell":
            words.append("--" + field.name.replace("_", "-"))
            if value is not True:
                words += map(str, value if isinstance(value, tuple) else (value,))
    return shlex.join(words)


def settings(args: Any, rows: Sequence[Settings] = (), **more: Any) -> dict[str, Any]:
    """All settings, for ``about.json``.

    Args:
      args: the command line's, with its defaults.
      rows: of these what they have in common, but for what only says where and when they were made.
      **more: others.
    """
    here = {
        field.name: value
        for field in dataclasses.fields(args)
        if not isinstance(value := getattr(args, field.name), Path) and field.name not in _MACHINE
    }
    common = dict(rows[0]) if rows else {}
    for row in rows:
        common = {k: v for k, v in common.items() if k in row and row[k] == v}
    made = {*report.provenance(), "seconds"}
    return {**here, **{k: v for k, v in common.items() if k not in made}, **more}


_MACHINE = ("data_dir", "out", "cell")


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, so that a second run of a script starts at once.

    The folder is JAX_COMPILATION_CACHE_DIR if that is set, else ``compiled`` in FEDJAX_ROBUST_CACHE
    (~/.cache/fedjax_robust). What is in it is run as native code, so a folder that belongs to someone
    else, or that others may write, is not used.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    cache = os.environ.get("FEDJAX_ROBUST_CACHE") or "~/.cache/fedjax_robust"
    folder = Path(cache).expanduser() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        safe = all(_is_own(place) for place in (folder, folder.parent))
    except OSError:
        safe = False
    if safe:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    else:
        warnings.warn(
            f"{folder} is not used for compiled programs: others may write there, and its files are run "
            "as code; set FEDJAX_ROBUST_CACHE to a folder of your own",
            RuntimeWarning,
            stacklevel=2,
        )


def _is_own(folder: Path) -> bool:
    about = folder.stat()
    mine = not hasattr(os, "getuid") or about.st_uid == os.getuid()
    return mine and not (about.st_mode & 0o022 and os.name == "posix")
