r"""Two views of a rigid scene: fundamental and essential matrices from matches, some of them wrong.

A match is a row (x, y, x', y') in pixels: p = (x, y, 1) in the first image, p' in the second. All
right matches have p'^T F p = 0, with det F = 0; with cameras K, K' known, F = K'^-T E K^-1 and
E = [t]_x R has two equal singular values. Three steps:

1. Minimal samples, all in one `vmap` (`ox.sample_consensus`): 7 matches give up to three F
   (Hartley & Zisserman, "Multiple View Geometry", 2nd ed., 11.1.2), 5 give up to ten E (Nister,
   PAMI 26 (2004) 756). Of a sample's roots the one is kept that all the matches agree with most.
   Several searches, of different keys and thresholds, run side by side.
2. From the best model of each search, `ox.least_squares` of all matches by their Sampson errors

       r = p'^T F p / |((F p)_1, (F p)_2, (F^T p')_1, (F^T p')_2)|                          (1)

   on the manifold: F = U R(a) diag(cos s, sin s, 0) (V R(b))^T, 7 parameters (Bartoli & Sturm,
   IJCV 59 (2004) 159); E by R R(a) and two coordinates of t, 5 parameters. The loss is minus the
   log-likelihood of an error which is Student's or, in the odds c of a wrong match, may be anything
   (Torr & Zisserman's MLESAC, CVIU 78 (2000) 138, has a normal one; those of real matches have
   longer tails):

       rho(z) = -2 log((q(z) + c) / (1 + c)),   q = (1 + z / nu)^(-(nu + 1) / 2),
       z = (r / scale)^2                                                                    (2)

   Scale and odds are those of the greatest likelihood at the F found, and F follows, in turn. Each
   search is refined with several nu. The scale is at least `PRECISION`, the tenth of a pixel to which
   features can be located: without it the greatest likelihood may be a perfect fit of a few.
3. The likelihood of all matches is a poor judge of these answers: with so few parameters to so few
   matches some wrong ones can be fitted, and then count as right. So each feature (matches that
   agree within a pixel in both images are one, found again) is left out in turn, and its residuals
   are predicted by the fit without it, one Newton step from the fit to all. The answer of the
   greatest predictive likelihood is kept (Stone, J. R. Stat. Soc. B 36 (1974) 111). The same
   steps s_i give the covariance, sum_i s_i s_i^T, the jackknife (MacKinnon & White, J. Econom. 29
   (1985) 305; by clusters, since a feature found twice is no independent datum). It, too, knows
   of a match that pulls the fit to itself, as the inverse Hessian does not. It gives those of
   F, the epipoles, R and t.

Only the data can say whether the scene is a plane or the camera only turned: `kind_of_scene`
compares F with a homography, and E with a rotation, by Torr's criterion GRIC (loc. cit.).
"""

from __future__ import annotations

import functools as ft
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import optx_lite as ox

THRESHOLDS = np.geomspace(0.5, 2.0, 16)  # of the searches, times the one given
TAILS = np.array([1.0, 3.0, 30.0])  # and their degrees of freedom, from Cauchy to normal
BATCH = 64  # samples at once: few, so that the searches differ
ROUNDS = 5  # of scale and odds, and the matrix, in turn
PRECISION = 0.1  # pixels
LEVI_CIVITA = np.array(
    [[[0, 0, 0], [0, 0, 1], [0, -1, 0]], [[0, 0, -1], [0, 0, 0], [1, 0, 0]],
     [[0, 1, 0], [-1, 0, 0], [0, 0, 0]]], float,
)  # fmt: skip


# --- points and lines ---------------------------------------------------------------------------


def homogeneous(points: Array) -> Array:
    """(..., 2) to (..., 3)."""
    return jnp.concatenate([points, jnp.ones_like(points[..., :1])], axis=-1)


def both(matches: Array) -> tuple[Array, Array]:
    """The points of both images, (m, 3) each."""
    return homogeneous(matches[:, :2]), homogeneous(matches[:, 2:4])


@jax.jit
def sampson(fundamental: Array, matches: Array) -> Array:
    """(1), signed, pixels."""
    p, q = both(matches)
    along, back = p @ fundamental.T, q @ fundamental
    size = jnp.sum(along[:, :2] ** 2 + back[:, :2] ** 2, axis=1)
    return jnp.sum(q * along, axis=1) / jnp.sqrt(size)


