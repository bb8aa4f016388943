"""Large least-squares problems: bundle adjustment, a pose graph, Broyden, an obstacle.

Bundle adjustment is that of S. Agarwal, N. Snavely, S. M. Seitz and R. Szeliski, "Bundle adjustment
in the large" (2010); `bundle` reads its files, `simulated_bundle` makes a problem of their shape. The
pose graph is one of the plane, in the format of g2o.

>>> problem = simulated_bundle(cameras=4, points=30)
>>> problem.x0.shape, problem.residuals(problem.x0).shape
((126,), (240,))
"""

from __future__ import annotations

import bz2
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

OF_CAMERA, OF_POINT = 9, 3


@dataclass(frozen=True, eq=False)
class Bundle:
    """Cameras that see points: x has 9 numbers a camera, then 3 a point."""

    camera: np.ndarray  # (O,) of each observation
    point: np.ndarray  # (O,)
    seen: np.ndarray  # (O, 2) in pixels
    x0: np.ndarray
    cameras: int

    def residuals(self, x, seen=None):
        """Where points appear less where they were seen, (2 O,)."""
        seen = self.seen if seen is None else seen
        cameras = x[: OF_CAMERA * self.cameras].reshape(-1, OF_CAMERA)
        points = x[OF_CAMERA * self.cameras :].reshape(-1, OF_POINT)
        u, v = project(cameras[self.camera].T, points[self.point].T)
        return (jnp.stack([u, v], 1) - seen).ravel()

    @property
    def pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the Jacobian's entries."""
        count = self.camera.size
        rows = np.arange(2 * count).reshape(count, 2, 1)
        of_camera = OF_CAMERA * self.camera[:, None] + np.arange(OF_CAMERA)
        of_point = OF_POINT * self.point[:, None] + np.arange(OF_POINT)
        columns = np.concatenate([of_camera, OF_CAMERA * self.cameras + of_point], 1)[:, None]
        shape = (count, 2, OF_CAMERA + OF_POINT)
        return np.broadcast_to(rows, shape).ravel(), np.broadcast_to(columns, shape).ravel()

    def astype(self, dtype) -> Bundle:
        """In another precision."""
        return replace(self, x0=self.x0.astype(dtype), seen=self.seen.astype(dtype))


def project(camera, point):
    """Pixels (u, v) of points, component by component: each a vector over the observations."""
    w0, w1, w2, t0, t1, t2, focal, k1, k2 = camera
    x, y, z = point
    square = w0 * w0 + w1 * w1 + w2 * w2  # Rodrigues: of the angle of rotation
    turns = square > 0
    safe = jnp.where(turns, square, 1)
    angle = jnp.sqrt(safe)
    cos = jnp.where(turns, jnp.cos(angle), 1)
    sinc = jnp.where(turns, jnp.sin(angle) / angle, 1)
    along = (w0 * x + w1 * y + w2 * z) * jnp.where(turns, (1 - jnp.cos(angle)) / safe, 0.5)
    a = x * cos + (w1 * z - w2 * y) * sinc + w0 * along + t0
    b = y * cos + (w2 * x - w0 * z) * sinc + w1 * along + t1
    depth = z * cos + (w0 * y - w1 * x) * sinc + w2 * along + t2
    a, b = -a / depth, -b / depth
    r2 = a * a + b * b
    scale = focal * (1 + r2 * (k1 + k2 * r2))
    return scale * a, scale * b


def bundle(path: str | Path) -> Bundle:
    """Read a file of "Bundle adjustment in the large", packed by bzip2 or not."""
    path = Path(path)
    text = bz2.decompress(path.read_bytes()).decode() if path.suffix == ".bz2" else path.read_text()
    numbers = np.array(text.split(), float)
    cameras, _, count = (int(k) for k in numbers[:3])
    table = numbers[3 : 3 + 4 * count].reshape(count, 4)
    camera, point = table[:, :2].astype(np.int32).T
    return Bundle(camera, point, table[:, 2:].copy(), numbers[3 + 4 * count :].copy(), cameras)


