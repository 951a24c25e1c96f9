"""The persona space at a layer: an orthonormal basis of directions that the base model has, and its dimension.

`coefficients` is the one construction: real spaces pass through it, and so do the pseudo-directions of a null.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wellworn.probes.statistics.intervals import FloatArray

FEWEST_ROLES = 12
# The dimension's cross-validation leaves out one persona, and two must remain to make a space.
FEWEST_PERSONAS = 3
RANK_TOLERANCE = 1e-6
SPLITS = 10
PERMUTATIONS = 199
NONE_HERE = "no persona space at this layer"

# A persona's name → its states [prompts, questions, d_model].
States = Mapping[str, FloatArray]


@dataclass(frozen=True)
class Members:
    """The vectors that make a space: numbers of trait vectors, then of role vectors, then perhaps the default's."""

    traits: int
    roles: int = 0
    default: bool = False

    @property
    def personas(self) -> int:
        """Traits and roles together."""
        return self.traits + self.roles

    @property
    def count(self) -> int:
        """All vectors, the default's included."""
        return self.personas + self.default


def span(vectors_RD: FloatArray) -> FloatArray:
    """Return the space of traits alone, U [d_model, k], with k the rank of the vectors [R, d_model]; 0 for no rows."""
    return persona_space(vectors_RD)


def persona_space(
    traits_TD: FloatArray, roles_RD: FloatArray | None = None, default_D: FloatArray | None = None, k: int | None = None
) -> FloatArray:
    """Return the orthonormal basis U of a persona space.

    With fewer than 12 roles the space is that of the traits alone, scaled to unit norm so that a direction's
    size does not decide whether it counts. With 12 or more the rows are the roles less their mean, at raw norm,
    and the traits, scaled to the roles' median norm. The basis is their top right singular vectors; with a default vector, the assistant
    axis (default − mean role) takes the place of the last of them.

    Args:
        traits_TD: [T, d_model], difference vectors; T may be 0.
        roles_RD: [R, d_model], mean states under each role.
        default_D: [d_model], the mean state under the default system prompt; unused with fewer than 12 roles.
        k: dimensions, the axis included. None with traits alone means all that they span.

    Returns:
        [d_model, k]. With a default vector the first column is the assistant axis (`U[:, :1]`, along default −
        mean role) and `U[:, 1:]` is the rest of U; the first j columns are the space for k = j.

    Raises:
        ValueError: k missing where roles make the space, or more than the rows hold; a row of zeros.
    """
    if roles_RD is None or len(roles_RD) < FEWEST_ROLES:
        if len(traits_TD) == 0:
            return np.zeros((traits_TD.shape[-1], 0))
        vectors, members = traits_TD, Members(len(traits_TD))
    else:
        if k is None:
            raise ValueError(f"a space of {len(roles_RD)} roles needs a number of dimensions k; `dimension` finds one")
        # Raw states share a large mean, and its square would round off the inner products.
        mean = roles_RD.mean(0)
        parts = [traits_TD, roles_RD - mean] + ([] if default_D is None else [(default_D - mean)[None]])
        vectors, members = np.concatenate(parts), Members(len(traits_TD), len(roles_RD), default_D is not None)
    basis, upper = np.linalg.qr(vectors.T @ coefficients(vectors @ vectors.T, members, k))
    return np.asarray(basis * np.sign(np.diagonal(upper)))


def coefficients(gram: FloatArray, members: Members, k: int | None = None) -> FloatArray:
    """Return the coefficients of a space's basis in the vectors that make it: U = VᵀC for V [M, d_model].

    The rules are those of `persona_space`. They need inner products alone, so thousands of null spaces need no singular value decomposition
    in d_model dimensions.

    Args:
        gram: [..., M, M], VVᵀ of one or many sets of M vectors in the order of `members`.
        members: the kinds of vectors.
        k: dimensions; None means as many as every set holds.

    Returns:
        C [..., M, k]; with a default vector its first column is the assistant axis.

    Raises:
        ValueError: the rows hold fewer directions than are asked for; a row of zeros.
    """
    rows, scale = _scale_rows(gram, members)
    values, vectors = np.linalg.eigh(rows)
    rank = int((values > RANK_TOLERANCE**2 * values[..., -1:]).sum(-1).min())
    axis = int(members.default)
    k = rank + axis if k is None else k
    if not 1 <= k <= rank + axis:
        extra = " and the axis" if axis else ""
        raise ValueError(f"no space of k = {k} dimensions: {members.personas} vectors hold {rank} directions{extra}")
    top = slice(-1, -1 - (k - axis), -1)
    personas, roles = slice(members.personas), slice(members.traits, members.personas)
    out = np.zeros((*gram.shape[:-1], k))
    out[..., personas, axis:] = scale[..., None] * vectors[..., top] / np.sqrt(values[..., None, top])
    if members.roles:
        out[..., roles, axis:] -= out[..., roles, axis:].mean(-2, keepdims=True)
    if axis:
        out[..., roles, 0], out[..., -1, 0] = -1 / members.roles, 1.0
        out = _orthonormal(out, gram)
    return out