@jax.jit
def symmetric_distance(fundamental: Array, matches: Array) -> Array:
    """The mean distance of the two points of a match to each other's epipolar line."""
    p, q = both(matches)
    along, back = p @ fundamental.T, q @ fundamental
    off = jnp.abs(jnp.sum(q * along, axis=1))
    return off * (1 / jnp.hypot(*along[:, :2].T) + 1 / jnp.hypot(*back[:, :2].T)) / 2


def homography_error(homography: Array, matches: Array) -> Array:
    """The Sampson error of p' = H p, (m, 2): to first order the distance to the nearest such."""

    def off(match: Array) -> Array:
        there = homography @ homogeneous(match[:2])
        return match[2:4] - there[:2] / there[2]

    def whitened(match: Array) -> Array:
        g, j = off(match), jax.jacfwd(off)(match)
        (a, b), (_, c) = j @ j.T  # = L L^T; the error is L^-1 g
        first = g[0] / jnp.sqrt(a)
        return jnp.stack([first, (g[1] - b / a * g[0]) / jnp.sqrt(c - b**2 / a)])

    return jax.vmap(whitened)(matches)


def normalisation(points: Array) -> Array:
    """The similarity to mean 0 and mean distance sqrt(2) of it (Hartley)."""
    center = jnp.mean(points, axis=0)
    scale = jnp.sqrt(2) / jnp.mean(jnp.linalg.norm(points - center, axis=1))
    return jnp.array([[scale, 0, -scale * center[0]], [0, scale, -scale * center[1]], [0, 0, 1]])


def unit(matrix: Array) -> Array:
    """Of norm 1."""
    return matrix / jnp.linalg.norm(matrix)


@jax.jit
def up_to_scale(a: Array, b: Array) -> Array:
    """The distance of two matrices of norm 1, of either sign."""
    a, b = unit(a), unit(b)
    return jnp.minimum(jnp.linalg.norm(a - b), jnp.linalg.norm(a + b))


def cross(t: Array) -> Array:
    """[t]_x, so that [t]_x v = t x v."""
    return -jnp.einsum("ijk,k->ij", LEVI_CIVITA, t)


def rotation(w: Array) -> Array:
    """About w, to first order by its length: Cayley's, smooth everywhere."""
    turn = cross(w)
    return jnp.eye(3) + (turn + turn @ turn / 2) / (1 + w @ w / 4)


# --- minimal samples ----------------------------------------------------------------------------


def null_space(rows: Array) -> Array:
    """An orthonormal basis, (n - m, n), of what ``rows`` (m, n) are orthogonal to."""
    return jnp.linalg.qr(rows.T, mode="complete")[0][:, len(rows) :].T


def epipolar_rows(p: Array, q: Array) -> Array:
    """The rows of the linear equations for F, (m, 9)."""
    return (q[:, :, None] * p[:, None, :]).reshape(-1, 9)


def roots(coefficients: Array, steps: int = 40) -> Array:
    """All complex roots, highest power first, by Aberth and Ehrlich's iteration."""
    c = coefficients / coefficients[0]
    n = len(c) - 1
    radius = jnp.exp(jnp.mean(jnp.log(jnp.abs(c[1:]) + 1e-300) / jnp.arange(1, n + 1)))
    z = radius * jnp.exp(1j * (2 * jnp.pi * jnp.arange(n) / n + 0.4))
    slope = c[:-1] * jnp.arange(n, 0, -1)
    off_diagonal = ~jnp.eye(n, dtype=bool)

    def step(z: Array, _: None) -> tuple[Array, None]:
        newton = jnp.polyval(c, z) / jnp.polyval(slope, z)
        apart = jnp.where(off_diagonal, z[:, None] - z[None, :], 1)
        push = jnp.sum(jnp.where(off_diagonal, 1 / apart, 0), axis=1)
        moved = z - newton / (1 - newton * push)
        return jnp.where(jnp.isfinite(moved), moved, z), None

    return jax.lax.scan(step, z, None, length=steps)[0]


def polynomial_product(a: Array, b: Array) -> Array:
    """As `jnp.convolve`, by shifts: a convolution of this size is slow under `vmap`."""
    return sum(jnp.pad(a[k] * b, (k, len(a) - 1 - k)) for k in range(len(a)))


