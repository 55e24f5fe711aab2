"""Cleaning a model after (or during) training: federated pruning, extreme weights, masked fine-tuning.

Wu, Yang, Zhu, Mitra, "Mitigating Backdoor Attacks in Federated Learning", 2020
(https://arxiv.org/abs/2011.01767), section IV. All of it happens in one convolution, the last one, whose
C output channels the paper calls neurons::

    layer = convolution(module, sample, "Conv_1")
    order = ranking_vote(ranks(client_activations(layer, params, data)))
    params, keep, report = prune(layer, params, order, validation)     # until the accuracy falls
    params, report = adjust_extreme_weights(layer, params, validation, keep=keep)
    sim = sim._replace(after_round=masked(layer, keep))                # fine-tuning: more rounds of run
    state, _ = run(sim, key, data, 10, params=params)

``validation`` is a function params (d,) -> accuracy (): the server's own examples (``accuracy``) or,
without any, what clients report (``clients_accuracy``). All pruned prefixes, and all thresholds, are
tried in one program.

The paper leaves open, and here is taken: activations are after the ReLU (``relu=False``: before) and
before pooling; a pruned neuron is a channel whose kernel and bias are zero; ties go to the lower channel;
extreme weights are those of the kernel, their mean and deviation over neurons that are not pruned.
"""

from fedjax_robust.repairs.extreme_weights import (
    DELTAS,
    adjust_extreme_weights,
    without_extreme_weights,
)
from fedjax_robust.repairs.layers import (
    ConvolutionLayer,
    activations,
    client_activations,
    convolution,
    masked,
    with_neurons,
)
from fedjax_robust.repairs.pruning import prune
from fedjax_robust.repairs.validation import accuracy, clients_accuracy
from fedjax_robust.repairs.votes import majority_vote, ranking_vote, ranks, votes

__all__ = [
    "DELTAS",
    "ConvolutionLayer",
    "accuracy",
    "activations",
    "adjust_extreme_weights",
    "client_activations",
    "clients_accuracy",
    "convolution",
    "majority_vote",
    "masked",
    "prune",
    "ranking_vote",
    "ranks",
    "votes",
    "with_neurons",
    "without_extreme_weights",
]
