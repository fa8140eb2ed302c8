"""ESPnet's trainer with whole checkpoints, WER validation, and experts at the end.

The epochs' inside is ESPnet's. What is around them is written anew for three things: checkpoints
that are whole or absent, WER measured every so many validations, and exact resumption, at the very
step where a signal has asked the training to leave.
"""

import argparse
import datetime
import logging
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.train.distributed_utils import get_node_rank
from espnet2.train.reporter import (
    Reporter,
    SubReporter,
    WeightedAverage,
    to_reported_value,
)
from espnet2.train.trainer import Trainer as ESPnetTrainer
from espnet2.train.trainer import TrainerOptions as ESPnetTrainerOptions
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from espnet_moe.checkpoints import Checkpoints, Position
from espnet_moe.config import ConfigError
from espnet_moe.files import atomic
from espnet_moe.interruption import Interrupted, Interruptible, Requeue, Signals
from espnet_moe.memory import Watched
from espnet_moe.model import TrainedModel
from espnet_moe.model.experts import WER_PARTS


@dataclass
class TrainerOptions(ESPnetTrainerOptions):
    """ESPnet's, and what a checkpoint must agree with to be resumed.

    Attributes:
        wer_interval: Validations between two measurements of the WER.
        base_digest: Of the backbone.
        expert_settings: Names and options of the experts, and of what else the phase trains.
        batching: What decides which utterances are in which batch; it may change between epochs.
        phase: What trains.
    """

    phase: str = "expert"
    wer_interval: int | None = None
    base_digest: str | None = None
    expert_settings: dict[str, Any] | None = None
    batching: str = ""


class Trainer(ESPnetTrainer):
    """Runs the epochs; an epoch is ``num_iters_per_epoch`` iterations and one validation."""

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> TrainerOptions:
        """Options from the parsed command line.

        Raises:
            ConfigError: For a criterion on the WER without ``wer_interval``.
        """
        names = {f.name for f in fields(TrainerOptions)}
        options = TrainerOptions(**{k: v for k, v in vars(args).items() if k in names})
        criteria = [*options.best_model_criterion, options.early_stopping_criterion]
        if wrong := [c for c in criteria if len(c) != 3 or c[2] not in ("min", "max")]:
            raise ConfigError(f"criterion {' '.join(wrong[0])}: phase, figure, and min or max")
        if options.wer_interval is not None and options.wer_interval < 1:
            raise ConfigError(f"--wer_interval is at least 1, not {options.wer_interval}")
        if options.wer_interval is None and any(c[1] == "wer" for c in criteria):
            raise ConfigError("a criterion asks for wer: set --wer_interval, e.g. 5")
        if options.max_epoch < 1:
            raise ConfigError(f"--max_epoch is at least 1, not {options.max_epoch}")
        return options

    @classmethod
    def run(
        cls,
        model: TrainedModel,
        optimizers: Any,
        schedulers: Any,
        train_iter_factory: Any,
        valid_iter_factory: Any,
        plot_attention_iter_factory: Any,
        trainer_options: TrainerOptions,
        distributed_option: Any,
    ) -> None:
        """Train, from the last checkpoint where there is one.

        Raises:
            Requeue: After SIGTERM or SIGUSR1; the checkpoint is written.
        """
        run = _Run(model, optimizers, schedulers, trainer_options, distributed_option)
        with run.signals.noted():
            start = run.resume()
            if run.is_first:
                run.open_writers()
            for epoch in range(run.reporter.get_epoch() + 1, trainer_options.max_epoch + 1):
                if run.is_finished():
                    break
                logging.info("%d/%depoch started", epoch, trainer_options.max_epoch)
                steps, start = cls._train(run, epoch, train_iter_factory, start), None
                cls._validate(run, epoch, valid_iter_factory, steps)
                if run.is_first:
                    run.record(epoch)
                if steps.broken:
                    logging.warning("no step of epoch %d had finite gradients: stopped here", epoch)
                    break
        if run.is_first:
            run.close()

    @classmethod
    def _train(cls, run: "_Run", epoch: int, factory: Any, start: Position | None) -> "_Steps":
        """The training of one epoch, or what is left of it."""
        options = run.options
        # Seeded anew by the epoch's number: a resumed epoch draws what it would have drawn.
        set_all_random_seed(options.seed + epoch)
        run.reporter.set_epoch(epoch)
        # Accumulated but not yet used: a resumed epoch would not have it either.
        for optimizer in run.optimizers:
            optimizer.zero_grad()
        with run.reporter.observe("train") as observed:
            if start is not None:
                _put_back(observed, start)
            accum_grad = options.accum_grad
            batches = Interruptible(factory.build_iter(epoch), run.signals, accum_grad, start)
            watched = Watched(batches, run.log_interval(len(batches)), run.device)
            broken = False
            if start is not None and start.trained:
                start.restore_generators()
            else:
                try:
                    with watched.explained():
                        broken = cls.train_one_epoch(
                            model=run.parallel,
                            optimizers=run.optimizers,
                            schedulers=run.schedulers,
                            iterator=watched,
                            reporter=observed,
                            scaler=run.scaler,
                            summary_writer=run.train_writer,
                            options=options,
                            distributed_option=run.distributed,
                        )
                except Interrupted:
                    run.leave(run.position(epoch, batches.done, False, observed))
                # Of what is left of an epoch no step may be; those before the place are put back.
                broken = broken and "grad_norm" not in observed.stats
            end = run.position(epoch, batches.done, True, observed)
        return _Steps(broken, end)

    @classmethod
    def _validate(cls, run: "_Run", epoch: int, factory: Any, steps: "_Steps") -> None:
        """The validation after an epoch, with the WER where it is due."""
        interval = run.options.wer_interval
        run.model.measure_wer = interval is not None and (
            epoch % interval == 0 or epoch == run.options.max_epoch
        )
        batches = Interruptible(factory.build_iter(epoch), run.signals)
        watched = Watched(batches, run.log_interval(len(batches)), run.device)
        try:
            with run.reporter.observe("valid") as observed, watched.explained():
                cls.validate_one_epoch(
                    model=run.parallel,
                    iterator=watched,
                    reporter=observed,
                    options=run.options,
                    distributed_option=run.distributed,
                )
        except Interrupted:
            run.leave(steps.end)
        figures = run.reporter.stats[epoch]["valid"]
        if set(WER_PARTS) <= set(figures):
            # Of the whole set: a mean of the batches' rates would be one of unequal batches.
            errors, words = (float(figures.pop(key)) for key in WER_PARTS)
            figures["wer"] = 100.0 * errors / words if words else math.nan