def eight_point(matches: Array) -> Array:
    """F of eight matches or more, by Hartley's normalised linear equations."""
    first, second = normalisation(matches[:, :2]), normalisation(matches[:, 2:4])
    p, q = both(matches)
    rows = epipolar_rows(p @ first.T, q @ second.T)
    linear = jnp.linalg.eigh(rows.T @ rows)[1][:, 0].reshape(3, 3)
    u, s, v = jnp.linalg.svd(linear)
    return unit(second.T @ (u * s.at[2].set(0)) @ v @ first)


def seven_point(matches: Array) -> Array:
    """The three F of seven matches, (3, 3, 3): real parts, where roots are complex."""
    first, second = normalisation(matches[:, :2]), normalisation(matches[:, 2:4])
    p, q = both(matches)
    a, b = null_space(epipolar_rows(p @ first.T, q @ second.T)).reshape(2, 3, 3)
    # det(a + z b) = det b z^3 + c2 z^2 + c1 z + det a, from its values at 1 and -1.
    plus, minus = jnp.linalg.det(a + b), jnp.linalg.det(a - b)
    at_a, at_b = jnp.linalg.det(a), jnp.linalg.det(b)
    c = jnp.array([at_b, (plus + minus) / 2 - at_a, (plus - minus) / 2 - at_b, at_a])
    z = jnp.real(roots(c))[:, None, None]
    return jax.vmap(unit)(second.T @ (a + z * b) @ first)


def _monomials() -> tuple[np.ndarray, int]:
    """The place of each product of three of (x, y, z, 1) in Nister's order of the twenty."""
    order = "xxx yyy xxy xyy xxz xx1 yyz yy1 xyz xy1 xzz xz1 x11 yzz yz1 y11 zzz zz1 z11 111"
    place = {"".join(sorted(word)): k for k, word in enumerate(order.split())}
    index = [place["".join(sorted(a + b + c))] for a in "xyz1" for b in "xyz1" for c in "xyz1"]
    return np.array(index), len(place)


MONOMIALS, N_MONOMIALS = _monomials()


def five_point(rays: Array) -> Array:
    """The ten E of five matches in calibrated coordinates, (10, 3, 3), of real parts of roots."""
    basis = null_space(epipolar_rows(*both(rays))).reshape(4, 3, 3)  # E = x X + y Y + z Z + W
    # 2 E E^T E - trace(E E^T) E = 0 and det E = 0, as forms of three matrices.
    square = jnp.einsum("aij,bkj->abik", basis, basis)
    trace = jnp.einsum("abii->ab", square)
    forms = 2 * jnp.einsum("abik,ckl->abcil", square, basis)
    forms = (forms - trace[:, :, None, None, None] * basis).reshape(64, 9)
    minors = jnp.einsum("ijk,aj,bk->abi", LEVI_CIVITA, basis[:, 1], basis[:, 2])
    determinant = jnp.einsum("abi,ci->abc", minors, basis[:, 0]).reshape(64, 1)
    cubics = jnp.zeros((N_MONOMIALS, 10)).at[MONOMIALS].add(jnp.hstack([forms, determinant]))
    reduced = jnp.linalg.solve(cubics[:10].T, cubics[10:].T)  # the first ten by the other ten

    def eliminated(upper: Array, lower: Array) -> tuple[Array, Array, Array]:
        """``upper - z lower`` as polynomials in z, highest first, times x, y, 1."""
        pad = jnp.zeros(1)

        def part(first: int, last: int) -> Array:
            high, low = upper[first:last], lower[first:last]
            return jnp.concatenate([pad, high]) - jnp.concatenate([low, pad])

        return part(0, 3), part(3, 6), part(6, 10)

    rows = [eliminated(reduced[k], reduced[k + 1]) for k in (4, 6, 8)]
    (a, b, c), (d, e, f), (g, h, i) = rows
    product = polynomial_product
    determinant = (
        product(a, product(e, i) - product(f, h))
        - product(b, product(d, i) - product(f, g))
        + product(c, product(d, h) - product(e, g))
    )

    def essential(z: Array) -> Array:
        at_z = jnp.array([[jnp.polyval(entry, z) for entry in row] for row in rows])
        normals = jnp.cross(at_z, jnp.roll(at_z, 1, axis=0))  # of which the longest is exact
        x, y, one = normals[jnp.argmax(jnp.sum(normals**2, axis=1))]
        return unit(jnp.tensordot(jnp.array([x, y, z * one, one]), basis, 1))

    return jax.vmap(essential)(jnp.real(roots(determinant)))


