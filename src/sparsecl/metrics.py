"""Continual-learning metrics as pure functions of the tables (paper, section Measures).

`R[t, i]` is the score on domain i after stage t: row 0 is before any stage, rows 1..T follow the
stages, and columns stand in stream order, so stage i trains column i - 1. Sums run over the domains
i < T, those that can be forgotten. The general mixture is never averaged in; it has metrics of its own.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

from sparsecl.items import GENERAL
from sparsecl.methods import JOINT

RUN_KEYS = ["arm", "topology", "algorithm", "density", "method", "order", "stage_steps", "base", "seed"]
METRIC_COLUMNS = [*RUN_KEYS, "domain", "kind", "metric", "value"]
ACCURACY_COLUMNS = [*RUN_KEYS, "stage", "stage_domain", "domain", "kind", "score", "n", "nll"]
CURVE_COLUMNS = [*ACCURACY_COLUMNS, "step"]
_OF_RUN = ["stage", "stage_domain", "domain", "kind", "score", "nll"]  # what the rows of one run are read for

Matrix = Float[np.ndarray, "stages domains"]
Domains = Float[np.ndarray, "domains"]
Forgettable = Float[np.ndarray, "domains-1"]  # all domains but the last
Series = Float[np.ndarray, "points"]
Chance = Mapping[tuple[str, str], float]


class MissingMeasurement(ValueError):
    """A table lacks a stage, domain, kind or column that a metric needs."""


def forgetting_by_domain(score: Matrix) -> Forgettable:
    """max over 1 <= l < T of R[l, i], minus R[T, i], for i < T; score units, negative where a domain gained.

    The maximum leaves out the last row, else nothing could be negative, and takes in the rows before
    the domain's own stage (Chaudhry et al. 2018, arXiv:1801.10112, section 3). Raises where T < 2.
    """
    _require_stream(score)
    return score[1:-1, :-1].max(axis=0) - score[-1, :-1]


def forgetting(score: Matrix) -> float:
    """Mean of `forgetting_by_domain`. The maximum over noisy scores biases it upward: report -BWT beside it."""
    return float(forgetting_by_domain(score).mean())


def forgetting_by_stage(score: Matrix) -> Series:
    """F_k for k = 2..T: the forgetting of the domains before k had the stream ended with stage k (Chaudhry et al. 2018)."""
    _require_stream(score)
    return np.array([forgetting(score[: k + 1, :k]) for k in range(2, len(score))])


def own_by_domain(score: Matrix) -> Forgettable:
    """R[i, i] for i < T: the score right after the domain's own stage."""
    _require_stream(score)
    return np.diagonal(score[1:])[:-1].copy()


def final_by_domain(score: Matrix) -> Forgettable:
    """R[T, i] for i < T: the score at the end of the stream."""
    _require_stream(score)
    return score[-1, :-1].copy()


def retention_by_domain(score: Matrix) -> Forgettable:
    """R[T, i] / R[i, i] for i < T, a ratio; NaN where nothing was learned that could be kept (R[i, i] = 0)."""
    own = own_by_domain(score)
    return np.divide(final_by_domain(score), own, out=np.full_like(own, np.nan), where=own != 0)


def backward_transfer(score: Matrix) -> float:
    """BWT: mean over i < T of R[T, i] - R[i, i] (Lopez-Paz and Ranzato 2017, arXiv:1706.08840, eq. 3)."""
    return float((final_by_domain(score) - own_by_domain(score)).mean())


def forward_transfer(score: Matrix, baseline: Domains | None = None) -> float:
    """FWT: mean over i > 1 of R[i-1, i] - b[i] (Lopez-Paz and Ranzato 2017, eq. 4).

    Their b is a random initialisation's score; a language model starts from a trained base, so b is
    R[0, i] unless `baseline` gives another, such as the score of guessing.
    """
    _require_stream(score)
    before_own_stage = np.diagonal(score[:-1])[1:]
    return float((before_own_stage - (score[0] if baseline is None else baseline)[1:]).mean())


