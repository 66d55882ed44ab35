"""Contrastive pretraining, top to bottom: data, model, execution, optimizer, steps, evaluation, publication."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from belvedere_platform.artifacts import ArtifactStore, Descriptor
from belvedere_platform.errors import CorruptData, InvalidInput
from belvedere_training.asked import check_asked
from belvedere_training.config import RunConfig, resolve
from belvedere_training.data.corpus import Corpus, corpus_texts, held_out_splits, load_split, pull_dataset
from belvedere_training.data.loader import mixed
from belvedere_training.depth import rate_factors
from belvedere_training.evaluation.retrieval import evaluate
from belvedere_training.loop import Loop, Progress, restored
from belvedere_training.model.config import NORMALIZATIONS, ModelConfig, TextConfig, has_view, sized
from belvedere_training.model.files import load_artifact
from belvedere_training.model.tokenizer import MASK, learn
from belvedere_training.model.vision_language import VisionLanguageModel
from belvedere_training.objectives.multitask import check, needs_words, with_objectives
from belvedere_training.objectives.teacher import Teacher
from belvedere_training.optimizer import Optimizers
from belvedere_training.precision import Execution, choose, unmeasured
from belvedere_training.publish import Lineage, Publication, evidence_of, publish
from belvedere_training.repeatable import repeat_exactly
from belvedere_training.sharding import shard, wants_shares
from belvedere_training.step import Stepper
from belvedere_training.update import Update
from belvedere_training.validation import parse
from belvedere_training.world import World, agreed, all_cores


def train(config: RunConfig, store: ArtifactStore, world: World) -> Descriptor | None:
    """Train, evaluate and publish; rank 0 returns the model artifact."""
    config = resolve(config, store)
    loop = prepare(config, store, world)
    loop.run()
    return finish(config, store, world, loop)


def prepare(config: RunConfig, store: ArtifactStore, world: World) -> Loop:
    """Bring data, model, optimizer and the last checkpoint together."""
    size = config.optimization.batch_size
    if size % world.size:
        raise InvalidInput(f"optimization.batchSize is {size}; it must be a multiple of the {world.size} workers")
    repeat_exactly(world.device)
    folder = data_folder(config, store, world)
    corpus = load_split(folder, "train")
    checkpoint = restored(world.last_checkpoint(), config)
    parent = _parent(config, store)
    tokenizer, model = _model(config, corpus, parent, checkpoint.tokenizer if checkpoint else None)
    check_asked(config, model.config)
    sharded = wants_shares(config, model, world.size)
    if not sharded:  # weights in shares go to the device layer by layer, when they are shared out
        model = model.to(world.device)
    model = model.to(memory_format=torch.channels_last)
    execution = checkpoint.execution if checkpoint else _execution(config, world, model, sharded=sharded)
    teacher = _teacher(config, model)
    if checkpoint:
        model.load_state_dict(checkpoint.model)
        if teacher:
            teacher.load_state_dict(checkpoint.teacher)
    torch.set_num_threads(execution.threads)
    frozen = parent[1].requires_grad_(False) if parent else None
    model.train().recompute_activations(config.optimization.recompute)
    module = with_objectives(config.objectives, model, tokenizer.token_to_id(MASK), touches_all=not sharded)
    _place((module, frozen, teacher), execution, world, sharded=sharded)
    update = _update(config, world, model, execution)
    if checkpoint:
        update.optimizer.load_state_dict(checkpoint.optimizer)
        update.load_state_dict(checkpoint.update)
    stepper = Stepper(config, world, corpus, tokenizer, module, update, execution, parent=frozen, teacher=teacher)
    if checkpoint and len(checkpoint.counts) == world.size:
        stepper.share_out(checkpoint.counts)
    if world.rank == 0 and corpus.skipped:
        world.say({"event": "skipped", "samples": len(corpus.skipped), "reasons": corpus.skipped[:8]})
    # One split is evaluated while training, the others at the end.
    watched = watched_split(held_out_splits(folder), [gate.metric for gate in config.evaluation.gates])
    quick = {watched: load_split(folder, watched)} if watched and world.rank == 0 else {}
    return Loop(config, world, stepper, checkpoint.progress if checkpoint else Progress(), quick)


def watched_split(splits: Sequence[str], metrics: Sequence[str]) -> str | None:
    """Return the split that the first gate judges, or the first of all; None where nothing is held out."""
    judged = (split for metric in metrics for split in splits if metric.startswith(f"{split}_"))
    return next(judged, next(iter(splits), None))


def finish(config: RunConfig, store: ArtifactStore, world: World, loop: Loop) -> Descriptor | None:
    """Evaluate on everything held out and publish, on rank 0."""
    trained = loop.stepper.whole_model()
    if world.rank != 0 or trained is None:
        return None
    folder = data_folder(config, store, world)
    model, progress = trained.to("cpu"), loop.progress
    with all_cores(world):
        others = {split: load_split(folder, split) for split in held_out_splits(folder) if split not in loop.quick}
        metrics = evaluate(model, loop.stepper.tokenizer, {**loop.quick, **others})
    short = {name: value for name, value in metrics.items() if "_t2i_" not in name and "_i2t_" not in name}
    progress.recall_curve.append({"pairs": progress.pairs, **short})
    publication = Publication(
        model_name=config.model,
        version=config.version_name,
        pairs=progress.pairs,
        images_per_second=progress.images_per_second,
        metrics=metrics,
        curves=progress.curves(),
        lineage=Lineage(
            training_run=f"{config.run.namespace}/{config.run.name}",
            data_digest=config.data_digest,
            config_digest=config.digest(),
            parent_digest=config.parent_digest,
        ),
    )
    evidence = evidence_of(next(iter(loop.quick.values()), loop.stepper.corpus))
    with all_cores(world):
        descriptor = publish(store, model, loop.stepper.tokenizer, evidence, publication, tag=config.output_tag)
    world.say({"event": "published", "tag": config.output_tag, "digest": descriptor.digest, "recall": short})
    return descriptor


def data_folder(config: RunConfig, store: ArtifactStore, world: World) -> Path:
    """Return the pulled data set; one worker pulls, and pulling again finds everything in place."""
    assert config.data_digest is not None
    folder = pull_dataset(store, config.data_digest)
    if not (folder / "manifest.json").is_file():
        raise CorruptData(f"artifact {config.data_digest} has no manifest.json: it is no data set; build it again")
    return folder


def _parent(config: RunConfig, store: ArtifactStore) -> tuple[Tokenizer, VisionLanguageModel] | None:
    if config.parent_digest is None:
        return None
    loaded = load_artifact(store, config.parent_digest)
    return loaded.tokenizer, loaded.model


def _model(
    config: RunConfig, corpus: Corpus, parent: tuple[Tokenizer, VisionLanguageModel] | None, saved: Tokenizer | None
) -> tuple[Tokenizer, VisionLanguageModel]:
    """Return tokenizer and model: the parent's, or new ones of the size asked, the same on every worker."""
    if parent is not None:
        tokenizer, elder = parent
        check(config.objectives, elder.config)
        if needs_words(config.objectives) and tokenizer.token_to_id(MASK) is None:
            raise InvalidInput(
                "objectives.lm and objectives.mlm need an end and a mask in the vocabulary, and the model of "
                "initializeFrom.modelVersion was trained without them: leave them out, or train from scratch"
            )
        model = VisionLanguageModel(elder.config)
        model.load_state_dict(elder.state_dict())
        return tokenizer, model
    shape = _shape(config, corpus)
    generative = needs_words(config.objectives)
    tokenizer = saved or learn(
        corpus_texts(corpus), shape.text.vocab_size, shape.text.max_length, generative=generative
    )
    text = TextConfig.model_validate({**dict(shape.text), "vocab_size": tokenizer.get_vocab_size()})
    torch.manual_seed(mixed(config.optimization.seed))
    return tokenizer, VisionLanguageModel(shape.model_copy(update={"text": text}))


