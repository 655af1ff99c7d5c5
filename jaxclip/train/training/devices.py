"""Trains a run on several devices: the strategies of `--parallel`, and all that differs in them.

Every strategy trains the same run, with an equal share of each batch on each device. They differ in
how kernels are stored, and in who inserts the communication:

                   kernels replicated   kernels sharded
    the compiler   jit                  fsdp
    this module    pmap                 shard_map

Vectors and images are small and always replicated. Between two epochs a state holds global arrays;
of several processes (`processes`), each holds its own shards of them.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.train.config.presets import Config
from jaxclip.train.errors import UserError

Tree = Any
AXIS = "devices"
SHARDED = ("fsdp", "shard_map")
MANUAL = ("pmap", "shard_map")


class Strategy(NamedTuple):
    """One way of training one network on several devices.

    A device's step calls `gather`, `mean`, `average_gradients` and `device_key`, which do nothing
    if the compiler inserts the communication.

    Attributes:
      name: a value of `--parallel`.
      mesh: all devices along `AXIS`, None for one device.
      params: the `PartitionSpec` of each parameter, None for one device.
    """

    name: str = "none"
    mesh: Mesh | None = None
    params: Tree = None

    def gather(self, params: Tree) -> Tree:
        """Returns the whole parameters; the derivative sums each shard's gradient over devices."""
        if self.name != "shard_map":
            return params

        def gathered(x: jax.Array, spec: P) -> jax.Array:
            if AXIS not in tuple(spec):
                return x
            return jax.lax.all_gather(x, AXIS, axis=tuple(spec).index(AXIS), tiled=True)

        return jax.tree.map(gathered, params, self.params)

    def mean(self, scores: Tree) -> Tree:
        """Returns the mean over devices of scores that each computed from its examples."""
        if self.name not in MANUAL:
            return scores
        # One psum a score: JAX before 0.9 cannot transpose a psum that is differentiated in part.
        return jax.tree.map(lambda score: jax.lax.pmean(score, AXIS), scores)

    def average_gradients(self, grads: Tree) -> Tree:
        """Returns the gradients of the mean loss, given the result of `jax.grad` on a device.

        Under `pmap` that result is the gradient of the device's loss. In `shard_map` JAX knows that
        the parameters are replicated or gathered, and has already summed.
        """
        return jax.lax.pmean(grads, AXIS) if self.name == "pmap" else grads

    def device_key(self, key: jax.Array) -> jax.Array:
        """Returns a random key for this device's examples."""
        return jax.random.fold_in(key, jax.lax.axis_index(AXIS)) if self.name in MANUAL else key

    def state_specs(self, init: Callable[[Tree], Tree], params: Tree) -> Tree:
        """Returns the `PartitionSpec` of each array of a state.

        An axis is sharded if it is shorter in the state of one device's shards.

        Args:
          init: the state as a function of the parameters.
          params: the parameters.
        """
        mesh = self.mesh

        def shard(x: jax.Array, spec: P) -> jax.ShapeDtypeStruct:
            shape = x.shape if mesh is None else NamedSharding(mesh, spec).shard_shape(x.shape)
            return jax.ShapeDtypeStruct(shape, x.dtype)

        def spec(whole: jax.ShapeDtypeStruct, shard: jax.ShapeDtypeStruct) -> P:
            lengths = zip(whole.shape, shard.shape, strict=True)
            return P(*(AXIS if n != m else None for n, m in lengths))

        shards = params if mesh is None else jax.tree.map(shard, params, self.params)
        return jax.tree.map(spec, jax.eval_shape(init, params), jax.eval_shape(init, shards))

    def place(self, tree: Tree, specs: Tree = None) -> Tree:
        """Puts arrays that every process has onto the devices; replicates them without `specs`."""
        mesh = self.mesh
        if mesh is None:
            return jax.device_put(tree)

        def put(x: Any, spec: P) -> jax.Array:
            host, sharding = np.asarray(x), NamedSharding(mesh, spec)
            return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

        specs = jax.tree.map(lambda _: P(), tree) if specs is None else specs
        return jax.tree.map(put, tree, specs)

    def shard_examples(self, tree: Tree) -> Tree:
        """Puts arrays onto the devices, sharded by examples if their number allows equal shares."""
        mesh = self.mesh
        if mesh is None:
            return jax.device_put(tree)
        specs = jax.tree.map(lambda x: P(AXIS) if len(x) % mesh.size == 0 else P(), tree)
        return self.place(tree, specs)

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles a function of global arrays; every process gets its whole result."""
        if self.mesh is None:
            return jax.jit(function)
        return jax.jit(function, out_shardings=NamedSharding(self.mesh, P()))

    def compile_epoch(self, scan: Callable[..., Any], specs: Tree) -> Callable[..., Any]:
        """Compiles an epoch; all strategies but `pmap` donate the state's buffers.

        Args:
          scan: `(state, images, labels, batches, numbers, bounds) -> (state, telemetry)` on one
            device.
          specs: the `PartitionSpec` of each array of the state.
        """
        mesh = self.mesh
        if mesh is None:
            return jax.jit(scan, donate_argnums=0)
        if self.name == "pmap":
            return _pmap_epoch(scan, mesh)
        batch = P(None, AXIS)
        if self.name == "shard_map":
            inputs = (specs, P(), P(), batch, P(), P())
            scan = jax.shard_map(scan, mesh=mesh, in_specs=inputs, out_specs=(specs, P()))
        state = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=_is_spec)
        out = (state, NamedSharding(mesh, P()))
        compiled = jax.jit(scan, donate_argnums=0, out_shardings=out)

        def run(state: Tree, images: Any, labels: Any, batches: Any, *rest: Any) -> Any:
            return compiled(state, images, labels, self.place(batches, batch), *self.place(rest))

        return run


def _pmap_epoch(scan: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Compiles an epoch for this process's devices of a mesh; the state is replicated."""
    axes = (None, None, None, 1, None, None)
    compiled = jax.pmap(scan, axis_name=AXIS, in_axes=axes, out_axes=(None, None))
    devices = jax.local_devices()
    positions = [i for i, device in enumerate(mesh.devices.flat) if device in devices]
    local = jax.make_mesh((len(positions),), (AXIS,), (AxisType.Auto,), devices=devices)

    def run(state: Tree, images: Any, labels: Any, batches: Any, *rest: Any) -> Any:
        shares = batches.reshape(len(batches), mesh.size, -1)[:, positions]
        arrays = jax.tree.map(lambda x: _replicated(local, x), (state, images, labels))
        result = compiled(*arrays, shares, *rest)
        return jax.tree.map(lambda x: _replicated(mesh, x), result)

    return run