def loss_forgetting_by_domain(loss: Matrix) -> Forgettable:
    """nll[T, i] minus min over 1 <= l < T of nll[l, i], for i < T; nats per answer token."""
    _require_stream(loss)
    return loss[-1, :-1] - loss[1:-1, :-1].min(axis=0)


def learning_speed(steps: Series, score: Series, start: float) -> float:
    """Area between a within-stage curve and its starting value, divided by the stage's length.

    `steps` ascend to the stage's end; step 0 is the start. Trapezoids in score units: the mean gain during the stage.
    """
    if len(steps) == 0 or steps[0] < 0 or np.any(np.diff(steps) <= 0) or steps[-1] == 0:
        raise ValueError(f"steps {list(steps)} must ascend from 0 or later and end above 0; sort the curve and drop repeated points")
    if steps[0] > 0:
        steps, score = np.concatenate([[0.0], steps]), np.concatenate([[start], score])
    return float(np.trapezoid(score - start, steps) / steps[-1])


def _require_stream(matrix: Matrix) -> None:
    stages, domains = len(matrix) - 1, matrix.shape[1]
    if stages != domains:
        raise ValueError(f"the matrix has {stages} stages and {domains} domains; give rows 0..T and T columns, one stage a domain")
    if stages < 2:
        raise ValueError(f"{stages} stage: nothing can be forgotten; forgetting and transfer need a stream of at least 2 domains")


def metrics_table(accuracy: pd.DataFrame, curves: pd.DataFrame | None = None, chance: Chance | None = None) -> pd.DataFrame:
    """The rows of metrics.csv for every run (arm x method x order x stage_steps x seed) and kind.

    Domain is empty where the value is over domains. Measures that were not taken have no rows: no score
    metrics where there is only a loss, no learning speed without `curves`, no FWT over chance without
    `chance` ((domain, kind) -> score of guessing), no means over domains for a kind that some domains
    lack, and of a single stage only what cannot involve forgetting. A run with gaps raises MissingMeasurement.
    """
    _require_columns(accuracy, ACCURACY_COLUMNS, "accuracy")
    if curves is not None:
        _require_columns(curves, CURVE_COLUMNS, "curves")
    rows, of_run = [], {} if curves is None else {_plain(key): part for key, part in curves.groupby(RUN_KEYS, dropna=False, sort=False)}
    for key, run in accuracy.groupby(RUN_KEYS, dropna=False, sort=True):
        run, run_curves = run[_OF_RUN], None if curves is None else of_run.get(_plain(key), curves.iloc[:0])[[*_OF_RUN, "step"]]
        rows += [(*key, *row) for row in _run_rows(_name(key), run, run_curves, chance or {})]
    return pd.DataFrame(rows, columns=METRIC_COLUMNS).astype({"value": float})


def score_matrix(run: pd.DataFrame, kind: str, value: str = "score", order: list[str] | None = None) -> pd.DataFrame:
    """The matrix of one run: rows stage 0..T, columns its domains of this kind in stream order.

    A domain without any value of this kind has no column; a partly measured one raises MissingMeasurement. `order` is
    `stream_order(run)` where it is known already.
    """
    order = stream_order(run) if order is None else order
    cells = run[(run["kind"] == kind) & run["domain"].isin(order)]
    if cells.duplicated(["stage", "domain"]).any():
        twice = cells[cells.duplicated(["stage", "domain"])].iloc[0]
        raise ValueError(f"domain {twice['domain']} after stage {twice['stage']} stands twice in kind {kind}; give the rows of one run")
    matrix = cells.pivot(index="stage", columns="domain", values=value).astype(float)
    matrix = matrix.reindex(index=range(len(order) + 1), columns=[domain for domain in order if domain in matrix])
    matrix = matrix.dropna(axis="columns", how="all")
    gaps = [f"{domain} after stage {stage}" for domain in matrix for stage in matrix.index[matrix[domain].isna()]]
    if gaps:
        raise MissingMeasurement(f"{value} of kind {kind} is missing for {', '.join(gaps)}; run the stages that lack it")
    return matrix


