"""ELICIT (Wang et al. 2025): a library of task vectors, and a retriever that says which of them a query needs.

Here the retriever is the nearest neighbour, by cosine, among the queries that the library was made of, in states of
the frozen model itself; theirs is a text encoder that is trained for it. [ours]
"""

import numpy as np


def nearest(
    query_BD: np.ndarray, known_UD: np.ndarray, owner_U: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each query the owner of its nearest neighbour, -1 if no neighbour is nearer than `threshold`; and how near.

    States are taken relative to the mean of `known_UD`, or all would be near each other.

    query_BD: the states of the queries.
    known_UD: the states of the queries that the library was made of.
    owner_U: the number of the task of each state of the library.
    threshold: the least cosine.
    """
    centre = known_UD.mean(0, keepdims=True)
    query, known = (
        (a - centre) / np.maximum(np.linalg.norm(a - centre, axis=1, keepdims=True), 1e-12)
        for a in (query_BD, known_UD)
    )
    likeness_BU = query @ known.T
    best_B = likeness_BU.argmax(1)
    near_B = likeness_BU[np.arange(len(query)), best_B]
    return np.where(near_B > threshold, owner_U[best_B], -1), near_B
