"""The verdicts on some runs as tables of a page: by optimizer over its seeds, and run by run with the evidence.

Verdicts are `analysis.findings.verdict.judge` of the stored curvatures, never more than those allow.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from analysis.findings import summary
from analysis.findings.verdict import NONE_FOUND, SADDLE, SLOPE, Verdict, judge
from checkpoints.comparison import Comparison, Member
from checkpoints.records import Curvature
from figures import style
from figures.cautions import name_of
from figures.markup import Markup, joined, table, tag
from figures.options import Options

LOOKS = {SADDLE: "bends", SLOPE: "bends", NONE_FOUND: "none"}     # verdict -> class of its text; open for what is left
LAMBDA_MIN, EPS_G = Markup("λ<sub>min</sub>"), Markup("ε<sub>g</sub>")
FEW = 8            # rows of a table that is shown without being opened

Judged = dict[tuple[str, str], list[tuple[Member, Curvature, Verdict]]]     # (group, opt) -> one a seed


def judged(runs: Comparison, groups: Sequence[str], epoch: int) -> Judged:
    """Return every run's record and verdict at one epoch, by group and optimizer."""
    return {(group, opt): [_judged(member, epoch, group) for member in members]
            for group in groups for opt, members in runs.members.items()}


def epoch_of(found: Judged) -> int:
    """Return the epoch of verdicts, which is one for all."""
    return next(iter(found.values()))[0][1].epoch


def sentences(found: Judged) -> list[Markup]:
    """Return one sentence a group: how many runs got which verdict, and how deep lambda_min reaches."""
    lines = []
    for group in dict.fromkeys(group for group, _ in found):
        everyone = [one for (name, _), row in found.items() if name == group for one in row]
        counts = Counter(verdict.kind for _, _, verdict in everyone)
        words = ", ".join(f"{kind} in {number} of {len(everyone)} runs" for kind, number in counts.most_common())
        depths = {opt: summary.pooled([record for _, record, _ in row], "lambda_min").value
                  for (name, opt), row in found.items() if name == group}
        lines.append(joined([f"{style.group_name(group).capitalize()}: {words}; ", LAMBDA_MIN, f" {_range(depths)}."]))
    return lines


def pooled_table(found: Judged, options: Options) -> Markup:
    """Return one row a group and optimizer: verdicts of its seeds, lambda_min, how many signs are verified, gradient norm."""
    rows = []
    for (group, opt), row in found.items():
        records = [record for _, record, _ in row]
        depth, slope = (summary.pooled(records, name, options.level) for name in ("lambda_min", "gradient_norm"))
        verified = sum(verdict.verified_min for _, _, verdict in row)
        rows.append([_named(group, opt), _counted([verdict for _, _, verdict in row]),
                     _cell(summary.interval_text(depth.value, depth.low, depth.high)), _cell(f"{verified} of {len(row)}"),
                     _cell(summary.interval_text(slope.value, slope.low, slope.high)),
                     _cell(_between([verdict.eps_g for _, _, verdict in row]))])
    heads = ["group, optimizer", "verdict", LAMBDA_MIN, "sign verified", "|∇L|", EPS_G]
    groups = [group for group, _ in found]
    return table(heads, rows, gaps=[number for number in range(1, len(groups)) if groups[number] != groups[number - 1]])


def detailed_table(found: Judged) -> Markup:
    """Return one row a run and group: lambda_min with its residual, what may have been missed, and the evidence in words."""
    rows = [[f"{name_of(member)}, {style.group_name(group)}", _cell(_with_residual(record)),
             _cell("yes" if verdict.verified_min else "no"), _cell(summary.number_text(record.gradient_norm)),
             _cell(_missed(verdict)), tag("span", verdict.sentence, class_="long")]
            for (group, _), row in found.items() for member, record, verdict in row]
    heads = ["run, group", joined([LAMBDA_MIN, " ± residual and rounding"]), "sign verified", "|∇L|",
             "nothing below, but with probability", "verdict and evidence"]
    return tag("details", tag("summary", f"Every run: {len(rows)} rows with error bars and evidence"), table(heads, rows),
               open=len(rows) <= FEW)


def key(opt: str) -> Markup:
    """Return the name of an optimizer behind a dot of its color."""
    look = style.look(opt)
    return joined([tag("span", class_="key", style=f"background:{look.color}"), look.name])


def _judged(member: Member, epoch: int, group: str) -> tuple[Member, Curvature, Verdict]:
    record = member.curvature(epoch, group)
    return member, record, judge(record, weight_decay=member.weight_decay)


def _named(group: str, opt: str) -> Markup:
    return tag("span", f"{style.group_name(group)}, ", key(opt), class_="whole")


def _counted(verdicts: Sequence[Verdict]) -> Markup:
    counts = Counter(verdict.kind for verdict in verdicts)
    texts = [tag("span", kind + (f" ({number} of {len(verdicts)})" if len(verdicts) > 1 else ""),
                 class_=f"verdict {LOOKS.get(kind, 'open')}") for kind, number in counts.most_common()]
    return tag("span", joined(texts, ", "), class_="wrap")


def _cell(text: str) -> Markup:
    return tag("span", text)


def _with_residual(record: Curvature) -> str:
    pairs = record.eigenpairs
    if not pairs.values.size:
        return "none computed"
    text = f"{summary.number_text(pairs.values[0])} ± {pairs.radii[0]:.1e}"
    return text if pairs.converged[0] else f"{text} (not converged)"


def _missed(verdict: Verdict) -> str:
    if verdict.resolution == float("inf"):
        return "not bounded"
    return f"{summary.number_text(-verdict.resolution)}, {verdict.miss_probability:.2g}"


def _between(values: Sequence[float]) -> str:
    low, high = (summary.number_text(pick(values)) for pick in (min, max))
    return low if low == high else f"{low} to {high}"


def _range(values: Mapping[str, float]) -> str:
    low, high = min(values, key=values.get), max(values, key=values.get)
    texts = [f"{summary.number_text(values[opt])} ({style.look(opt).name})" for opt in (low, high)]
    return texts[0] if low == high else " to ".join(texts)