def homography_of(matches: Array, weights: Any = 1.0) -> Array:
    """H of four matches or more, by Hartley's normalised linear equations."""
    first, second = normalisation(matches[:, :2]), normalisation(matches[:, 2:4])
    p, q = both(matches)
    p, q = p @ first.T, q @ second.T
    rows = jnp.einsum("ijk,mj,ml->mikl", LEVI_CIVITA, q, p).reshape(-1, 3, 9)
    gram = jnp.einsum("mij,mik,m->jk", rows, rows, weights * jnp.ones(len(rows)))
    h = jnp.linalg.eigh(gram)[1][:, 0].reshape(3, 3)
    return unit(jnp.linalg.solve(second, h @ first))


def rotation_of(rays: Array, weights: Any = 1.0) -> Array:
    """The rotation of two matches or more in calibrated coordinates (Kabsch)."""
    p, q = (ray / jnp.linalg.norm(ray, axis=1, keepdims=True) for ray in both(rays))
    u, _, v = jnp.linalg.svd(q.T @ (jnp.reshape(weights, (-1, 1)) * p))
    return (u * jnp.array([1, 1, jnp.linalg.det(u @ v)])) @ v


# --- the manifolds ------------------------------------------------------------------------------


class FundamentalFrame(NamedTuple):
    """F = u diag(cos angle, sin angle, 0) v^T: rank 2 and norm 1 for any coordinates."""

    u: Array
    v: Array
    angle: Array

    dimension = 7
    sample_size = 7

    @staticmethod
    def candidates(sample: Array, camera: Camera | None) -> Array:
        """The models of a minimal sample."""
        return seven_point(sample)

    @staticmethod
    def fundamental(matrix: Array, camera: Camera | None) -> Array:
        """F of a model."""
        return matrix

    def at(self, p: Array) -> Array:
        """The matrix of coordinates p."""
        angle = self.angle + p[6]
        s = jnp.array([jnp.cos(angle), jnp.sin(angle), 0])
        return (self.u @ rotation(p[:3]) * s) @ (self.v @ rotation(p[3:6])).T

    @staticmethod
    def around(matrix: Array) -> FundamentalFrame:
        """Coordinates that are 0 at ``matrix``."""
        u, s, v = jnp.linalg.svd(matrix)
        turn = jnp.array([1, 1, jnp.linalg.det(u)]), jnp.array([1, 1, jnp.linalg.det(v)])
        return FundamentalFrame(u * turn[0], v.T * turn[1], jnp.arctan2(s[1], s[0]))


class EssentialFrame(NamedTuple):
    """E = [t]_x R / sqrt(2): two equal singular values and norm 1 for any coordinates."""

    r: Array
    t: Array
    across: Array  # (3, 2), orthogonal to t

    dimension = 5
    sample_size = 5

    @staticmethod
    def candidates(sample: Array, camera: Camera) -> Array:
        """The models of a minimal sample."""
        return five_point(camera.rays(sample))

    @staticmethod
    def fundamental(matrix: Array, camera: Camera) -> Array:
        """F of a model."""
        return camera.fundamental(matrix)

    def pose(self, p: Array) -> tuple[Array, Array]:
        """R and t, of length 1."""
        t = self.t + self.across @ p[3:]
        return self.r @ rotation(p[:3]), t / jnp.linalg.norm(t)

    def at(self, p: Array) -> Array:
        """The matrix of coordinates p."""
        r, t = self.pose(p)
        return cross(t) @ r / jnp.sqrt(2)

    @staticmethod
    def around(matrix: Array) -> EssentialFrame:
        """One of the four (R, t) of ``matrix``; which is all one to the Sampson errors."""
        return EssentialFrame.of(*poses(matrix)[0])

    @staticmethod
    def of(r: Array, t: Array) -> EssentialFrame:
        """Coordinates that are 0 at (R, t)."""
        return EssentialFrame(r, t, null_space(t[None]).T)


def poses(essential: Array) -> list[tuple[Array, Array]]:
    """The four (R, t)."""
    u, _, v = jnp.linalg.svd(essential)
    u, v = u * jnp.linalg.det(u), v * jnp.linalg.det(v)
    quarter = jnp.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    return [(u @ w @ v, s * u[:, 2]) for w in (quarter, quarter.T) for s in (1, -1)]