def _scale_rows(gram: FloatArray, members: Members) -> tuple[FloatArray, FloatArray]:
    """Return the inner products of the rows that are decomposed, [..., P, P], and each row's scale [..., P]."""
    traits, roles = slice(members.traits), slice(members.traits, members.personas)
    rows = gram[..., : members.personas, : members.personas].copy()
    if members.roles:
        rows[..., roles, :] -= rows[..., roles, :].mean(-2, keepdims=True)
        rows[..., roles] -= rows[..., roles].mean(-1, keepdims=True)
    norms = np.sqrt(np.diagonal(rows, axis1=-2, axis2=-1).clip(0))
    if not norms[..., traits].all() or not norms.any(-1).all():
        raise ValueError("no space: a vector is zero, or all roles are the same")
    scale = np.ones_like(norms)
    scale[..., traits] = (np.median(norms[..., roles], axis=-1, keepdims=True) if members.roles else 1.0) / norms[..., traits]
    return rows * scale[..., None] * scale[..., None, :], scale


def _orthonormal(columns: FloatArray, gram: FloatArray) -> FloatArray:
    """Make VᵀC orthonormal, column by column from the first, as Gram-Schmidt does."""
    inner = columns.swapaxes(-1, -2) @ gram @ columns
    norms = np.sqrt(np.diagonal(inner, axis1=-2, axis2=-1).clip(0))
    if not norms.all():
        raise ValueError("no assistant axis: the default vector is the mean role")
    columns = columns / norms[..., None, :]
    inner = inner / norms[..., None] / norms[..., None, :]
    if np.linalg.eigvalsh(inner)[..., 0].min() <= RANK_TOLERANCE**2:
        raise ValueError(f"no space of k = {columns.shape[-1]} dimensions: the assistant axis lies in the span of the rest")
    return np.asarray(columns @ np.linalg.inv(np.linalg.cholesky(inner)).swapaxes(-1, -2))


@dataclass(frozen=True)
class Dimension:
    """How many dimensions the persona space has at a layer.

    Attributes:
        k: the dimension; None where there is no persona space.
        why: the reason, where there is none.
        q2: [K], the cross-validated Q²(k) for k = 1 … K.
        standard_error: of the largest Q², by the jackknife over personas.
        parallel: how many leading singular values exceed the 95 % quantile of permuted labels, for comparison.
    """

    k: int | None
    why: str | None
    q2: FloatArray
    standard_error: float
    parallel: int


def dimension(
    traits: States,
    roles: States,
    rng: np.random.Generator,
    default_QD: FloatArray | None = None,
    splits: int = SPLITS,
    namesakes: Mapping[str, str] | None = None,
) -> Dimension:
    """Find the dimension of the persona space by how well it predicts a held-out persona.

    With halves A and B disjoint in questions and in prompts (for traits: contrast pairs), and −r leaving out
    persona r with its namesakes,

        Q²(k) = 1 − Σ_r ‖v_r^B − U_k^(−r,A) U_k^(−r,A)ᵀ v_r^A‖² / Σ_r ‖v_r^B‖²

    averaged over both swaps and random splits; roles are centred on the mean of the other roles of the same half,
    and traits are scaled as in the whole space. k is the smallest with Q² within one standard error of the largest.

    Args:
        traits: positive − negative difference states of each trait, [pairs, questions, d_model].
        roles: states under each role, [prompts, questions, d_model]; unused where there are fewer than 12.
        rng: draws splits and permutations.
        default_QD: [questions, d_model], states under the default system prompt. Its one prompt is in both halves.
        splits: random splits.
        namesakes: role → the trait that it is a character of, in addition to roles with a trait's own name; they are left out together.

    Raises:
        ValueError: fewer than three personas, two prompts or two questions, or unequal numbers of questions.
    """
    if len(roles) < FEWEST_ROLES:
        roles, default_QD = {}, None
    names = np.array([(namesakes or {}).get(name, name) for name in (*traits, *roles)])
    _check([*traits.values(), *roles.values()], names, default_QD)
    if roles:
        # Raw states share a large mean, and its square would round off the inner products.
        mean = np.mean([each.mean((0, 1)) for each in roles.values()], axis=0)
        roles = {name: each - mean for name, each in roles.items()}
        default_QD = None if default_QD is None else default_QD - mean
    states = [*traits.values(), *roles.values()]
    halves = half_means(states, default_QD, splits, rng)
    members = Members(len(traits), len(roles), default_QD is not None)
    whole = np.stack([each.mean((0, 1)) for each in states])
    _, scale = _scale_rows(whole @ whole.T, Members(members.traits, members.roles))
    misses = [_miss(halves, members, scale[r], r, names) for r in range(len(names))]
    most = min(len(miss) for miss, _ in misses)
    # [R, K, splits, 2] and [R, splits, 2]
    missed, squared = np.stack([miss[:most] for miss, _ in misses]), np.stack([square for _, square in misses])
    q2 = (1 - missed.sum(0) / squared.sum(0)).mean((1, 2))
    best = int(q2.argmax())
    others = (1 - (missed[:, best].sum(0) - missed[:, best]) / (squared.sum(0) - squared)).mean((1, 2))
    error = float(np.sqrt((len(names) - 1) * others.var()))
    parallel = _parallel(list(traits.values()), list(roles.values()), rng)
    if q2[best] <= 0:
        why = f"{NONE_HERE}: none of k = 1 … {most} foretells a persona that was left out (Q² is at most {q2[best]:.2f})"
        return Dimension(None, why, q2, error, parallel)
    return Dimension(1 + int(np.argmax(q2 >= q2[best] - error)), None, q2, error, parallel)