@dataclass(frozen=True)
class _Steps:
    """What training an epoch has come to: whether no step had finite gradients, and where."""

    broken: bool
    end: Position


class _Run:
    """The state of one training: what is resumed, recorded, and closed."""

    def __init__(
        self,
        model: TrainedModel,
        optimizers: Any,
        schedulers: Any,
        options: TrainerOptions,
        distributed: Any,
    ) -> None:
        self.model, self.optimizers, self.schedulers = model, optimizers, schedulers
        self.options, self.folder = options, Path(options.output_dir)
        self.checkpoints = Checkpoints(self.folder)
        self.distributed = distributed
        self.device = "cuda" if options.ngpu > 0 else "cpu"
        self.signals = Signals(self.device if distributed.distributed else None)
        self.reporter = Reporter()
        self.scaler = GradScaler("cuda") if options.use_amp else None
        self.is_first = not distributed.distributed or distributed.dist_rank == 0
        self.train_writer: Any = None
        self.valid_writer: Any = None
        self.parallel: torch.nn.Module = model
        if distributed.distributed:
            devices = [torch.cuda.current_device()] if distributed.ngpu == 1 else None
            self.parallel = DistributedDataParallel(model, device_ids=devices)

    def log_interval(self, batches: int) -> int:
        """Batches between two lines of the log, as ESPnet counts them."""
        return self.options.log_interval or max(batches // 20, 10)

    # -- checkpoints ------------------------------------------------------------------------------

    def resume(self) -> Position | None:
        """Go on from the checkpoint, if there is one and it is wanted.

        Returns:
            The place inside an epoch, if the training had to leave there.
        """
        if self.is_first:
            self.checkpoints.clean()
        states = self.checkpoints.load("cpu") if self.options.resume else None
        if states is None:
            return None
        self._check(states)
        self.model.load_state_dict(states["model"])
        self.model.load_watches(states.get("watches") or {})
        self.reporter.load_state_dict(_with_times(states["reporter"]))
        for optimizer, state in zip(self.optimizers, states["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for scheduler, state in zip(self.schedulers, states["schedulers"], strict=True):
            if scheduler is not None:
                scheduler.load_state_dict(state)
        if self.scaler is not None and states["scaler"] is not None:
            self.scaler.load_state_dict(states["scaler"])
        epoch = self.reporter.get_epoch()
        if self.is_first and epoch:
            # The checkpoint is written before the links: a kill between the two is made good here.
            self._point(epoch)
        positions = [Position(**p) for p in states.get("positions") or []]
        if not positions:
            logging.info("resumed from %s after epoch %d", self.folder, epoch)
            return None
        ranks = self.distributed.dist_world_size or 1 if self.distributed.distributed else 1
        if len(positions) != ranks:
            raise ConfigError(
                f"the training in {self.folder} was left inside an epoch by {len(positions)} "
                f"processes: {ranks} cannot go on there; start as many"
            )
        start = positions[self.rank]
        if start.batching != self.options.batching:
            logging.warning(
                "the training was left inside epoch %d with %s, and has %s now: its batches are "
                "others, so the epoch begins anew",
                start.epoch,
                start.batching or "options that it did not tell",
                self.options.batching,
            )
            return None
        logging.info(
            "resumed from %s after iteration %d of epoch %d",
            self.folder,
            start.iterations,
            start.epoch,
        )
        return start

    @property
    def rank(self) -> int:
        """Of this process among those that train together."""
        return self.distributed.dist_rank or 0 if self.distributed.distributed else 0

    def _check(self, states: dict[str, Any]) -> None:
        """Whether a checkpoint is of the same training."""
        where = f"the checkpoint in {self.folder}"
        if states["base_digest"] != self.options.base_digest:
            raise ConfigError(
                f"{where} was trained on another base: give that one as "
                "--backbone_conf path=…, or another --output_dir"
            )
        old, new = states["expert_settings"], self.options.expert_settings or {}
        if changed := sorted(k for k in new if old.get(k) != new[k]):
            what = "experts" if self.options.phase == "expert" else "settings"
            raise ConfigError(
                f"{where} was trained with other {what}: "
                + "; ".join(f"{k} was {old.get(k)}, is {new[k]}" for k in changed)
                + "; go on with the old ones, or use another --output_dir"
            )

    def _save(self, epoch: int) -> None:
        with atomic(self.folder / f"{epoch}epoch.pth") as path:
            torch.save(self.model.state_dict(), path)
        self.checkpoints.save(self._state(_plain(self.reporter.state_dict())))

    def _state(self, reporter: dict[str, Any]) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "watches": self.model.watches(),
            "base_digest": self.options.base_digest,
            "expert_settings": self.options.expert_settings,
            "reporter": reporter,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "schedulers": [None if s is None else s.state_dict() for s in self.schedulers],
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def position(
        self, epoch: int, iterations: int, trained: bool, observed: SubReporter
    ) -> Position:
        """Where the training is, with what this epoch's batches have reported."""
        stats = {
            key: [(v.weight if isinstance(v, WeightedAverage) else None, v.value) for v in values]
            for key, values in observed.stats.items()
        }
        place = (epoch, iterations, trained, self.rank)
        return Position.here(*place, _plain(stats), self.options.batching)

    def leave(self, position: Position) -> NoReturn:
        """Write a checkpoint inside an epoch, and end the process.

        Raises:
            Requeue: Always.
        """
        positions: list[Any] = [position.plain()]
        if self.distributed.distributed:
            positions = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(positions, position.plain())
        if self.is_first:
            reporter = _plain(self.reporter.state_dict())
            # This epoch's figures come again when it is done.
            reporter["epoch"] = position.epoch - 1
            reporter["stats"] = {
                e: stats for e, stats in reporter["stats"].items() if e < position.epoch
            }
            self.checkpoints.save(self._state(reporter) | {"positions": positions})
            self.signals.log(position)
            for writer in (self.train_writer, self.valid_writer):
                if writer is not None:
                    writer.close()
        if self.distributed.distributed:
            # Who waits for the processes ends the others as soon as one has ended.
            torch.distributed.barrier()
        raise Requeue

    # -- what an epoch leaves behind --------------------------------------------------------------

    def record(self, epoch: int) -> None:
        """Log the epoch, save it, point to the best, and forget epochs that are neither."""
        logging.info(self.reporter.log_message())
        if self.train_writer is not None:
            self.reporter.tensorboard_add_scalar(self.train_writer, key1="train")
            self.reporter.tensorboard_add_scalar(self.valid_writer, key1="valid")
        if self.options.use_wandb:
            self.reporter.wandb_log()
        self._save(epoch)
        self._point(epoch)

    def _point(self, epoch: int) -> None:
        """Point to the latest and the best epochs, and remove those that are neither."""
        _link(self.folder / "latest.pth", f"{epoch}epoch.pth")
        keep, nbest = {epoch}, self.options.keep_nbest_models
        count = max(nbest) if isinstance(nbest, list) and nbest else nbest or 1
        for phase, key, mode in self.options.best_model_criterion:
            ranked = self.ranked(phase, key, mode)
            keep.update(ranked[: int(count)])  # type: ignore[arg-type]
            if ranked and ranked[0] == epoch:
                _link(self.folder / f"{phase}.{key}.best.pth", f"{epoch}epoch.pth")
                logging.info("best %s.%s so far: epoch %d", phase, key, epoch)
        for old in range(1, epoch):
            if old not in keep:
                (self.folder / f"{old}epoch.pth").unlink(missing_ok=True)

    def ranked(self, phase: str, key: str, mode: str) -> list[int]:
        """Epochs in which a figure was measured, best first; the earlier wins a tie."""
        epochs = range(1, self.reporter.get_epoch() + 1)
        stats = self.reporter.stats
        # Where all batches were not finite, the figure is no number, and neither best nor worst.
        values = {
            e: stats[e][phase][key]
            for e in epochs
            if self.reporter.has(phase, key, e) and math.isfinite(stats[e][phase][key])
        }
        sign = 1 if mode == "min" else -1
        return sorted(values, key=lambda e: (sign * values[e], e))

    def is_finished(self) -> bool:
        """Whether early stopping has come: no better value in ``patience`` measurements."""
        patience = self.options.patience
        if patience is None or self.reporter.get_epoch() == 0:
            return False
        ranked = self.ranked(*self.options.early_stopping_criterion)
        since = sum(e > ranked[0] for e in ranked) if ranked else 0
        if since > patience:
            logging.info(
                "early stopping: %s has not improved in %d measurements (best in epoch %d)",
                ".".join(self.options.early_stopping_criterion[:2]),
                since,
                ranked[0],
            )
        return since > patience

    def open_writers(self) -> None:
        """TensorBoard's."""
        if self.options.use_tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.train_writer = SummaryWriter(str(self.folder / "tensorboard" / "train"))
            self.valid_writer = SummaryWriter(str(self.folder / "tensorboard" / "valid"))

    def close(self) -> None:
        """Draw the curves and close the writers."""
        if self.options.use_matplotlib and self.reporter.get_epoch() > 0:
            self.reporter.matplotlib_plot(self.folder / "images")
        for writer in (self.train_writer, self.valid_writer):
            if writer is not None:
                writer.close()
        logging.info("trained %d epochs", self.reporter.get_epoch())


def is_first_process(args: argparse.Namespace) -> bool:
    """Whether this process is the one that writes what a training has trained.

    Processes that were started side by side (by torchrun or srun) know each other once they have
    trained; one that has started others for its GPUs does it if it is that of the first machine.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return get_node_rank(args.dist_rank, args.dist_launcher) in (None, 0)


def _link(path: Path, target: str) -> None:
    """Point a symbolic link to a file beside it, in one step."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)


def _with_times(reporter: dict[str, Any]) -> dict[str, Any]:
    """Undo what :func:`_plain` did to the durations; ESPnet 202611 writes and reads them itself."""
    for phases in reporter["stats"].values():
        for values in phases.values():
            if isinstance(values.get("time"), int | float):
                values["time"] = datetime.timedelta(seconds=values["time"])
    return reporter


def _put_back(observed: SubReporter, start: Position) -> None:
    """What the batches of an epoch before a place in it have reported."""
    for key, values in start.stats.items():
        observed.stats[key] = [to_reported_value(value, weight) for weight, value in values]
        observed.count = len(values)
    observed.total_count += observed.count


def _plain(value: Any) -> Any:
    """Numbers as Python's own, so that a checkpoint loads with ``weights_only=True``."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(v) for v in value)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if hasattr(value, "item"):
        return value.item()
    return value
