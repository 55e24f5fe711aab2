"""The benchmarks run in their smoke mode, and their page is as their published rows."""

import functools
import json
import sys
from pathlib import Path

import jax
import pytest

import fedjax_robust as fr

BENCH = Path(__file__).parents[2] / "experiments" / "bench"
sys.path.insert(0, str(BENCH))
import bench_timing
import compile_for
import cost_model
import device
import fill_readme
import kernels
import networks
import rounds


def test_everything_is_timed_in_turn_without_its_first_turn():
    done = []

    def way(name, times):
        return lambda: (done.append(name), next(times))[1]

    ways = {"a": way("a", iter((9.0, 0.001, 0.003))), "b": way("b", iter((9.0, 0.002, 0.002)))}
    assert bench_timing.in_turn(ways, 2) == {"a": [1, 3], "b": [2, 2]}
    assert done == ["a", "b"] * 3
    assert bench_timing.summary([3.0, 1.0, 8.0]) == {"ms": 3, "min": 1, "max": 8}


def test_rounds_smoke(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDJAX_ROBUST_DATA", str(tmp_path))  # noise will do, and needs no loading
    out = tmp_path / "rounds.json"
    rows = rounds.main(rounds.Settings(workloads=("lr", "memory"), smoke=True, out=out))
    written = json.loads(out.read_text())
    assert len(written["rows"]) == len(rows) == 3  # a round, and the memory of two models
    assert rows[0]["ms"] > 0
    assert rows[0]["rounds/s"] == pytest.approx(1e3 / rows[0]["ms"])
    # 10 clients: their matrix, its sorted copy and the batches, 32 x 784 floats each
    assert 1 + 32 * 784 / 7850 < rows[1]["times n x d"] < 10
    assert written["data"] == "noise" and written["measured_with"]["jax_version"]


def test_device_smoke(tmp_path, capsys, monkeypatch):
    out = tmp_path / "device.json"
    device.main(device.Settings(smoke=True, out=out))
    assert "Table 2b, minutes" in capsys.readouterr().out
    assert len(json.loads(out.read_text())["targets"]) == 5
    wrong = fr.Aggregator(lambda n, p: (), lambda received, state: (received.params, state, {}))
    monkeypatch.setattr(device.aggregators, "median", lambda: wrong)
    with pytest.raises(ValueError, match="median is wrong on this device"):
        device.check(20, 4)


PROGRAM = """HloModule jit_block, is_scheduled=true

%body.1 (p.1: (s32[], f32[20,300])) -> (s32[], f32[20,300]) {
  %p.1 = (s32[], /*index=1*/f32[20,300]{1,0}) parameter(0)
  %x.1 = f32[20,300]{1,0} get-tuple-element(%p.1), index=1
  %sort.2 = f32[20,300]{1,0:T(8,128)S(1)} sort(%x.1), dimensions={0}, to_apply=%less
  %f.1 = f32[20,300]{1,0} fusion(%sort.2), kind=kLoop, calls=%c, backend_config={"estimated_cycles":"70"}
  ROOT %t.1 = (s32[], f32[20,300]) tuple(%i, %f.1)
}

%condition.1 (p.2: (s32[], f32[20,300])) -> pred[] {
  %p.2 = (s32[], f32[20,300]) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %ten = s32[]{:T(128)} constant(10)
  ROOT %lt = pred[] compare(%i.2, %ten), direction=LT
}

ENTRY %main.5 (a.1: f32[20,300]) -> f32[20,300] {
  %a.1 = f32[20,300]{1,0} parameter(0)
  %g.1 = f32[80,300]{1,0} all-gather(%a.1), dimensions={0}
  %while.3 = (s32[], f32[20,300]) while(%t.0), condition=%condition.1, body=%body.1
  %while.4 = (s32[], f32[20,300]) while(%t.0), condition=%unknown, body=%body.1
  ROOT %r = f32[20,300]{1,0} get-tuple-element(%while.3), index=1
}
"""


def test_a_compiled_program_is_read():
    found, entry = compile_for.computations(PROGRAM)
    assert entry == "main.5" and len(found["body.1"]) == 5
    facts = compile_for.facts_of(found, entry, {"f32[20,300]{1,0:T(8,128)S(1)}": 30.0})
    # The gather, ten turns of two operations, and once those of the loop of unknown length.
    assert facts == compile_for.Facts(cycles=11 * (70 + 30), kernels=1 + 11 * 2, unknown=1)
    assert compile_for.size("(s32[], f32[20,300]{1,0})") == [1, 6000]
    loop = 'while(%t), condition=%c, body=%b, backend_config={"known_trip_count":{"n":"32"}}'
    assert compile_for.turns_of(found, loop) == 32


def test_what_is_compiled_for_accelerators_can_be_traced():
    """All rules and blocks, small; compilers of accelerators are not there."""
    for name, program in compile_for.rules(20, 30):
        jax.eval_shape(program.function, *program.args)
        assert program.matrix == 600, name
    for name, make in compile_for.blocks(1):
        if "LR" in name:
            program = make()
            block = functools.partial(program.function, None)
            state, _ = jax.eval_shape(block, *program.args)
            assert state.params.shape[-1] == program.columns, name


def test_kernels_smoke(tmp_path):
    out = tmp_path / "kernels.json"
    rows = kernels.main(kernels.Settings(kernels=("sort", "rules"), smoke=True, out=out))
    assert len(json.loads(out.read_text())["rows"]) == len(rows) == 3 * 3 + 2 + 2 * 3 + 4
    assert all(row["ms"] > 0 and row["slower"] > 0 for row in rows)


def test_networks_smoke(tmp_path):
    out = tmp_path / "networks.json"
    networks.main(networks.Settings(smoke=True, out=out))
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 2 and {row["how"] for row in rows} == {"plain vmap", "ours"}
    assert all(row["difference"] < 1e-4 for row in rows if row["how"] == "ours")


def test_cost_model_smoke(tmp_path):
    constants = cost_model.main(cost_model.Settings(out=tmp_path, smoke=True))
    assert set(constants) == set(cost_model.RULES)
    written = json.loads((tmp_path / "cost_model.json").read_text())
    assert (tmp_path / "cost_model.png").read_bytes()[:4] == b"\x89PNG"
    row = next(r for r in written["predicted"] if r["rule"] == "mean" and "64" in r["case"])
    # 100 rows of a billion float32 on 64 devices are 5.8 GiB each, beside what the program needs
    assert row["GiB per device"] > 5.8
    assert row["seconds"] == pytest.approx(constants["mean"] * 100 / 64)
    exact = [{"what": "mean", "ms": 2e-6 * w, "work": w} for w in (10, 1000, 70)]
    assert cost_model.fitted(exact)["mean"] == pytest.approx(2)


def test_the_page_is_as_its_rows(monkeypatch):
    text = (BENCH / "README.md").read_text()
    assert fill_readme.filled(text) == text
    assert fill_readme.main(check=True) == 0
    assert fill_readme.filled(text.replace("1.00", "1.01")) == text  # a digit typed in goes
    # By hand, of two rows: 25.4 times jnp.sort, and a third of NumPy's time.
    rows = {
        (r["what"], r["how"]): r
        for r in json.loads((BENCH / "results/kernels.json").read_text())["rows"]
    }
    median = rows["median's ranks, 100 x 1000000", "jnp.sort"]
    assert median["slower"] == pytest.approx(13431.157 / 528.508, rel=1e-4)
    assert "| 25.41" in text
