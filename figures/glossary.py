"""What the numbers and words of a page mean: the one place where they are defined.

QUANTITIES is the table of the README, "Which number to trust"; a test keeps the two alike, and `readme_rows` writes its
lines. WORDS explains what a reader from another field may not know.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """One row of the README's table: backticks around names in code, asterisks around what is stressed."""

    name: str
    meaning: str
    uncertainty: str


QUANTITIES = (
    Quantity("`lambda_min`, `lambda_max`", "extreme eigenvalues of the group's Hessian",
             "residual |Hv − λv| and rounding |(H₆₄ − H)v|, from products: some eigenvalue is that near. The sign is *verified* "
             "when a float64 product confirms it."),
    Quantity("`missed_below`", "where an undetected eigenvalue may still lie",
             "probability bound of Kuczyński and Woźniakowski (1992). Absence of negative curvature is never verified."),
    Quantity("`negative_mass`", "fraction of eigenvalues below −threshold",
             "quadrature bracket, widened by the interval over probes, or to the limits of its own ends where it is the wider; "
             "the value is the geometric mean of each probe's bounds, "
             "and errs to the low side where they are far apart; the threshold is relative (1e-3 of max |λ|) and shared in a "
             "table"),
    Quantity("`extreme_ratio`", "|λ_min| / |λ_max|, plotted by Rangwani et al. (2022)", "from residual and rounding of both"),
    Quantity("`trace`", "sum of all eigenvalues",
             "t interval from the second moments of its own products (XTrace: a jackknife), the extreme pairs deflated"),
    Quantity("`group_curvature`, `group_trace`", "where H is of some images only: the curvature of all the group's images along "
             "the lowest eigenvector of H, which is at least their λ_min; and their trace",
             "t over images, the first from images that H has not seen (Cochran 1977); extremes of a subset are biased outwards, "
             "and have no such interval"),
    Quantity("verdict", "strict saddle at (ε_g, ε_H), slope that bends down, no negative curvature found above a resolution, or "
             "undecided",
             "negative curvature is proved by a float64 product or not claimed; its absence comes with a resolution and the "
             "probability of a miss, and is never called a minimum. Defaults: ε_H = 0.01 max |λ|, ε_g = ε_H² |θ| / (2 max |λ|), "
             "so that scaling loss or parameters changes nothing; `--eps_g`, `--eps_H`"),
    Quantity("escape epoch", "first stored checkpoint at which no negative curvature is found",
             'an interval between checkpoints; "not within N epochs" where there is none'),
    Quantity("eigenvector overlap", "|⟨v_i(t), v_j(t+1)⟩| of the most negative eigenvectors",
             "t over seeds, beside the line of random directions"),
    Quantity("alignment", "|⟨v, ε⟩| / |ε|: how far an optimizer's perturbation ε points along an eigenvector v",
             "t over mini-batches, or over seeds; a random direction has √(2 / (π d))"),
    Quantity("amplification", "⟨v, ∇L(θ + ε)⟩ / ⟨v, ∇L(θ)⟩, against 1 + λ⟨v, ε⟩ / ⟨v, ∇L(θ)⟩",
             "exact to first order in ε alone; drawn hollow where the component is within rounding or v was not found well "
             "enough"),
    Quantity("ablation", "norm, alignment and rise of loss of a group's gradient in full, along the global one, and without it",
             "t over seeds; a group that is everything has nothing left without it"),
    Quantity("similarity", "mean cosine of a group's gradient with those of mini-batches",
             "t over mini-batches, or over seeds; a group's own images in the batch raise it"),
    Quantity("feature quality", "Q = Dis − 0.5 log Var of a group's features; −1 / Dis − log Var as released",
             "jackknife over images, or t over seeds; moves when all features are scaled"),
    Quantity("escape steps", "steps until a toy saddle is left", "t over draws of the noise; closed forms where there are any"),
    Quantity("loss, barrier", "mean loss of a group on a line or plane; how far it rises between two checkpoints",
             "exact at its points; the mark is the first point of the grid where the quadratic prediction is off by 10 %"),
    Quantity("cost of a step", "forwards, backwards and seconds of a training step, beside a step of SGD",
             "quartiles over interleaved rounds, on the machine named"),
    Quantity("cost of training", "median seconds of an epoch, relative to the epochs of SGD with cross-entropy",
             "t over seeds; whole epochs beside whatever else the machine did"),
    Quantity('intervals "over seeds"', "spread between training runs",
             "Student's t; with three seeds it is wide, and that is the truth"),
)

WORDS = {
    "long-tailed data":
        "Many images of a few classes, few images of many. Imbalance is the largest class's number of training images over "
        "the smallest's.",
    "head, tail":
        "The classes with at least η training images, and those with fewer. Many, medium and few are the same in three parts.",
    "group's loss":
        "Cross-entropy averaged over the images of the group's classes, in nats: 0 where every image is surely right, the "
        "logarithm of the number of classes where the network guesses.",
    "Hessian":
        "The matrix of second derivatives of a group's loss by the network's parameters. Its eigenvalues, in nats / "
        "parameter², are the curvatures of the loss: positive where it rises both ways along the eigenvector, negative where "
        "it falls both ways.",
    "gradient norm":
        "How steep the group's loss is, |∇L|. Where it is not small the point is no critical point, whatever the curvature.",
    "strict saddle":
        "A point of nearly no gradient, |∇L| ≤ ε_g, with negative curvature beyond −ε_H. The two tolerances are stated "
        "beside every verdict.",
    "slope that bends down":
        "Negative curvature beyond −ε_H is proved, but the gradient is not small: the loss is still falling, and faster and "
        "faster along that direction.",
    "no negative curvature found":
        "The search reached down to a stated resolution and found none. An eigenvalue below that may have been missed with "
        "the stated probability; it is not the same as a minimum.",
    "undecided":
        "The records decide neither; the reason stands beside it.",
    "verified":
        "The curvature along the eigenvector was computed once more in float64, and its sign stands beyond rounding.",
    "converged":
        "The residual is below the tolerance asked for. A value that has not converged still proves that the true end lies "
        "at least as far out.",
    "SGD, SAM, ImbSAM, SSE-SAM":
        "Stochastic gradient descent; sharpness-aware minimisation, which takes the gradient at a point uphill; SAM uphill "
        "on the tail's loss alone; SAM uphill on head and tail by radii of their own, the head's only during the first stage.",
    "α, β":
        "Coordinates on a line or plane through the weights that training reached, which lie at 0. Along random directions "
        "they are in filter norms (1: every filter moved by its own norm), along eigenvectors in units of the parameters.",
    "seed":
        "What one training run differs in from another of the same settings: initial weights and order of the images.",
}


def readme_rows() -> list[str]:
    """Return the lines of the README's table below its head."""
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in (row.name, row.meaning, row.uncertainty)) + " |"
            for row in QUANTITIES]