def _shape(config: RunConfig, corpus: Corpus) -> ModelConfig:
    """Return the size asked, at the resolution of the pictures, with the decoder that masked pictures need."""
    wanted = config.architecture
    shape = sized(config.size, topology=wanted.topology, tower=wanted.tower, attend=wanted.attend)
    document = shape.model_dump()
    document["vision"]["image_size"] = corpus.size
    if wanted.itm_head:
        document["fusion"]["itm_head"] = wanted.itm_head
    if wanted.max_length:
        document["text"]["max_length"] = wanted.max_length
    if wanted.normalization:
        document["normalization"] = NORMALIZATIONS[wanted.normalization]
    if config.objectives.mim and not shape.pixels.num_layers and shape.vision.kind == "vit":
        document["pixels"]["num_layers"] = 1
    if config.objectives.disentangle:
        document["parts"]["attributes"] = _attributes(config, corpus)
    if config.optimization.resolution == "Progressive" and shape.vision.kind == "vit":
        document["vision"]["view"] = True
    where = f"size {config.size} with the data set's pictures of {corpus.size} pixels (belvedere data build … --size)"
    shape = parse(ModelConfig, document, where=where)
    check(config.objectives, shape)
    return shape


def _attributes(config: RunConfig, corpus: Corpus) -> dict[str, list[str]]:
    """Return the values of the attributes asked for, of those that have several; InvalidInput when there is none."""
    wanted = config.objectives.attributes
    found = {name: values for name in wanted if len(values := corpus.values(name)) > 1}
    if not found:
        known = [name for name in corpus.records[0] if isinstance(corpus.records[0][name], str) and name != "id"]
        raise InvalidInput(
            f"objectives.disentangle is {config.objectives.disentangle:g}, and none of objectives.attributes, "
            f"{', '.join(wanted)}, is in every record with several values: the records have {', '.join(known)}"
        )
    return found


