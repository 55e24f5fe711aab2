"""Text for next-word prediction: words, vocabularies and sequences; corpora by user.

A text is what its users wrote: each one's sentences, which are lists of words. Every user's sentences
are concatenated, with ``<eos>`` after each, and cut into sequences of ``length`` words, which are the
examples (Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, section V-B, where T =
64, and users are clients)::

    plays = load_text("shakespeare", length=64, vocabulary_size=5000)
    data = partition.by_user(plays.train["user"], plays.train, jax.random.key(0))
    task = next_word(models.WordLSTM(plays.num_classes), plays.train["x"][:1])
    sentence = word_ids("the wine from venice is sweet", plays.class_names)

====================  ==============================================================  ================
``load_text``         from                                                            users
====================  ==============================================================  ================
``shakespeare``       ``shakespeare_roles.npz`` in the data folder: 37 plays           1,330 roles
``tiny_shakespeare``  TFDS, prepared as array_record: 40,000 lines                     its speakers
====================  ==============================================================  ================

Files in the layout of LEAF (Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018), which
FedProx and others use, too, are read by what an x holds:

====================  ==========================================  ======================================
loader                x                                           as in
====================  ==========================================  ======================================
``leaf_words``        lists of words                              LEAF's Reddit
``leaf_characters``   strings, y the character that follows       LEAF's Shakespeare
``leaf_sentiment``    rows id, date, query, user, text            LEAF's Sent140
``leaf_numbers``      numbers, or lists of them, y the label      LEAF's FEMNIST, FedProx's Synthetic
====================  ==========================================  ======================================

LEAF's CelebA holds the names of image files, and is read by none. Nothing is downloaded.
"""

from fedjax_robust.data.text.corpora import TEXTS, by_speaker, load_text
from fedjax_robust.data.text.leaf import leaf_characters, leaf_numbers, leaf_sentiment, leaf_words
from fedjax_robust.data.text.words import sequences, text_dataset, tokenize, vocabulary, word_ids

__all__ = [
    "TEXTS",
    "by_speaker",
    "leaf_characters",
    "leaf_numbers",
    "leaf_sentiment",
    "leaf_words",
    "load_text",
    "sequences",
    "text_dataset",
    "tokenize",
    "vocabulary",
    "word_ids",
]