def simulated_bundle(cameras=16, points=400, sees=1.0, noise=0.5, start=0.02, seed=0) -> Bundle:
    """Cameras on an arc around a cloud of points, seen with noise of so many pixels.

    ``sees`` is the part of the points that a camera sees, ``start`` by how much x0 is wrong.
    """
    rng = np.random.default_rng(seed)
    angles = np.linspace(-0.6, 0.6, cameras)
    views = np.zeros((cameras, OF_CAMERA))
    views[:, 1], views[:, 5] = angles, -8.0
    views[:, :3] += 0.02 * rng.normal(size=(cameras, 3))
    views[:, 6:] = 500.0, -0.05, 0.01
    cloud = rng.normal(size=(points, OF_POINT))
    camera, point = np.nonzero(rng.uniform(size=(cameras, points)) < sees)
    camera, point = camera.astype(np.int32), point.astype(np.int32)
    truth = np.concatenate([views.ravel(), cloud.ravel()])
    problem = Bundle(camera, point, np.zeros((camera.size, 2)), truth, cameras)
    seen = np.asarray(problem.residuals(jnp.asarray(truth))).reshape(-1, 2)
    seen = seen + noise * rng.normal(size=seen.shape)
    size = np.concatenate([np.tile([0.1] * 3 + [1.0] * 3 + [100.0, 0.1, 0.1], cameras),
                           np.ones(OF_POINT * points)])  # fmt: skip
    x0 = truth + start * size * rng.normal(size=truth.size)
    return Bundle(camera, point, seen.astype(float), x0, cameras)


@dataclass(frozen=True, eq=False)
class PoseGraph:
    """Poses (x, y, theta), and what was measured between pairs of them."""

    i: np.ndarray  # (E,)
    j: np.ndarray
    measured: np.ndarray  # (E, 3)
    root: np.ndarray  # (E, 3, 3) upper triangle R, information = R^T R
    x0: np.ndarray  # (3 (N - 1),): the first pose stays
    first: np.ndarray  # (3,)

    def residuals(self, x):
        """R (measured difference - difference), (3 E,)."""
        poses = jnp.concatenate([self.first.astype(x.dtype), x]).reshape(-1, 3)
        a, b = poses[self.i], poses[self.j]
        cos, sin = jnp.cos(a[:, 2]), jnp.sin(a[:, 2])
        dx, dy = b[:, 0] - a[:, 0], b[:, 1] - a[:, 1]
        # The measured pose's frame: inverse(measured) * (inverse(a) * b), as g2o has it.
        u, v = cos * dx + sin * dy - self.measured[:, 0], cos * dy - sin * dx - self.measured[:, 1]
        own = self.measured[:, 2]
        e = jnp.stack([
            jnp.cos(own) * u + jnp.sin(own) * v,
            jnp.cos(own) * v - jnp.sin(own) * u,
            wrapped(b[:, 2] - a[:, 2] - own),
        ], 1)  # fmt: skip
        return jnp.sum(self.root * e[:, None, :], 2).ravel()


def wrapped(angle):
    """Into (-pi, pi]."""
    return jnp.arctan2(jnp.sin(angle), jnp.cos(angle))


def pose_graph(path: str | Path) -> PoseGraph:
    """Read VERTEX_SE2 and EDGE_SE2 of a file of g2o."""
    vertices, edges = [], []
    for line in Path(path).read_text().splitlines():
        kind, *numbers = line.split()
        if kind == "VERTEX_SE2":
            vertices.append([float(k) for k in numbers])
        elif kind == "EDGE_SE2":
            edges.append([float(k) for k in numbers])
    poses = np.array(sorted(vertices))[:, 1:]
    table = np.array(edges)
    information = np.empty((len(table), 3, 3))
    upper = np.triu_indices(3)
    information[:, upper[0], upper[1]] = information[:, upper[1], upper[0]] = table[:, 5:]
    root = np.swapaxes(np.linalg.cholesky(information), 1, 2)
    i, j = table[:, :2].astype(np.int32).T
    return PoseGraph(i, j, table[:, 2:5], root, poses[1:].ravel(), poses[0])


