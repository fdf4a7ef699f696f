"""Memory of one GPU by part: what ZeRO divides among ranks and what every rank holds whole."""

from __future__ import annotations

from typing import NamedTuple

from m4v.config import ModelConfig, Recompute
from m4v.family import AnyModel
from m4v.wan.config import WanConfig
from training.config import EngineConfig
from training.preflight.parameters import total_parameters
from training.preflight.work import PackWork

FLOAT32, BFLOAT16 = 4, 2
FRAMEWORK_BYTES = 2 << 30  # CUDA context, NCCL, libraries' workspaces
FRAGMENTATION = 0.04  # of what the allocator holds


class Kept(NamedTuple):
    """Bytes that a forward pass keeps of a block for each token and channel: fixed, and per unit of `mlp_ratio`."""

    double: tuple[float, float]
    attention: tuple[float, float]
    mamba: tuple[float, float]
    temporal: float  # for each token of the temporal branch
    edges: float  # embeddings and output


class WanKept(NamedTuple):
    """As `Kept`, of the Wan family's one kind of block."""

    block: tuple[float, float]
    temporal: float
    edges: float


# Counted by autograd's own hooks on the built model; the scan keeps what the kernel library's keeps. With bfloat16
# the norms still work in float32. Tests count them again.
_KEPT = {
    "bfloat16": Kept((61.0, 4.6), (43.2, 4.3), (56.2, 4.3), 30.4, 19.5),
    "float32": Kept((100.3, 8.0), (68.2, 8.0), (93.7, 8.0), 43.2, 36.0),
}
# Results of products with weights and of attention, in channels: what `selective` keeps beside a block's input. Tests
# count them on the tapes of the built model's blocks.
_PRODUCTS = Kept((6.0, 1.0), (5.0, 1.0), (5.0, 1.0), 4.0, 0.0)
# Of Wan's blocks with attention, counted likewise; mixers keep as much more than attention as in the pyramid's blocks.
_WAN_KEPT = {"bfloat16": WanKept((69.0, 4.0), 26.1, 10.4), "float32": WanKept((89.4, 8.0), 36.1, 16.0)}
_WAN_PRODUCTS = WanKept((9.0, 1.0), 3.0, 0.0)