def stream_order(run: pd.DataFrame) -> list[str]:
    """The domains of one run in the order its stages trained them; stages without a gap from 0, one domain each."""
    stages = run[["stage", "stage_domain"]].drop_duplicates().sort_values("stage")
    expected = list(range(int(stages["stage"].max()) + 1))
    if stages["stage"].tolist() != expected:
        seen = stages["stage"].tolist()
        raise MissingMeasurement(
            f"stages {seen} are not 0..{expected[-1]} with one stage_domain each; missing {sorted(set(expected) - set(seen))}"
        )
    order = stages["stage_domain"].tolist()[1:]
    if any(not isinstance(domain, str) or not domain for domain in order) or len(set(order)) < len(order):
        raise MissingMeasurement(f"stage_domain of stages 1..{len(order)} is {order}; every stage needs its own domain")
    return order


def _run_rows(name: str, run: pd.DataFrame, curves: pd.DataFrame | None, chance: Chance) -> Iterator[tuple[str, str, str, float]]:
    try:
        order = stream_order(run)
        if order == [JOINT]:
            yield from _joint_rows(run)
            return
        kinds = sorted(set(run.loc[run["domain"] != GENERAL, "kind"]))
        absent = [domain for domain in order if domain not in set(run.loc[run["kind"] == "all", "domain"])]
        if absent:
            raise MissingMeasurement(f"domains {absent} of the stream have no rows of kind all; score them after every stage")
        for kind in kinds:
            score, loss = (score_matrix(run, kind, value, order) for value in ("score", "nll"))
            yield from _with_kind(kind, _score_rows(score, order))
            yield from _with_kind(kind, _loss_rows(loss, order))
            if list(score) == order:
                yield from _with_kind(kind, _chance_rows(score, _parts(run, kind), chance))
                if curves is not None and not curves.empty:
                    yield "", kind, "learning_speed", _mean_learning_speed(score, curves[curves["kind"] == kind])
        yield from _general_rows(run[run["domain"] == GENERAL], len(order))
    except ValueError as error:
        raise type(error)(f"run {name}: {error}") from None


def _joint_rows(run: pd.DataFrame) -> Iterator[tuple[str, str, str, float]]:
    """All domains mixed in one stage: what could be kept; nothing is forgotten, so there is no more to say."""
    scores = run[(run["domain"] != GENERAL) & (run["stage"] == 1)].dropna(subset=["score"])
    for kind, rows in scores.groupby("kind"):
        yield "", kind, "acc", float(rows["score"].mean())
        yield from ((row.domain, kind, "final", float(row.score)) for row in rows.itertuples())


def _with_kind(kind: str, rows: Iterator[tuple[str, str, float]]) -> Iterator[tuple[str, str, str, float]]:
    return ((domain, kind, metric, value) for domain, metric, value in rows)


def _score_rows(score: pd.DataFrame, order: list[str]) -> Iterator[tuple[str, str, float]]:
    by_domain = {
        "forgetting": forgetting_by_domain, "own": own_by_domain, "final": final_by_domain, "retention": retention_by_domain,
    }  # fmt: skip
    if list(score) == order:
        yield "", "acc", float(score.to_numpy()[-1].mean())
        yield "", "gain", float((score.to_numpy()[-1] - score.to_numpy()[0]).sum())
        if len(order) > 1:
            yield "", "bwt", backward_transfer(score.to_numpy())
            yield "", "fwt", forward_transfer(score.to_numpy())
    yield from _rows_by_domain(score, order, by_domain)


def _loss_rows(loss: pd.DataFrame, order: list[str]) -> Iterator[tuple[str, str, float]]:
    by_domain = {"loss_forgetting": loss_forgetting_by_domain, "loss_own": own_by_domain, "loss_final": final_by_domain}
    yield from _rows_by_domain(loss, order, by_domain)