# --- the estimate -------------------------------------------------------------------------------


class Camera(NamedTuple):
    """Both calibrations' inverses."""

    first: Array
    second: Array

    def rays(self, matches: Array) -> Array:
        """The matches in calibrated coordinates."""
        p, q = both(matches)
        p, q = p @ self.first.T, q @ self.second.T
        return jnp.concatenate([p[:, :2] / p[:, 2:], q[:, :2] / q[:, 2:]], axis=1)

    def fundamental(self, essential: Array) -> Array:
        """F of E."""
        return self.second.T @ essential @ self.first


class TwoViews(NamedTuple):
    """An answer, and what it is worth."""

    matrix: Array  # F or E, of norm 1
    cost: Array  # minus the log-likelihood
    predictive_cost: Array  # likewise, each feature by the fit without it: the lower is right
    chance: Array  # (m,), that a match is right
    scale: Array  # of Student's distribution, pixels
    parameters: Array  # of the matrix, in `frame`
    covariance: Array  # theirs
    frame: Any
    tail: Array  # degrees of freedom, 1 Cauchy, many normal
    samples: Array  # drawn in the search

    @property
    def inliers(self) -> Array:
        """Which matches are more likely right than wrong."""
        return self.chance > 0.5

    def propagate(self, function: Any) -> tuple[Any, Any]:
        """The value of ``function(matrix)`` and its covariance."""

        def of(p: Array) -> Array:
            return jnp.ravel(function(self.frame.at(p)))

        jac = jax.jacfwd(of)(self.parameters)
        return of(self.parameters), jac @ self.covariance @ jac.T


class Errors(NamedTuple):
    """The distribution of (1)."""

    scale: Array
    right: Array  # share of matches
    reach: Array  # pixels, over which the errors of wrong matches are spread
    tail: Array  # degrees of freedom

    def likely(self, z: Array) -> Array:
        """Student's density over its value at 0."""
        return jnp.exp(-(self.tail + 1) / 2 * jnp.log1p(z / self.tail))

    def at_0(self) -> Array:
        """Student's density at 0."""
        of = jax.scipy.special.gammaln
        root = jnp.sqrt(self.tail * jnp.pi) * self.scale
        return jnp.exp(of((self.tail + 1) / 2) - of(self.tail / 2)) / root

    def odds(self) -> Array:
        """The c of (2)."""
        return (1 - self.right) / (self.right * self.reach * self.at_0())

    def loss(self, z: Array) -> Array:
        """(2)."""
        c = self.odds()
        return -2 * jnp.log((self.likely(z) + c) / (1 + c))

    def cost(self, r: Array) -> Array:
        """Minus the log-likelihood."""
        most = self.right * self.at_0() + (1 - self.right) / self.reach
        return jnp.sum(self.loss((r / self.scale) ** 2)) / 2 - len(r) * jnp.log(most)

    def chance(self, r: Array) -> Array:
        """That a match is right."""
        likely = self.likely((r / self.scale) ** 2)
        return likely / (likely + self.odds())

    def fitted(self, r: Array, dimension: int) -> Errors:
        """Of greatest likelihood (EM), where so many parameters were fitted to the matches."""

        def step(errors: Errors, _: None) -> tuple[Errors, None]:
            w = errors.chance(r)
            weight = (errors.tail + 1) / (errors.tail + (r / errors.scale) ** 2)
            free = jnp.maximum(jnp.sum(w) - dimension, 1)
            scale = jnp.maximum(jnp.sqrt(jnp.sum(w * weight * r**2) / free), PRECISION)
            return errors._replace(scale=scale, right=jnp.clip(jnp.mean(w), 0.01, 0.99)), None

        return jax.lax.scan(step, self, None, length=30)[0]


def fit_on_manifold(frame: Any, residuals: Any, errors: Errors) -> Any:
    """The robust fit of ``residuals(matrix)`` in the coordinates of a frame."""
    return ox.least_squares(
        lambda p: residuals(frame.at(p)),
        jnp.zeros(frame.dimension),
        loss=errors.loss,
        f_scale=errors.scale,
        x_scale="jac",
    )


def same_feature(matches: Array) -> Array:
    """(m, m): which matches are one feature, found again: within a pixel in both images."""
    apart = jnp.max(jnp.abs(matches[:, None] - matches[None]), axis=2)
    return apart < 1.0


