"""Figures of the paper (arXiv 2510.08907v4), as far as they are known here. What is not in these tables is unknown,
and a page leaves its cell empty.

Llama-3.2-1B on MRQA; F1 and EM in percent, the paper's own metrics (`rouge` 1.0.1, raw equality), means over six sets.
"""

from __future__ import annotations

from collections.abc import Mapping

ID, OOD = "in-domain", "out-of-domain"
Grid = Mapping[tuple[str, float | None, str], tuple[float, float]]


def _grid(rows: Mapping[str, Mapping[float | None, tuple[float, float, float, float]]]) -> Grid:
    found = {}
    for system, by_ratio in rows.items():
        for ratio, (f1, em, far_f1, far_em) in by_ratio.items():
            found[system, ratio, ID] = f1, em
            found[system, ratio, OOD] = far_f1, far_em
    return found


METHODS: Grid = _grid(
    {
        "full-ft": {None: (71.51, 56.85, 52.51, 36.87)},
        "llmlingua2": {5.0: (31.83, 19.46, 27.90, 16.20)},
        "icae": {
            5.0: (47.53, 33.82, 31.22, 20.51),
            15.0: (44.50, 31.28, 30.81, 20.18),
            51.0: (40.39, 27.99, 27.98, 17.85),
        },
        "500x": {
            5.0: (55.26, 40.14, 38.46, 25.40),
            15.0: (49.35, 34.98, 34.04, 22.09),
            51.0: (43.19, 30.26, 30.43, 20.09),
        },
        "beacon": {15.0: (40.31, 15.39, 36.91, 13.02)},
        "dast": {15.0: (49.83, 36.14, 31.93, 20.95)},
        "epl": {
            5.0: (62.90, 46.33, 46.95, 31.30),
            15.0: (51.52, 36.65, 36.74, 23.83),
            51.0: (43.22, 30.26, 30.22, 19.48),
        },
        "sac": {
            5.0: (63.63, 46.95, 47.72, 32.30),
            15.0: (54.95, 39.67, 39.26, 26.02),
            51.0: (46.37, 33.08, 32.24, 21.44),
        },
    }
)
"""(system, ratio, group) -> (F1, EM)."""
COMPONENTS: Mapping[float, Mapping[str, float]] = {5.0: {"sac": 63.63, "sac-no-mask": 60.26, "sac-no-anchor": 61.27}}
SELECTION: Mapping[float, Mapping[str, float]] = {5.0: {"sac": 63.63, "sac-random": 59.54, "sac-llmlingua2": 63.26}}
AUTOENCODING: Mapping[float, Mapping[str, float]] = {
    5.0: {"sac": 63.63, "sac-ae": 56.55, "sac-ae+lm": 62.04},
    15.0: {"sac": 54.95, "sac-ae": 49.93, "sac-ae+lm": 51.73},
}
"""In-domain F1 by ratio, as the two above; of autoencoding at 15x from a reader's notes on the paper, not checked."""
SIZES: Mapping[tuple[str, str], tuple[float, float]] = {
    ("sac", "Llama-3.2-3B"): (50.48, 34.73),
    ("epl", "Llama-3.2-3B"): (47.46, 31.82),
    ("sac", "Llama-3.1-8B"): (52.31, 35.93),
    ("epl", "Llama-3.1-8B"): (50.82, 34.42),
}
"""F1 and EM of table 6, which of its groups of sets is not said; from a reader's notes on the paper, not checked."""
SUMMARIES: Mapping[str, float] = {"sac": 18.49, "epl": 17.61}
"""ROUGE-1, mean of QMSum and GovReport at 15x and 32K of input; from a reader's notes on the paper, not checked."""
PERPLEXITY: Mapping[str, float] = {"icae": 12.35, "500x": 11.83, "epl": 10.88, "sac": 10.79}
"""Of a text's second half after pretraining."""
LATENCY_MS: Mapping[str, float] = {"sac": 243.87, "500x": 257.43}
"""Compressing a batch of 10 contexts of 510 tokens."""
FLOPS: Mapping[float, float] = {5.0: 1.19, 10.0: 1.08}
"""Those of a system that appends memory tokens over those of SAC, by ratio."""