def _replicated(mesh: Mesh, x: jax.Array) -> jax.Array:
    """Returns the same copies of an array as one that is replicated on a mesh."""
    copies = [shard.data for shard in x.addressable_shards]
    sharding = NamedSharding(mesh, P())
    return jax.make_array_from_single_device_arrays(x.shape, sharding, copies)


def _is_spec(x: Any) -> bool:
    return isinstance(x, P)


def manual_axis(config: Config) -> str | None:
    """Returns the mesh axis of a strategy with manual communication, else None."""
    return AXIS if config.parallel in MANUAL else None


def strategy(config: Config, params: Tree, unit_axes: Collection[int] = ()) -> Strategy:
    """Returns the strategy of a run on all devices.

    Args:
      config: the run.
      params: its parameters.
      unit_axes: axes of kernels that some rule reduces to norms of units. `shard_map` shards other
        axes where it can: a rule would otherwise need the mesh axis to complete its norms.

    Raises:
      UserError: if the devices cannot have equal shares of a batch, or one of several processes
        was to train alone.
    """
    if config.parallel == "none":
        if jax.process_count() > 1:
            raise UserError("--parallel=none: there are several processes, choose another strategy")
        return Strategy()
    count = jax.device_count()
    if config.batch_size % count:
        problem = f"must be a multiple of the {count} devices with --parallel={config.parallel}"
        raise UserError(f"--batch-size={config.batch_size}: {problem}")
    mesh = jax.make_mesh((count,), (AXIS,), (AxisType.Auto,))
    keep = tuple(unit_axes) if config.parallel == "shard_map" else ()

    def spec(x: jax.Array) -> P:
        if x.ndim < 2 or config.parallel not in SHARDED:
            return P()
        free = [i for i, n in enumerate(x.shape) if n % count == 0 and i not in keep]
        return P(*[None] * free[0], AXIS) if free else P()

    return Strategy(config.parallel, mesh, jax.tree.map(spec, params))