def jackknife(frame: Any, residuals: Any, errors: Errors, twins: Array) -> tuple[Array, Array]:
    """Each residual as the fit without that feature predicts it, and the covariance at 0.

    By one Newton step from the fit to all.
    """

    def at(p: Array) -> Array:
        return residuals(frame.at(p))

    p = jnp.zeros(frame.dimension)
    r, jac = at(p), jax.jacfwd(at)(p)
    unit_of = jnp.linalg.norm(jac, axis=0)
    jac = jac / unit_of
    z = (r / errors.scale) ** 2
    slope = jax.vmap(jax.grad(errors.loss))
    bend = jax.jvp(slope, (z,), (jnp.ones_like(z),))[1]
    psi, dpsi = r * slope(z), slope(z) + 2 * z * bend
    each = jac[:, :, None] * jac[:, None, :] * dpsi[:, None, None]
    hessian = jnp.sum(each, axis=0)
    without = hessian - jnp.einsum("ij,jkl->ikl", twins * 1.0, each)
    step = jnp.linalg.solve(without, (twins @ (psi[:, None] * jac))[:, :, None])[:, :, 0]
    among = jnp.sum(twins, axis=1)
    spread = jnp.einsum("ij,ik,i->jk", step, step, 1 / among) / (unit_of[:, None] * unit_of)
    return r + jnp.sum(jac * step, axis=1), spread


def truncated(r: Array, threshold: Array) -> Array:
    """The MSAC score."""
    return jnp.sum(jnp.minimum((r / threshold) ** 2, 1))


@ft.partial(jax.jit, static_argnames="frame")
def search(
    frame: Any, matches: Array, keys: Array, thresholds: Array, camera: Camera | None
) -> ox.ConsensusResult:
    """Step 1: as many searches, side by side, as there are keys and thresholds."""

    def residuals(matrix: Array, matches: Array) -> Array:
        return sampson(frame.fundamental(matrix, camera), matches)

    def one(key: Array, threshold: Array) -> ox.ConsensusResult:
        def best_root(sample: Array) -> Array:
            models = frame.candidates(sample, camera)
            scores = jax.vmap(lambda model: truncated(residuals(model, matches), threshold))(models)
            return models[jnp.argmin(jnp.where(jnp.isnan(scores), jnp.inf, scores))]

        return ox.sample_consensus(
            best_root,
            residuals,
            matches,
            sample_size=frame.sample_size,
            threshold=threshold,
            batch=BATCH,
            refine=False,
            rng=key,
        )

    return jax.vmap(one)(keys, thresholds)


@ft.partial(jax.jit, static_argnames="frame")
def improved(
    frame: Any, matches: Array, matrices: Array, errors: Errors, camera: Camera | None
) -> tuple[Array, Errors]:
    """Step 2, one round, of several sets of matches, each with a matrix and errors."""

    def one(matches: Array, matrix: Array, errors: Errors) -> tuple[Array, Errors]:
        def residuals(matrix: Array) -> Array:
            return sampson(frame.fundamental(matrix, camera), matches)

        errors = errors.fitted(residuals(matrix), frame.dimension)
        local = frame.around(matrix)
        return local.at(fit_on_manifold(local, residuals, errors).x), errors

    return jax.vmap(one)(matches, matrices, errors)


@ft.partial(jax.jit, static_argnames="frame")
def judged(
    frame: Any, matches: Array, matrices: Array, errors: Errors, samples: Array,
    camera: Camera | None,
) -> TwoViews:  # fmt: skip
    """Step 3, of the matrices and errors that were fitted."""
    twins = same_feature(matches)

    def residuals(matrix: Array) -> Array:
        return sampson(frame.fundamental(matrix, camera), matches)

    def answer(matrix: Array, errors: Errors, samples: Array) -> TwoViews:
        r, local = residuals(matrix), frame.around(matrix)
        predicted, spread = jackknife(local, residuals, errors, twins)
        return TwoViews(
            matrix, errors.cost(r), errors.cost(predicted), errors.chance(r), errors.scale,
            jnp.zeros(frame.dimension), spread, local, errors.tail, samples,
        )  # fmt: skip

    answers = jax.vmap(answer)(matrices, errors, samples)
    costs = jnp.where(jnp.isnan(answers.predictive_cost), jnp.inf, answers.predictive_cost)
    return jax.tree.map(lambda leaf: leaf[jnp.argmin(costs)], answers)


