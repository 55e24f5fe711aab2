"""Two tables of the README that ``make report`` fills: what there is, and what is reproduced."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from fedjax_robust import aggregators, attacks, data, metrics, models, privacy, repairs, report
from fedjax_robust.report.tables import count_seeds, is_within

PAPERS = {
    "fang2020": "Fang et al. (USENIX Security 2020), local model poisoning",
    "fltrust2021": "Cao et al. (NDSS 2021), FLTrust",
    "bagdasaryan2020": "Bagdasaryan et al. (AISTATS 2020), model replacement",
    "dba2020": "Xie et al. (ICLR 2020), distributed backdoors",
    "wu2020": "Wu et al. (2020), federated pruning",
    "karimireddy2022": "Karimireddy et al. (ICLR 2022), bucketing",
    "shejwalkar2021": "Shejwalkar et al. (NDSS 2021), Min-Max, tailored attacks",
}
"""Folder -> what it reproduces."""
NO_RULES = ("server_update", "trusted_mean", "crfl_votes", "crfl_shares", "crfl_radius")
"""Functions of ``aggregators`` that make no rule."""


def _functions(module: ModuleType) -> list[str]:
    return [name for name in module.__all__ if inspect.isfunction(getattr(module, name))]


def parts(folders: Mapping[str, Path]) -> str:
    """What is there, by kind, with how many names the package has of each."""
    rules = [n for n in _functions(aggregators) if n not in NO_RULES]
    networks = [n for n in models.__all__ if inspect.isclass(getattr(models, n))]
    partitions = [n for n in _functions(data.partition) if n not in ("label_histogram", "stack")]
    kinds: list[tuple[str, str, list[str], str]] = [
        (
            "server rules",
            "aggregators",
            rules,
            "krum bulyan trimmed_mean geometric_median centered_clipping nnm dnc flame fltrust",
        ),
        (
            "attacks on updates",
            "attacks",
            _functions(attacks),
            "fang_krum_full alie ipm min_max mimic line_search adjoint model_replacement",
        ),
        (
            "poisoned batches",
            "attacks.poisons",
            _functions(attacks.poisons),
            "label_flip replace_by distributed word_backdoor",
        ),
        (
            "triggers, backdoored data",
            "attacks.backdoors",
            _functions(attacks.backdoors),
            "pixel_trigger feature_trigger semantic_backdoor",
        ),
        (
            "attacks by gradients through training and rounds",
            "attacks.optimised",
            _functions(attacks.optimised),
            "back_gradient_points steepest maximise",
        ),
        ("repairs of a model", "repairs", _functions(repairs), "prune adjust_extreme_weights"),
        ("differential privacy", "privacy", _functions(privacy), "participant_dp privacy_spent"),
        ("partitions", "data", partitions, "by_group dirichlet_over_clients by_user"),
        ("networks", "models", networks, "FangDNN FLTrustCNN ResNet20 WordLSTM"),
        ("metrics", "metrics", _functions(metrics), "test_error attack_success client_accuracy"),
    ]
    for _, _, names, examples in kinds:
        assert set(examples.split()) <= set(names), (examples, names)
    return report.markdown_table(
        [
            {
                "kind": kind,
                "in": f"`{module}`",
                "number": str(len(names)),
                "such as": ", ".join(f"`{name}`" for name in examples.split()),
            }
            for kind, module, names, examples in kinds
        ]
    )


def papers(folders: Mapping[str, Path]) -> str:
    """Each paper's published tables and figures, and how many cells are near its printed numbers."""
    lines = []
    for folder, title in PAPERS.items():
        own = {name: path for name, path in folders.items() if name.split("/")[0] == folder}
        if not own:
            continue
        tables, close, number, seeds = 0, 0, 0, {}
        for path in own.values():
            if not isinstance(report.read_about(path), report.Table):
                continue
            about, rows = report.read_table(path)
            names = {"line": about.line, "columns": about.columns, "value": about.value}
            differences = report.differences(rows, about.paper, **names)
            tables += bool(differences)
            number += len(differences)
            close += sum(is_within(d, about.tolerance) for d in differences.values())
            if differences:
                seeds |= {
                    (path, cell): summary
                    for cell, summary in report.summarize(rows, *names.values()).items()
                }
        lines.append(
            {
                "paper": title,
                "tables and figures run": str(len(own)),
                "cells within tolerance of the print": (
                    f"{close} of {number}, in {tables} tables" if number else "no printed numbers"
                ),
                "seeds": re.sub(" seeds?", "", count_seeds(seeds)) if seeds else None,
                "page": f"[{folder}](experiments/{folder}/README.md)",
            }
        )
    return report.markdown_table(lines).replace("\\](", "](")  # a link, not text with brackets


GENERATED: dict[str, Callable[[Mapping[str, Path]], str]] = {
    "overview/parts": parts,
    "overview/papers": papers,
}