def simulated_pose_graph(count=400, seed=0) -> PoseGraph:
    """A walk on a grid that meets its own way again; the start is the sum of the odometry."""
    rng = np.random.default_rng(seed)
    turn = rng.choice([0, 0, 0, 0.5 * np.pi, -0.5 * np.pi], size=count)
    theta = np.cumsum(turn)
    step = np.stack([np.cos(theta), np.sin(theta)], 1).round()
    place = np.concatenate([np.zeros((1, 2)), np.cumsum(step, 0)[:-1]])
    poses = np.concatenate([place, theta[:, None]], 1)
    pairs = [(k, k + 1) for k in range(count - 1)]
    visited: dict[tuple, int] = {}
    for k, at in enumerate(map(tuple, place.round().astype(int))):
        if at in visited and k - visited[at] > 1:
            pairs.append((visited[at], k))
        visited[at] = k
    i, j = np.array(pairs, np.int32).T
    cos, sin = np.cos(theta[i]), np.sin(theta[i])
    dx, dy = (place[j] - place[i]).T
    measured = np.stack([cos * dx + sin * dy, cos * dy - sin * dx, theta[j] - theta[i]], 1)
    measured = measured + 0.02 * rng.normal(size=measured.shape)
    walk = [poses[0]]
    for u, v, turned in measured[: count - 1]:
        x, y, t = walk[-1]
        step_ = (np.cos(t) * u - np.sin(t) * v, np.sin(t) * u + np.cos(t) * v)
        walk.append(np.array([x + step_[0], y + step_[1], t + turned]))
    root = np.broadcast_to(50 * np.eye(3), (i.size, 3, 3))
    return PoseGraph(i, j, measured, root, np.array(walk[1:]).ravel(), poses[0])


def broyden(x):
    """Broyden's tridiagonal system."""
    below, above = jnp.pad(x[:-1], (1, 0)), jnp.pad(x[1:], (0, 1))
    return (3 - x) * x - below - 2 * above + 1


def obstacle(side: int, height=1.0):
    """What lies under a membrane on the unit square: two hills, on side^2 points inside.

    ``height`` is that of the first, as a part of 0.5.

    The membrane is the function of least area, to first order, above them and 0 at the edge. As
    least squares: half the sum of squares of its differences, with the hills as lower bounds.
    """
    t = jnp.arange(1, side + 1) / (side + 1)
    x, y = jnp.meshgrid(t, t, indexing="ij")
    hills = 0.5 * height * jnp.exp(-40 * ((x - 0.35) ** 2 + (y - 0.4) ** 2))
    hills = hills + 0.35 * jnp.exp(-60 * ((x - 0.7) ** 2 + (y - 0.65) ** 2))
    return (hills - 0.1).ravel()


def differences(u):
    """Of neighbours on the grid, 0 beyond its edge: half their sum of squares is the energy."""
    side = round(u.shape[0] ** 0.5)
    grid = jnp.pad(u.reshape(side, side), 1)
    return jnp.concatenate([
        jnp.diff(grid, axis=0)[:, 1:-1].ravel(), jnp.diff(grid, axis=1)[1:-1, :].ravel(),
    ])  # fmt: skip


def laplace_pattern(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the entries of the Jacobian of `differences`."""
    number = np.pad(np.arange(side * side).reshape(side, side), 1, constant_values=-1)
    pairs = [
        (number[:-1, 1:-1].ravel(), number[1:, 1:-1].ravel()),
        (number[1:-1, :-1].ravel(), number[1:-1, 1:].ravel()),
    ]
    columns = np.stack([np.concatenate(part) for part in zip(*pairs, strict=True)], 1)
    rows = np.broadcast_to(np.arange(len(columns))[:, None], columns.shape)
    return rows[columns >= 0], columns[columns >= 0]