def _check(states: list[FloatArray], names: np.ndarray, default_QD: FloatArray | None) -> None:
    questions = {each.shape[1] for each in states} | (set() if default_QD is None else {len(default_QD)})
    prompts = min((len(each) for each in states), default=0)
    if len(set(names)) < FEWEST_PERSONAS or len(questions) != 1 or min(questions) < 2 or prompts < 2:
        raise ValueError(
            "a dimension needs at least three personas, two prompts each and two questions, the same for all; "
            f"got {len(set(names))} personas, at least {prompts} prompts, {sorted(questions)} questions"
        )


def half_means(states: Sequence[FloatArray], default_QD: FloatArray | None, splits: int, rng: np.random.Generator) -> FloatArray:
    """Return each persona's (and the default's) mean over half A and over half B, which share no question and no prompt.

    Args:
        states: of each persona, [prompts, questions, d_model]; at least two prompts and two questions, the same number of questions for
            all.
        default_QD: [questions, d_model], states under the default system prompt, which is in both halves; or None.
        splits: random splits.
        rng: draws them.

    Returns:
        [splits, 2, M, d_model].
    """
    questions = states[0].shape[1]
    out = []
    for _ in range(splits):
        asked = np.array_split(rng.permutation(questions), 2)
        prompts = [np.array_split(rng.permutation(len(each)), 2) for each in states]
        for h in range(2):
            means = [each[some[h]][:, asked[h]].mean((0, 1)) for each, some in zip(states, prompts, strict=True)]
            out.append(means if default_QD is None else [*means, default_QD[asked[h]].mean(0)])
    return np.array(out).reshape(splits, 2, *np.shape(out)[1:])


def _miss(halves: FloatArray, members: Members, scale: float, r: int, names: np.ndarray) -> tuple[FloatArray, FloatArray]:
    """Return ‖v_r^B − U_k U_kᵀ v_r^A‖² for every k, [K, splits, 2], and ‖v_r^B‖² [splits, 2]; the axis of 2 is over swaps."""
    keep = np.flatnonzero(np.append(names != names[r], [True] * members.default))
    is_role = (keep >= members.traits) & (keep < members.personas)
    rest = Members(int((keep < members.traits).sum()), int(is_role.sum()), members.default)
    vectors, left_out = halves[:, :, keep], scale * halves[:, :, r]
    if rest.roles:
        mean = vectors[:, :, is_role].mean(2)
        vectors[:, :, rest.traits :] -= mean[:, :, None]
        if r >= members.traits:
            left_out = left_out - mean
    basis = vectors.swapaxes(-1, -2) @ coefficients(vectors @ vectors.swapaxes(-1, -2), rest)
    # The first k columns are the space for k, so a running sum over columns gives every k at once.
    a, b = (np.einsum("shdk,shd->ksh", basis, each) for each in (left_out, left_out[:, ::-1]))
    squared = (left_out[:, ::-1] ** 2).sum(-1)
    return squared + np.cumsum(a**2 - 2 * a * b, axis=0), squared


def _parallel(traits: list[FloatArray], roles: list[FloatArray], rng: np.random.Generator) -> int:
    """Count leading eigenvalues of the rows that exceed those of rows whose prompts were dealt to personas at random."""
    members = Members(len(traits), len(roles))
    groups = [[each.mean(1) for each in group] for group in (traits, roles) if group]

    def eigenvalues(shuffle: bool) -> FloatArray:
        means = []
        for group in groups:
            prompts = np.concatenate(group)
            dealt = prompts[rng.permutation(len(prompts))] if shuffle else prompts
            means += [part.mean(0) for part in np.split(dealt, np.cumsum([len(each) for each in group])[:-1])]
        vectors = np.stack(means)
        return np.asarray(np.linalg.eigvalsh(_scale_rows(vectors @ vectors.T, members)[0])[::-1])

    chance = np.quantile([eigenvalues(True) for _ in range(PERMUTATIONS)], 0.95, axis=0)
    return int(np.cumprod(eigenvalues(False) > chance).sum())