def _update(config: RunConfig, world: World, model: VisionLanguageModel, execution: Execution) -> Update:
    """Return what moves the weights."""
    setting = config.optimization
    same_rates = setting.backbone_rate == setting.layer_decay == 1.0 and not has_view(model.config)
    optimizer = Optimizers(
        model,
        learning_rate=setting.learning_rate,
        weight_decay=setting.weight_decay,
        half=execution.precision == "bf16",
        factors=None if same_rates else rate_factors(model, backbone=setting.backbone_rate, decay=setting.layer_decay),
    )
    fp16 = execution.precision == "fp16"
    return Update(model, optimizer, clip=setting.clip, clip_norm=setting.clip_norm, device=world.device, fp16=fp16)


def _place(networks: Sequence[nn.Module | None], execution: Execution, world: World, *, sharded: bool) -> None:
    """Bring networks to the device, in shares where each worker is to keep only its own."""
    for network in networks:
        if network is None:
            continue
        if sharded:
            shard(network.model if isinstance(network, Teacher) else network, execution.precision, world.device)
        network.to(world.device)


def _teacher(config: RunConfig, model: VisionLanguageModel) -> Teacher | None:
    wanted = config.objectives
    return Teacher(model, wanted.queue_size) if wanted.distillation or wanted.queue_size else None


def _execution(config: RunConfig, world: World, model: VisionLanguageModel, *, sharded: bool) -> Execution:
    """Measure on all workers at once, as they will run, and take what rank 0 found. What is to be in shares is too large to."""
    share, asked = max(1, world.cores // world.size), config.optimization.precision
    rates: dict[str, float] = {}
    if sharded:
        chosen = unmeasured(asked, share, world.device)
    else:
        chosen, rates = choose(model, asked, (1, share), world.device)
    if world.rank == 0:
        world.say({"event": "execution", "precision": chosen.precision, "threads": chosen.threads, "measured": rates})
    execution: Execution = agreed(chosen, world)
    return execution
