"""How a run is spread over devices: the ways of `--parallel`, and all that differs between them.

Each trains the same run, an equal share of every batch on each device. They differ in what a device
holds of the kernels, and in who says what is sent between devices:

                   kernels whole on every device   kernels in parts
    the compiler   jit                             fsdp
    we             pmap                            shard_map

Vectors, which are small, and the images, which are few, are whole on every device. Between two
epochs a state is always arrays as the whole program sees them; where there are several processes
(`processes`), each has its own part of them.
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
IN_PARTS = ("fsdp", "shard_map")
BY_HAND = ("pmap", "shard_map")


class Spread(NamedTuple):
    """One way of training over devices, for one network.

    What is computed on a device calls `whole`, `mean`, `averaged` and `own_key`, which do nothing
    where the compiler sees to it.

    Attributes:
      way: a value of `--parallel`.
      mesh: all devices along `AXIS`, None for one device.
      params: for each parameter which of its axes is in parts, None for one device.
    """

    way: str = "none"
    mesh: Mesh | None = None
    params: Tree = None

    def whole(self, params: Tree) -> Tree:
        """Returns the parameters whole; the derivative sums each part's gradient over devices."""
        if self.way != "shard_map":
            return params

        def gathered(x: jax.Array, spec: P) -> jax.Array:
            if AXIS not in tuple(spec):
                return x
            return jax.lax.all_gather(x, AXIS, axis=tuple(spec).index(AXIS), tiled=True)

        return jax.tree.map(gathered, params, self.params)

    def mean(self, scores: Tree) -> Tree:
        """Returns the mean over the devices of what each has computed from its own examples."""
        if self.way not in BY_HAND:
            return scores
        # One by one: JAX before 0.9 cannot transpose a psum of which only a part is differentiated.
        return jax.tree.map(lambda score: jax.lax.pmean(score, AXIS), scores)

    def averaged(self, grads: Tree) -> Tree:
        """Returns the gradients of the mean loss, given what `jax.grad` of it gives on a device.

        Under `pmap` that is the gradient of the device's own loss. In `shard_map` JAX knows that
        the parameters are the same everywhere, or gathered, and has already summed.
        """
        return jax.lax.pmean(grads, AXIS) if self.way == "pmap" else grads

    def own_key(self, key: jax.Array) -> jax.Array:
        """Returns a random key for this device's examples."""
        return jax.random.fold_in(key, jax.lax.axis_index(AXIS)) if self.way in BY_HAND else key

    def specs(self, begin: Callable[[Tree], Tree], params: Tree) -> Tree:
        """Returns for each array of a state which of its axes is in parts.

        It is the axis that is shorter in the state of a device's part of the parameters.

        Args:
          begin: the state as a function of the parameters.
          params: the parameters.
        """
        mesh = self.mesh

        def part(x: jax.Array, spec: P) -> jax.ShapeDtypeStruct:
            shape = x.shape if mesh is None else NamedSharding(mesh, spec).shard_shape(x.shape)
            return jax.ShapeDtypeStruct(shape, x.dtype)

        def spec(whole: jax.ShapeDtypeStruct, part: jax.ShapeDtypeStruct) -> P:
            lengths = zip(whole.shape, part.shape, strict=True)
            return P(*(AXIS if n != m else None for n, m in lengths))

        own = params if mesh is None else jax.tree.map(part, params, self.params)
        return jax.tree.map(spec, jax.eval_shape(begin, params), jax.eval_shape(begin, own))

    def place(self, tree: Tree, specs: Tree = None) -> Tree:
        """Puts arrays that every process has whole onto the devices; without `specs`, onto each."""
        mesh = self.mesh
        if mesh is None:
            return jax.device_put(tree)

        def put(x: Any, spec: P) -> jax.Array:
            host, sharding = np.asarray(x), NamedSharding(mesh, spec)
            return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

        specs = jax.tree.map(lambda _: P(), tree) if specs is None else specs
        return jax.tree.map(put, tree, specs)

    def divide(self, tree: Tree) -> Tree:
        """Puts arrays onto the devices, examples in equal shares, or whole where they are not."""
        mesh = self.mesh
        if mesh is None:
            return jax.device_put(tree)
        specs = jax.tree.map(lambda x: P(AXIS) if len(x) % mesh.size == 0 else P(), tree)
        return self.place(tree, specs)

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles a function of whole arrays; every process has all of what it returns."""
        if self.mesh is None:
            return jax.jit(function)
        return jax.jit(function, out_shardings=NamedSharding(self.mesh, P()))

    def epoch(self, scan: Callable[..., Any], specs: Tree) -> Callable[..., Any]:
        """Compiles an epoch, which is given its state's buffers, by `pmap` a copy.

        Args:
          scan: `(state, images, labels, batches, numbers) -> (state, telemetry)`, as one device
            runs it.
          specs: which axes of the state are in parts.
        """
        mesh = self.mesh
        if mesh is None:
            return jax.jit(scan, donate_argnums=0)
        if self.way == "pmap":
            return _pmapped(scan, mesh)
        batch = P(None, AXIS)
        if self.way == "shard_map":
            given = (specs, P(), P(), batch, P())
            scan = jax.shard_map(scan, mesh=mesh, in_specs=given, out_specs=(specs, P()))
        state = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=_is_spec)
        out = (state, NamedSharding(mesh, P()))
        compiled = jax.jit(scan, donate_argnums=0, out_shardings=out)

        def run(state: Tree, images: Any, labels: Any, batches: Any, numbers: Any) -> Any:
            batches, numbers = self.place(batches, batch), self.place(numbers)
            return compiled(state, images, labels, batches, numbers)

        return run


def _pmapped(scan: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Compiles an epoch for this process's devices of a mesh, all of which have the same state."""
    axes = (None, None, None, 1, None)
    compiled = jax.pmap(scan, axis_name=AXIS, in_axes=axes, out_axes=(None, None))
    devices = jax.local_devices()
    ours = [i for i, device in enumerate(mesh.devices.flat) if device in devices]
    local = jax.make_mesh((len(ours),), (AXIS,), (AxisType.Auto,), devices=devices)

    def run(state: Tree, images: Any, labels: Any, batches: Any, numbers: Any) -> Any:
        shares = batches.reshape(len(batches), mesh.size, -1)[:, ours]
        own = jax.tree.map(lambda x: _copies_on(local, x), (state, images, labels))
        after = compiled(*own, shares, numbers)
        return jax.tree.map(lambda x: _copies_on(mesh, x), after)

    return run