def elements_of_rank(elements: int, ranks: int) -> int:
    """Elements of one rank's equal part, padding included."""
    return -(-elements // ranks)


class Memory(NamedTuple):
    """Bytes on one GPU."""

    parameters: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    buffers: int
    frozen: int = 0  # of a reward: weights of codec and scorers
    reward: int = 0  # the most that decode and scores hold, beyond the room that the backward pass takes later

    @property
    def total(self) -> int:
        return sum(self)


def memory_of(
    model: AnyModel, engine: EngineConfig, ema: bool, ranks: int, largest: PackWork, device: str = "cuda"
) -> Memory:
    """Peak of a rank on a pack as large as `largest`. Gradients of ZeRO-2: the accumulated part is there twice, by the
    peaks on one and four GPUs."""
    elements = total_parameters(model)
    stage, part = engine.zero_stage, elements_of_rank(elements, ranks)
    whole, own = FLOAT32 * elements, FLOAT32 * part
    held = whole if stage == 0 else own
    activations = activation_bytes(model, engine, largest)
    if engine.backend == "fsdp2":
        return _on_fsdp2(model, engine, own, ema, activations, device)
    # The module's own tensors and, from ZeRO-1 on, the masters that the optimiser updates.
    parameters = {0: whole, 1: whole + own, 2: whole + own, 3: 2 * own}[stage]
    gradients = {0: whole, 1: whole, 2: 2 * own, 3: own}[stage]
    known = parameters + gradients + 3 * held + activations
    buffers = _buffers(elements, engine, ranks, device) + round(FRAGMENTATION * known if device == "cuda" else 0)
    return Memory(parameters, gradients, 2 * held, held if ema else 0, activations, buffers)


def _buffers(elements: int, engine: EngineConfig, ranks: int, device: str) -> int:
    """Buckets of the collectives, whole parameters that ZeRO-3 has gathered, and the framework's own."""
    overlapped = 2 if engine.overlap_comm and device == "cuda" else 1
    buckets = FLOAT32 * min(engine.bucket_elements, elements) * (overlapped + 1)
    # Float32 where they arrive, also where they travel as bfloat16 (gathered by block; whole ones travel as float32).
    # One rank's own part is the whole, which it uses where it lies.
    gathers = engine.zero_stage == 3 and ranks > 1
    gathered = FLOAT32 * min(engine.live_elements, elements) if gathers else 0
    return buckets + gathered + (FRAMEWORK_BYTES if device == "cuda" else 0)


def activation_bytes(model: AnyModel, engine: EngineConfig, pack: PackWork) -> int:
    """What a forward pass keeps for its backward pass, with what comes on top of it at its end or right after: copies
    of the weights that autocast made, or the block that is computed again."""
    if isinstance(model, WanConfig):
        return _wan_activations(model, engine, pack)
    kept = _KEPT[engine.dtype]
    width = BFLOAT16 if engine.dtype == "bfloat16" else FLOAT32
    tokens = (pack.visual + pack.text) * model.width
    edges = kept.edges * tokens
    if engine.checkpointing == "none":
        blocks = [_block_bytes(model, kept, number, pack) for number in range(-1, model.single_blocks)]
        return round(edges + model.double_blocks * blocks[0] + sum(blocks[1:]) + _copied_weights(model, engine))
    inputs = width * tokens * (model.double_blocks + model.single_blocks)
    products = _products(model, pack, width) if engine.checkpointing == "selective" else 0.0
    return round(edges + inputs + products) + recomputed_bytes(model, engine, pack)


def recomputed_bytes(model: AnyModel, engine: EngineConfig, pack: PackWork) -> int:
    """Of `activation_bytes`, what is gone between forward and backward pass: copies of weights, which last as long as
    the forward, and the block that is computed again, whichever is more."""
    if engine.checkpointing == "none" or isinstance(model, WanConfig):
        return 0
    kept = _KEPT[engine.dtype]
    block = round(max(_block_bytes(model, kept, number, pack) for number in range(-1, model.single_blocks)))
    return max(block, _copied_weights(model, engine))


def _copied_weights(model: AnyModel, engine: EngineConfig) -> int:
    """Copies in bfloat16 that autocast keeps until its forward pass ends, of weights that stay until then; blocks that
    keep selectively make their own, product by product. FSDP2 keeps none of them (`_on_fsdp2`)."""
    if engine.dtype != "bfloat16" or engine.checkpointing == "selective" or engine.backend == "fsdp2":
        return 0
    elements = total_parameters(model)
    return BFLOAT16 * elements if engine.zero_stage < 3 or engine.keeps_whole(elements) else 0


def _wan_activations(model: WanConfig, engine: EngineConfig, pack: PackWork) -> int:
    kept, mixers = _WAN_KEPT[engine.dtype], _KEPT[engine.dtype]
    width = BFLOAT16 if engine.dtype == "bfloat16" else FLOAT32
    tokens = (pack.visual + (pack.text if model.sequence_text else 0)) * model.width
    ratio, mm_dim = model.mlp_width / model.width, model.mixer == "mm_dim"
    branch = pack.temporal * model.width if mm_dim and model.temporal_branch else 0
    more = mixers.mamba[0] - mixers.attention[0] if mm_dim else 0.0
    block = tokens * (kept.block[0] + more + kept.block[1] * ratio) + kept.temporal * branch
    edges, copied = kept.edges * tokens, _copied_weights(model, engine)
    if engine.checkpointing == "none":
        return round(edges + model.blocks * block) + copied
    inputs = width * tokens * model.blocks
    products = tokens * (_WAN_PRODUCTS.block[0] + _WAN_PRODUCTS.block[1] * ratio) + _WAN_PRODUCTS.temporal * branch
    products = width * products * model.blocks if engine.checkpointing == "selective" else 0
    return round(edges + inputs + products + max(block, copied))


def _block_bytes(model: ModelConfig, kept: Kept, number: int, pack: PackWork) -> float:
    """Of single-stream block `number`, or of a dual-stream block for -1."""
    tokens = (pack.visual + pack.text) * model.width

    def of(rates: tuple[float, float]) -> float:
        return tokens * (rates[0] + rates[1] * model.mlp_ratio)

    if number < 0:
        return of(kept.double)
    mixers = model.mixers(number)
    found = sum(of(kept.attention if mixer == "attention" else kept.mamba) for mixer in mixers)
    if "mm_dim" in mixers and model.temporal_branch:
        found += kept.temporal * pack.temporal * model.width
    return found


def _products(model: ModelConfig, pack: PackWork, width: int) -> float:
    singles = [_block_bytes(model, _PRODUCTS, number, pack) for number in range(model.single_blocks)]
    return width * (model.double_blocks * _block_bytes(model, _PRODUCTS, -1, pack) + sum(singles))


def _on_fsdp2(model: AnyModel, engine: EngineConfig, own: int, ema: bool, activations: int, device: str) -> Memory:
    """Its masters, `own` bytes, are the module's shards; as stage 2, whole weights and gradients are there besides. Of
    the block at work and the next: weights as they arrive and in place, a gradient, what its reduction reads and
    writes. Autocast's copies of weights stay where a block keeps all."""
    whole = FLOAT32 * total_parameters(model)
    blocks = model.blocks if isinstance(model, WanConfig) else model.double_blocks + model.single_blocks
    parameters, gradients = (own, own) if engine.zero_stage == 3 else (own + whole, whole)
    copies = whole * BFLOAT16 // FLOAT32 if engine.dtype == "bfloat16" and engine.checkpointing == "none" else 0
    buffers = 6 * whole // max(1, blocks) + copies
    if device == "cuda":
        buffers += FRAMEWORK_BYTES + round(FRAGMENTATION * (parameters + gradients + 3 * own + activations))
    return Memory(parameters, gradients, 2 * own, own if ema else 0, activations, buffers)


def saved_bytes(model: AnyModel, ema: bool) -> int:
    """One resume state: masters, two moments and the average of every parameter."""
    return FLOAT32 * total_parameters(model) * (4 if ema else 3)


def checkpoint_bytes(model: AnyModel, ema: bool) -> int:
    """The checkpoint artifact: weights and their average."""
    return FLOAT32 * total_parameters(model) * (2 if ema else 1)


MODES: tuple[Recompute, ...] = ("none", "selective", "block")
