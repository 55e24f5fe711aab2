"""Server rules. Each is made by a lower-case factory and can be called on a plain (n, d) matrix."""

from fedjax_robust.aggregators import base
from fedjax_robust.aggregators.afa import afa
from fedjax_robust.aggregators.aksel import aksel
from fedjax_robust.aggregators.arc import arc
from fedjax_robust.aggregators.base import mean
from fedjax_robust.aggregators.bucketing import bucketing
from fedjax_robust.aggregators.bulyan import bulyan
from fedjax_robust.aggregators.caf import caf
from fedjax_robust.aggregators.cao_lai import cao_lai
from fedjax_robust.aggregators.centered_clipping import centered_clipping, sequential_clipping
from fedjax_robust.aggregators.cge import cge
from fedjax_robust.aggregators.clipped_clustering import clipped_clustering
from fedjax_robust.aggregators.clipping import norm_clipping
from fedjax_robust.aggregators.contra import contra
from fedjax_robust.aggregators.coordinate import median, trimmed_mean
from fedjax_robust.aggregators.crfl import crfl, crfl_radius, crfl_shares, crfl_votes
from fedjax_robust.aggregators.deepsight import deepsight
from fedjax_robust.aggregators.detection import (
    accuracy_auditing,
    auror,
    cosine_to_model,
    sybil_check,
)
from fedjax_robust.aggregators.dnc import dnc
from fedjax_robust.aggregators.fair import fair, fair_by_quality
from fedjax_robust.aggregators.fedavg import fedavg_eta
from fedjax_robust.aggregators.flame import flame
from fedjax_robust.aggregators.fldetector import fldetector
from fedjax_robust.aggregators.foolsgold import foolsgold
from fedjax_robust.aggregators.geometric_median import geometric_median, rfa
from fedjax_robust.aggregators.krum import krum, multi_krum
from fedjax_robust.aggregators.lasa import lasa
from fedjax_robust.aggregators.learned_credits import learned_credits, learned_credits_reinforce
from fedjax_robust.aggregators.mda import mda
from fedjax_robust.aggregators.mean_around import mean_around_median, phocas
from fedjax_robust.aggregators.mean_of_medians import mean_of_medians
from fedjax_robust.aggregators.median_of_means import median_of_means, vrmom
from fedjax_robust.aggregators.monna import monna
from fedjax_robust.aggregators.nnm import nnm
from fedjax_robust.aggregators.rlr import rlr
from fedjax_robust.aggregators.romoa import romoa
from fedjax_robust.aggregators.sign_majority import sign_majority
from fedjax_robust.aggregators.signguard import signguard, signguard_dist, signguard_sim
from fedjax_robust.aggregators.smea import smea
from fedjax_robust.aggregators.trust import (
    fltrust,
    fltrust_no_norm,
    fltrust_no_relu,
    fltrust_par_norm,
    fltrust_server,
    fltrust_with_server,
    server_update,
    trusted_mean,
)
from fedjax_robust.aggregators.validation import err, lfr, union
from fedjax_robust.aggregators.zeno import zeno

__all__ = [
    "accuracy_auditing",
    "afa",
    "aksel",
    "arc",
    "auror",
    "base",
    "bucketing",
    "bulyan",
    "caf",
    "cao_lai",
    "centered_clipping",
    "cge",
    "clipped_clustering",
    "contra",
    "cosine_to_model",
    "crfl",
    "crfl_radius",
    "crfl_shares",
    "crfl_votes",
    "deepsight",
    "dnc",
    "err",
    "fair",
    "fair_by_quality",
    "fedavg_eta",
    "flame",
    "fldetector",
    "fltrust",
    "fltrust_no_norm",
    "fltrust_no_relu",
    "fltrust_par_norm",
    "fltrust_server",
    "fltrust_with_server",
    "foolsgold",
    "geometric_median",
    "krum",
    "lasa",
    "learned_credits",
    "learned_credits_reinforce",
    "lfr",
    "mda",
    "mean",
    "mean_around_median",
    "mean_of_medians",
    "median",
    "median_of_means",
    "monna",
    "multi_krum",
    "nnm",
    "norm_clipping",
    "phocas",
    "rfa",
    "rlr",
    "romoa",
    "sequential_clipping",
    "server_update",
    "sign_majority",
    "signguard",
    "signguard_dist",
    "signguard_sim",
    "smea",
    "sybil_check",
    "trimmed_mean",
    "trusted_mean",
    "union",
    "vrmom",
    "zeno",
]