def _copies_on(mesh: Mesh, x: jax.Array) -> jax.Array:
    """Returns the same copies of an array as one that is whole on each device of a mesh."""
    copies = [shard.data for shard in x.addressable_shards]
    sharding = NamedSharding(mesh, P())
    return jax.make_array_from_single_device_arrays(x.shape, sharding, copies)


def _is_spec(x: Any) -> bool:
    return isinstance(x, P)


def axis(config: Config) -> str | None:
    """Returns the axis over which a device has to ask the others, None if the compiler does."""
    return AXIS if config.parallel in BY_HAND else None


def spread(config: Config, params: Tree, bound: Collection[int] = ()) -> Spread:
    """Spreads a run over all devices.

    Args:
      config: the run; `parallel` says how.
      params: its parameters.
      bound: axes of kernels along which they stay whole where that is possible: those that some
        rule takes norms of units over. By hand only such a rule would have to be told.

    Raises:
      UserError: if the devices cannot have equal shares of a batch, or more than one process is to
        train alone.
    """
    if config.parallel == "none":
        if jax.process_count() > 1:
            raise UserError("--parallel=none: there are several processes, choose another way")
        return Spread()
    count = jax.device_count()
    if config.batch_size % count:
        problem = f"must be a multiple of the {count} devices with --parallel={config.parallel}"
        raise UserError(f"--batch-size={config.batch_size}: {problem}")
    mesh = jax.make_mesh((count,), (AXIS,), (AxisType.Auto,))
    kept = tuple(bound) if config.parallel == "shard_map" else ()

    def spec(x: jax.Array) -> P:
        if x.ndim < 2 or config.parallel not in IN_PARTS:
            return P()
        free = [i for i, n in enumerate(x.shape) if n % count == 0 and i not in kept]
        return P(*[None] * free[0], AXIS) if free else P()

    return Spread(config.parallel, mesh, jax.tree.map(spec, params))
