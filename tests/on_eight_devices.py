"""Solves on eight simulated devices: what `test_sharding` runs in a process of its own.

Prints, as JSON, for each case the largest difference from the same without a mesh, and how the
result is sharded. It is a program, since the number of devices is fixed when JAX starts.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optx_lite as ox

P = PartitionSpec
T = np.linspace(0.0, 3.0, 16)
Y = 2 * np.exp(-1.3 * T) + 0.5 + 0.1 * np.sin(9 * T)
P0 = np.ones(3)
LANES = Y + 0.05 * np.random.default_rng(0).normal(size=(16, 16))
MANY = Y + 0.05 * np.random.default_rng(1).normal(size=(2400, 16))


def model(p, t, y):
    return p[0] * jnp.exp(-p[1] * t) + p[2] - y


def fit(y, t=T, **settings):
    return ox.least_squares(model, P0, args=(t, y), **settings)


def cost(p, y, t=T):
    return jnp.sum(model(p, t, y) ** 2)


BOX = {"bounds": (0.0, np.array([5.0, 1.25, 5.0]))}
ONE_LANE = {  # a solve of one lane, and of how many
    "trf": (lambda y: fit(y), LANES),
    "trf, bounds": (lambda y: fit(y, **BOX).x, LANES),
    "dogbox, 2-point": (lambda y: fit(y, jac="2-point", method="dogbox", **BOX).x, LANES),
    "lm, loss": (lambda y: fit(y, method="lm", loss="cauchy", f_scale=0.1).x, LANES),
    "chunks": (lambda y: fit(y).x, MANY),
    "gradient": (jax.grad(lambda y: fit(y, **BOX).x[0]), LANES),
    "minimize": (lambda y: ox.minimize(cost, P0, args=(y,)).x, LANES),
    "minimize, bounds": (lambda y: ox.minimize(cost, P0, (y,), bounds=[(0, 5)] * 3).x, LANES),
    "find_root": (
        lambda y: ox.elementwise.find_root(lambda x: x**3 - y[0], (-3.0, 3.0)).x, LANES,
    ),
}  # fmt: skip
ONE_SOLVE = {  # of data sharded over m
    "trf": lambda t, y: fit(y, t),
    "lm, closure": lambda t, y: ox.least_squares(lambda p: model(p, t, y), P0, method="lm").x,
    "gradient": jax.grad(lambda t, y: fit(y, t).x[0], argnums=1),
    "minimize": lambda t, y: ox.minimize(cost, P0, args=(y, t)).x,
}


def mesh_of(kind):
    return jax.make_mesh((8,), ("d",), axis_types=(kind,))


def compare(got, expected):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0)) for a, b in pairs)


def report(got, expected):
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(got)]
    sharded = [bool(spec) and spec[0] == "d" for spec in specs]
    return {"difference": compare(got, expected), "sharded": sharded}


def in_shard_map(one, data):
    whole = jax.shard_map(
        jax.vmap(one), mesh=mesh_of(AxisType.Auto), in_specs=P("d"), out_specs=P("d")
    )
    return jax.jit(whole)(data)


def single_in_shard_map(one, data):
    on_device = lambda rows: jax.tree.map(lambda leaf: leaf[None], one(rows[0]))
    whole = jax.shard_map(on_device, mesh=mesh_of(AxisType.Auto), in_specs=P("d"), out_specs=P("d"))
    return jax.jit(whole)(data)


def placed(kind):
    def run(fun, *data):
        mesh = mesh_of(kind)
        with jax.set_mesh(mesh):
            return jax.jit(fun)(*(jax.device_put(a, NamedSharding(mesh, P("d"))) for a in data))

    return run


def outside(fun, data):
    """Without `jax.set_mesh`: the mesh stands in the types alone."""
    return jax.jit(fun)(jax.device_put(data, NamedSharding(mesh_of(AxisType.Explicit), P("d"))))


def roots(data):
    """Of an array of equations, sharded as the data."""
    equation = lambda x, c: x**3 - c
    return ox.elementwise.find_root(equation, (-3.0, 3.0), args=(data[:, 0],)).x


OUTSIDE = {
    "gradient": jax.vmap(ONE_LANE["gradient"][0]),
    "minimize, gradient": jax.vmap(jax.grad(lambda y: ox.minimize(cost, P0, args=(y,)).x[0])),
    "find_root": roots,
    "find_root, gradient": jax.grad(lambda data: jnp.sum(roots(data))),
}


def same_on_all(data):
    """A sum over all devices: x stays the same on each, and its type says so."""
    total = lambda rows: ox.minimize(lambda p: lax.psum(cost(p, rows[0]), "d"), P0).x
    mesh = mesh_of(AxisType.Auto)
    return jax.jit(jax.shard_map(total, mesh=mesh, in_specs=P("d"), out_specs=P()))(data)


def refusals(data):
    """What the derivative of such a sum says, with JAX's checks of varying axes and without."""

    def solution(s, rows):
        return ox.minimize(lambda p: lax.psum(cost(p, s * rows[0]), "d"), P0).x[0]

    def refusal(checks):
        on_devices = jax.shard_map(
            jax.grad(solution), mesh=mesh_of(AxisType.Auto), in_specs=(P(), P("d")),
            out_specs=P(), check_vma=checks,
        )  # fmt: skip
        try:
            jax.eval_shape(on_devices, 1.0, data)
        except NotImplementedError as err:
            return str(err)
        return ""

    return [refusal(True), refusal(False)]


def waits(data):
    """Whether devices exchange anything while they solve."""
    mesh = mesh_of(AxisType.Auto)
    data = jax.device_put(data, NamedSharding(mesh, P("d")))
    text = jax.jit(jax.vmap(lambda y: fit(y).x)).lower(data).compile().as_text()
    return any(word in text for word in ("all-reduce", "all-gather", "all-to-all"))


def main():
    out = {}
    for name, (one, data) in ONE_LANE.items():
        expected = jax.jit(jax.vmap(one))(data)
        out[f"shard_map: {name}"] = report(in_shard_map(one, data), expected)
        for kind in (AxisType.Explicit, AxisType.Auto):
            got = placed(kind)(jax.vmap(one), data)
            out[f"{kind.name}: {name}"] = report(got, expected)
    for name in ("trf, bounds", "minimize"):
        one = ONE_LANE[name][0]
        expected = jax.jit(jax.vmap(one))(LANES[:8])
        out[f"shard_map, single: {name}"] = report(single_in_shard_map(one, LANES[:8]), expected)
    for name, fun in ONE_SOLVE.items():
        expected = jax.jit(fun)(T, Y)
        for kind in (AxisType.Explicit, AxisType.Auto):
            out[f"{kind.name}, m: {name}"] = report(placed(kind)(fun, T, Y), expected)
    for name, fun in OUTSIDE.items():
        out[f"outside: {name}"] = report(outside(fun, LANES), jax.jit(fun)(LANES))
    total = lambda p: sum(cost(p, y) for y in LANES[:8])
    out["same on all"] = {"difference": compare(same_on_all(LANES[:8]), ox.minimize(total, P0).x)}
    out["refusals"] = refusals(LANES[:8])
    out["waits"] = waits(MANY)
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
