"""Recurrent networks: the word model of Bagdasaryan et al. (https://arxiv.org/abs/1807.00459)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_robust.nn import LSTM
from fedjax_robust.types import Array


class WordLSTM(nn.Module):
    """Next-word prediction: embedding, layers of LSTM, and the embedding again for the logits.

    The word model of Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, section
    V-B, which is that of PyTorch's word language model with tied weights: logits = h E^T + bias with the
    embedding E (num_words, hidden). E starts uniform in +-0.1, the bias at 0, ``LSTM`` as it says. With
    50,000 words and 200 units there are 10,693,200 parameters, 10,000,000 of them (94 %) in E. The
    paper's code drops out 20 % of the units; a loss has no randomness here, and so no dropout. The
    state starts at zero in every sequence.

    Memory bounds the number of clients that train at a time (``Simulation(client_chunk=...)``): one
    client's gradient at that size, on 20 sequences of 64 words, takes 565 MB, of which the logits and
    their softmax, T b V floats each, are 2 x 256 MB, and most of its time. With tied weights the gradient
    of E is dense, anyway, so that looking words up costs little beside.

    Attributes:
      num_words: V, the size of the vocabulary.
      hidden: units of each layer, and the size of the embedding.
      layers: LSTM layers, >= 1.
    """

    num_words: int
    hidden: int = 200
    layers: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Word ids x (b, T) in [0, num_words) -> logits (b, T, num_words) of the next words."""
        if x.ndim != 2 or min(self.num_words, self.hidden, self.layers) < 1:
            raise ValueError(
                "WordLSTM needs word ids (b, T) and num_words, hidden, layers >= 1, got shape "
                f"{x.shape}, num_words={self.num_words}, hidden={self.hidden}, layers={self.layers}"
            )
        embedding = self.param(
            "embedding",
            lambda key: jax.random.uniform(
                key, (self.num_words, self.hidden), minval=-0.1, maxval=0.1
            ),
        )
        bias = self.param("bias", nn.initializers.zeros, (self.num_words,))
        h = jnp.take(embedding, x, axis=0, mode="clip")
        for _ in range(self.layers):
            h = LSTM(self.hidden)(h)
        logits: Array = h @ embedding.T + bias
        return logits
