"""ELICIT (Wang et al. 2025): a library of task vectors, and a retriever that says which of them a query needs.

Here the retriever is the nearest neighbour, by cosine, among the queries that the library was made of, in states of
the frozen model itself; theirs is a text encoder that is trained for it. [ours]
"""

import numpy as np


def nearest(
    query_BD: np.ndarray, known_ND: np.ndarray, owner_N: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each query the owner of its nearest neighbour, -1 where that is not nearer than `threshold`; and how near.

    States are taken relative to the mean of `known_ND`, or all would be near each other.
    """
    centre = known_ND.mean(0, keepdims=True)
    query, known = (
        (a - centre) / np.maximum(np.linalg.norm(a - centre, axis=1, keepdims=True), 1e-12)
        for a in (query_BD, known_ND)
    )
    likeness_BN = query @ known.T
    best_B = likeness_BN.argmax(1)
    near_B = likeness_BN[np.arange(len(query)), best_B]
    return np.where(near_B > threshold, owner_N[best_B], -1), near_B