def _rows_by_domain(values: pd.DataFrame, order: list[str], functions: Mapping) -> Iterator[tuple[str, str, float]]:
    """A row per measured domain i < T, and their plain mean where all domains are measured."""
    if len(order) < 2:
        return
    matrix = values.reindex(columns=order).to_numpy()
    for metric, function in functions.items():
        result = dict(zip(order, function(matrix), strict=False))
        if list(values) == order:
            yield "", metric, float(np.mean(list(result.values())))
        for domain in order[:-1]:
            if domain in values:
                yield domain, metric, float(result[domain])


def _chance_rows(score: pd.DataFrame, parts: Mapping[str, list[str]], chance: Chance) -> Iterator[tuple[str, str, float]]:
    """FWT against guessing, where guessing is known for every kind behind every domain's score."""
    if len(score.columns) > 1 and all((domain, part) in chance for domain in score for part in parts[domain]):
        guessing = np.array([np.mean([chance[domain, part] for part in parts[domain]]) for domain in score])
        yield "", "fwt_over_chance", forward_transfer(score.to_numpy(), guessing)


def _mean_learning_speed(score: pd.DataFrame, curves: pd.DataFrame) -> float:
    """Mean over the stages of `learning_speed` on the stage's own domain; a curve without step 0 starts at R[t-1, t]."""
    speeds = []
    for stage, domain in enumerate(score, start=1):
        points = curves[(curves["stage"] == stage) & (curves["domain"] == domain)].sort_values("step")
        if points.empty or points["score"].isna().any():
            raise MissingMeasurement(f"curves have no scores of domain {domain} within its own stage {stage}; run that stage again")
        values = points["score"].to_numpy(dtype=float)
        start = values[0] if points["step"].iloc[0] == 0 else score[domain][stage - 1]
        speeds.append(learning_speed(points["step"].to_numpy(dtype=float), values, start))
    return float(np.mean(speeds))


def _general_rows(general: pd.DataFrame, last: int) -> Iterator[tuple[str, str, str, float]]:
    """What the general mixture kept: the ratio of its scores after and before the stream, and the rise of its loss."""
    for kind, rows in general.groupby("kind"):
        ends = rows.set_index("stage").reindex([0, last])[["score", "nll"]].astype(float)
        for value, (before, after) in ends.items():
            if np.isnan(before) != np.isnan(after):
                raise MissingMeasurement(
                    f"{value} of {GENERAL} is missing after stage {0 if np.isnan(before) else last}; score it there too"
                )
            if value == "score" and not np.isnan(before):
                yield "", kind, "general_retention", after / before if before else np.nan
            if value == "nll" and not np.isnan(before):
                yield "", kind, "general_loss_rise", after - before


def _parts(run: pd.DataFrame, kind: str) -> dict[str, list[str]]:
    """The kinds behind each domain's score of `kind`: itself, or for `all` those it is the mean of."""
    kinds = run[run["kind"] != "all"].groupby("domain")["kind"].unique()
    return {domain: list(kinds.get(domain, [kind])) if kind == "all" else [kind] for domain in set(run["domain"])}


def _require_columns(table: pd.DataFrame, columns: list[str], name: str) -> None:
    absent = [column for column in columns if column not in table]
    if absent:
        raise MissingMeasurement(f"table {name} lacks the columns {absent}; it has {list(table)}. Compile the tables again")


def _plain(key: tuple) -> tuple:
    """The key of a run with empty for absent: a CSV file cannot tell them apart."""
    return tuple("" if pd.isna(value) else value for value in key)


def _name(key: tuple) -> str:
    shown = {
        column: value for column, value in zip(RUN_KEYS, key, strict=True) if column in ("arm", "method", "order", "stage_steps", "seed")
    }
    return ", ".join(f"{column} {value}" for column, value in shown.items())