def estimate(
    frame: Any, matches: Array, key: Array, threshold: Any, camera: Camera | None = None
) -> TwoViews:
    """Steps 1 to 3."""
    thresholds = jnp.asarray(threshold * THRESHOLDS)
    found = search(frame, matches, jax.random.split(key, len(thresholds)), thresholds, camera)
    start, tail = (v.ravel() for v in np.meshgrid(np.arange(len(THRESHOLDS)), TAILS))
    reach = jnp.mean(jnp.ptp(matches, axis=0))
    matrices, scale = found.x[start], thresholds[start] / 2
    # All of one dtype, none of weak type: the rounds are one compiled program.
    right, reach, tail = (jnp.broadcast_to(v, scale.shape) for v in (0.5, reach, tail))
    errors = jax.tree.map(lambda v: v.astype(scale.dtype), Errors(scale, right, reach, tail))
    sets = jnp.broadcast_to(matches, (len(start), *matches.shape))
    for _ in range(ROUNDS):
        matrices, errors = improved(frame, sets, matrices, errors, camera)
    return judged(frame, matches, matrices, errors, found.n_samples[start], camera)


def fundamental(matches: Array, key: Array, threshold: Any = 1.0) -> TwoViews:
    """F of (m, 4) matches; the threshold, in pixels, is where the searches begin."""
    return estimate(FundamentalFrame, matches, key, threshold)


def essential(matches: Array, camera: Camera, key: Array, threshold: Any = 1.0) -> TwoViews:
    """E of (m, 4) matches, in pixels, of calibrated cameras."""
    return estimate(EssentialFrame, matches, key, threshold, camera)


# --- what an answer says ------------------------------------------------------------------------


@jax.jit
def epipole(fundamental: Array) -> Array:
    """Where the first image sees the second camera, pixels; of F^T the other way round."""
    normals = jnp.cross(fundamental, jnp.roll(fundamental, 1, axis=0))
    e = normals[jnp.argmax(jnp.sum(normals**2, axis=1))]
    return e[:2] / e[2]


class Pose(NamedTuple):
    """The second camera: x' = R x + t, with t of length 1, since no match tells its length."""

    r: Array
    t: Array
    rotation_error: Array  # degrees, standard deviation along the worst axis
    direction_error: Array  # of t, likewise
    in_front: Array  # the share of the right matches that both cameras see in front of them


@jax.jit
def pose(answer: TwoViews, matches: Array, camera: Camera) -> Pose:
    """Of the four poses of E the one that has most points in front of both cameras."""
    p, q = both(camera.rays(matches))

    def share_in_front(r: Array, t: Array) -> Array:
        turned = p @ r.T
        normal = jnp.cross(q, turned)
        depth = -jnp.sum(normal * jnp.cross(q, t), axis=1) / jnp.sum(normal**2, axis=1)
        second = jnp.sum((depth[:, None] * turned + t) * q, axis=1)
        right = answer.inliers & (depth > 0) & (second > 0)
        return jnp.sum(right) / jnp.sum(answer.inliers)

    r, t = (jnp.stack(parts) for parts in zip(*poses(answer.matrix), strict=True))
    shares = jax.vmap(share_in_front)(r, t)
    best = jnp.argmax(shares)
    frame = EssentialFrame.of(r[best], t[best])
    # The same small changes of E in the coordinates around this pose.
    old = jax.jacfwd(lambda p: jnp.ravel(answer.frame.at(p)))(answer.parameters)
    new = jax.jacfwd(lambda p: jnp.ravel(frame.at(p)))(jnp.zeros(frame.dimension))
    change = jnp.linalg.pinv(new) @ old
    spread = change @ answer.covariance @ change.T
    errors = [
        jnp.degrees(jnp.sqrt(jnp.linalg.eigvalsh(c)[-1])) for c in (spread[:3, :3], spread[3:, 3:])
    ]
    return Pose(r[best], t[best], *errors, shares[best])


@jax.jit
def angle(a: Array, b: Array) -> Array:
    """Degrees between two directions, or of the rotation between two rotations."""
    if a.ndim == 1:
        return jnp.degrees(jnp.arctan2(jnp.linalg.norm(jnp.cross(a, b)), a @ b))
    return jnp.degrees(2 * jnp.arcsin(jnp.minimum(jnp.linalg.norm(a - b) / jnp.sqrt(8), 1)))


