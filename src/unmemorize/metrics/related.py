"""Which prompts are related: words in common, of many prompts without comparing all pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import CountVectorizer

PAIRS = 2_000_000  # pairs of prompts with a word in common that are looked at together
ROWS = 50_000  # pairs whose words are compared together
ROUNDING = 1e-9  # a product that is a whole number may come out a little above it
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def related(prompts: Sequence[str], overlap: float = 0.35) -> list[str]:
    """A cluster name per prompt: prompts are linked when their words' Jaccard similarity exceeds `overlap`.

    Exact, with memory that grows with the number of words. Words are ordered, the rarest first: two sets of words that
    share c share one of the |x| - c + 1 first words of either. Of the pairs that do, those in one cluster already and
    those whose hashed words differ in too many bits are not compared.

    Paper: Xiao et al. 2011, "Efficient similarity joins for near-duplicate detection", for the prefixes of the larger
    and of the smaller set; Sandes, Teodoro and Melo 2020, "Bitmap filter", for the bound by hashed words.
    Differs: clusters alone are wanted, so pairs within a cluster are passed over.
    """
    words = CountVectorizer(binary=True, token_pattern=r"(?u)\S+").fit_transform([p.strip() or "∅" for p in prompts])
    sets, member = _distinct(_rarest_first(words))
    sizes, bits = np.diff(sets.indptr), _bits(sets)
    larger = _first_words(sets, sizes - np.floor(overlap * sizes - ROUNDING).astype(int))
    smaller = _first_words(sets, sizes - np.floor(2 * overlap / (1 + overlap) * sizes - ROUNDING).astype(int))
    linked = _linked(sets, bits, *_neighbours(larger), overlap)
    clusters = _joined(np.arange(len(sizes)), *linked)
    # All pairs that a word could find are in one cluster: captions of one template are, after their neighbours.
    useful = _divided(larger, clusters)
    larger, smaller = larger[:, useful], smaller[:, useful]
    for start, end in _blocks(larger, smaller):
        shared = (larger[start:end] @ smaller[:end].T).tocoo()
        one, other = shared.row + start, shared.col
        apart = (other < one) & (clusters[one] != clusters[other])
        linked = _linked(sets, bits, one[apart], other[apart], overlap)
        clusters = _joined(clusters, *linked)
    return _names(clusters[member])


def _rarest_first(words: csr_array) -> csr_array:
    """The sets of words with the columns in order of frequency, so that a row's first columns are its rarest words."""
    rank = np.empty(words.shape[1], dtype=np.int64)
    rank[np.argsort(words.sum(axis=0), kind="stable")] = np.arange(words.shape[1])
    ordered = csr_array((words.data, rank[words.indices], words.indptr), shape=words.shape)
    ordered.sort_indices()
    return ordered


def _distinct(words: csr_array) -> tuple[csr_array, NDArray[np.int64]]:
    """The different sets of words, the smallest first, and the number of each prompt's among them."""
    number: dict[bytes, int] = {}
    rows: list[int] = []
    member = np.empty(words.shape[0], dtype=np.int64)
    for row in np.argsort(np.diff(words.indptr), kind="stable").tolist():
        key = words.indices[words.indptr[row] : words.indptr[row + 1]].tobytes()
        if key not in number:
            number[key] = len(rows)
            rows.append(row)
        member[row] = number[key]
    return words[rows], member


def _first_words(sets: csr_array, counts: NDArray[np.int64]) -> csr_array:
    """As many of each set's first words."""
    place = np.arange(sets.nnz) - np.repeat(sets.indptr[:-1], np.diff(sets.indptr))
    first = place < np.repeat(counts, np.diff(sets.indptr))
    starts = np.concatenate([[0], np.cumsum(counts)])
    return csr_array((np.ones(first.sum(), np.int16), sets.indices[first], starts), shape=sets.shape)


def _neighbours(lists: csr_array) -> Pairs:
    """Pairs of sets that follow each other among those that have a word."""
    words = lists.tocsc()
    one, other = words.indices[1:], words.indices[:-1]
    within = np.ones(len(one), bool)
    ends = words.indptr[1:-1]
    within[ends[(ends > 0) & (ends < words.nnz)] - 1] = False
    return one[within], other[within]


def _divided(lists: csr_array, clusters: NDArray[np.int64]) -> NDArray[np.int64]:
    """The words whose sets are not all in one cluster."""
    of = np.repeat(clusters, np.diff(lists.indptr))
    lowest, highest = np.full(lists.shape[1], len(clusters)), np.full(lists.shape[1], -1)
    np.minimum.at(lowest, lists.indices, of)
    np.maximum.at(highest, lists.indices, of)
    return np.flatnonzero(lowest < highest)


def _linked(
    sets: csr_array, bits: NDArray[np.uint64], one: NDArray[np.int64], other: NDArray[np.int64], overlap: float
) -> Pairs:
    """Those of the pairs whose similarity exceeds `overlap`."""
    sizes = np.diff(sets.indptr)
    both = sizes[one] + sizes[other]
    # |x ∩ y| is at most (|x| + |y| - bits that differ) / 2: each of these stands for a word of one set alone.
    most = (both - np.bitwise_count(bits[one] ^ bits[other]).sum(axis=1, dtype=int)) // 2
    near = most > overlap * (both - most)
    one, other, both = one[near], other[near], both[near]
    common = _common_words(sets, one, other)
    linked = common > overlap * (both - common)
    return one[linked], other[linked]


def _bits(sets: csr_array) -> NDArray[np.uint64]:
    """Each set's words hashed to 128 bits, (sets, 2)."""
    bits = np.zeros((sets.shape[0], 2), dtype=np.uint64)
    row = np.repeat(np.arange(sets.shape[0]), np.diff(sets.indptr))
    bit = np.uint64(1) << (sets.indices % 64).astype(np.uint64)
    np.bitwise_or.at(bits, (row, sets.indices // 64 % 2), bit)
    return bits


def _blocks(larger: csr_array, smaller: csr_array) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose words stand in a bounded number of places."""
    frequency = np.bincount(smaller.indices, minlength=smaller.shape[1])
    work = np.concatenate([[0], np.cumsum(frequency[larger.indices])])[larger.indptr]
    start = 0
    while start < larger.shape[0]:
        end = max(int(np.searchsorted(work, work[start] + PAIRS, side="right")) - 1, start + 1)
        yield start, end
        start = end


def _common_words(sets: csr_array, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many words the sets of each pair share."""
    counts = [np.zeros(0, np.int64)]
    for start in range(0, len(one), ROWS):
        rows = slice(start, start + ROWS)
        counts.append(np.asarray(sets[one[rows]].multiply(sets[other[rows]]).sum(axis=1)).ravel())
    return np.concatenate(counts)


def _joined(clusters: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """The clusters after the clusters of each pair of sets became one."""
    count = int(clusters.max()) + 1
    links = coo_array((np.ones(len(one), np.int8), (clusters[one], clusters[other])), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)[clusters]


def _names(clusters: NDArray[np.int64]) -> list[str]:
    """Names of clusters in the order in which they appear."""
    _, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    return [str(c) for c in np.argsort(np.argsort(first))[inverse]]