def gric(squares: Array, among: Array, codimension: int, parameters: int) -> Array:
    """Torr's criterion, of squared errors in units of their variance: the lowest is right."""
    fit = jnp.minimum(squares, 2 * codimension) + jnp.log(4.0) * (4 - codimension)
    return jnp.sum(jnp.where(among, fit, 0)) + jnp.log(4.0 * jnp.sum(among)) * parameters


@jax.jit
def kind_of_scene(
    answer: TwoViews, matches: Array, key: Array, camera: Camera | None = None
) -> dict[str, Array]:
    """GRIC of a general scene, of a plane and, if the camera is known, of a rotation only.

    Of the inliers of ``answer``. Where "plane" is lowest they leave F undetermined in two
    directions, and E may have two answers. Where "rotation" is lowest they tell nothing of t.
    """
    among = answer.inliers
    k1, k2 = (jnp.eye(3), jnp.eye(3)) if camera is None else (camera.first, camera.second)
    r = sampson(k2.T @ answer.matrix @ k1, matches)
    sigma = 1.4826 * jnp.nanmedian(jnp.where(among, jnp.abs(r), jnp.nan))  # if it were normal

    def best(solve: Any, size: int) -> Array:
        """The squared errors of the best H that ``solve(matches, weights)`` gives."""
        h = ox.sample_consensus(
            solve, homography_error, matches, sample_size=size, threshold=3 * sigma,
            refine=False, rng=key,
        ).x  # fmt: skip

        def squares(h: Array) -> Array:
            return jnp.sum(homography_error(h, matches) ** 2, axis=1) / sigma**2

        def again(_: int, h: Array) -> Array:
            return solve(matches, among * jnp.exp(-squares(h) / 4))

        return squares(jax.lax.fori_loop(0, 3, again, h))

    def turned(matches: Array, weights: Any = 1.0) -> Array:
        return jnp.linalg.solve(k2, rotation_of(camera.rays(matches), weights) @ k1)

    criteria = {
        "general": gric((r / sigma) ** 2, among, 1, len(answer.parameters)),
        "plane": gric(best(homography_of, 4), among, 2, 8),
    }
    if camera is not None:
        criteria["rotation"] = gric(best(turned, 2), among, 2, 3)
    return criteria


# --- simulated matches --------------------------------------------------------------------------


class Simulated(NamedTuple):
    """Matches of two cameras whose pose is known."""

    matches: Array
    right: Array
    camera: Camera
    r: Array
    t: Array

    @property
    def essential(self) -> Array:
        """Of norm 1."""
        return unit(cross(self.t) @ self.r)


CALIBRATION = np.array([[1000.0, 0, 500], [0, 1000, 400], [0, 0, 1]])


def simulate(
    key: Array, count: int = 231, kind: str = "general", noise: Any = 0.5, wrong: Any = 0.3
) -> Simulated:
    """Of a "general" scene, of a "plane", or after a "rotation" only; about 1000 x 800 pixels."""
    keys = jax.random.split(key, 6)
    x, y = jax.random.uniform(keys[0], (2, count), minval=-2.0, maxval=2.0)
    depth = 6 + 0.3 * x + 0.5 * y
    if kind != "plane":
        depth = depth + jax.random.uniform(keys[1], (count,), minval=-1.5, maxval=1.5)
    points = jnp.stack([x, y, depth], axis=1)
    r = rotation(0.1 * jax.random.normal(keys[2], (3,)))
    t = jnp.array([1.0, 0.2, 0.3])
    second = points @ r.T + (0 if kind == "rotation" else t)
    images = [(v / v[:, 2:] @ CALIBRATION.T)[:, :2] for v in (points, second)]
    matches = jnp.concatenate(images, axis=1)
    matches = matches + noise * jax.random.normal(keys[3], matches.shape)
    right = jnp.arange(count) >= wrong * count
    anywhere = jax.random.uniform(keys[4], (count, 2)) * jnp.array([1000.0, 800.0])
    matches = matches.at[:, 2:].set(jnp.where(right[:, None], matches[:, 2:], anywhere))
    inverse = jnp.linalg.inv(CALIBRATION)
    return Simulated(matches, right, Camera(inverse, inverse), r, t / jnp.linalg.norm(t))
