"""The training loop: epochs of steps, one checkpoint after each, resumable to the bit."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, but not listed in its stub
from torch.nn import functional
from tqdm import tqdm

from mondeq import distributed
from mondeq.data import Dataset, Split, batches
from mondeq.errors import ConfigError, TrainingError
from mondeq.files import sole_writer
from mondeq.losses import Progress
from mondeq.network import Network
from mondeq.pieces import SolvedPiece
from mondeq.runs import WEIGHTS, write_tensors
from mondeq.training import checkpoint
from mondeq.training.augmentation import distortion
from mondeq.training.config import TrainingConfig
from mondeq.training.optimizers import OPTIMIZERS
from mondeq.training.progress import Epoch, Tally
from splitting import ConvergenceWarning, Monitor, Solver, SplittingError

# How often the loss is read: often enough for a progress bar, seldom enough not to stall an accelerator.
_STEPS_PER_READ = 20
_EVALUATION_ENTRIES = 2**25
# Shares of the tuned step that are tried, on so many samples.
_SHARES, _SAMPLES = [2.0**-k for k in range(1, 9)], 16
# One is worth taking that saves a tenth of the steps; those shorter than one that takes half more are not tried.
_WORTH, _HOPELESS = 1.1, 1.5


class Trainer:
    """Trains a network on a data set, writing a checkpoint after every epoch.

    Two runs with the same configuration, data and machine give the same weights to the bit, whether or not they were
    interrupted and resumed. Weights with requires_grad_(False) stay as they are; a run is resumed with the same ones
    frozen. Where the configuration asks for average weights, these are tested and published, and left in the network
    when training is complete.

    Args:
        model: The network, which is moved to `device`.
        dataset: What to train and test on, with further images where the configuration names some.
        config: How.
        folder: Where checkpoints and weights go.
        device: Where to compute.
        on_epoch: Called with every new row of history, on the main process.

    Raises:
        ConfigError: All weights are frozen, images are smaller than the shift or no torchvision for them is there,
            the data have other further images than the configuration says, or batches are too small to be mixed.
    """

    def __init__(
        self,
        model: Network,
        dataset: Dataset,
        config: TrainingConfig,
        folder: Path,
        device: torch.device,
        *,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    ) -> None:
        self.model, self.dataset, self.config, self.folder, self.device = (
            model.to(device),
            dataset,
            config,
            folder,
            device,
        )
        config.check_images(*dataset.train.images.shape[2:])
        if not any(p.requires_grad for p in model.parameters()):
            raise ConfigError("`model` has no weight to train: all are frozen; call requires_grad_(True) on some")
        if (config.extra is None) != (dataset.extra is None):
            found = "none" if dataset.extra is None else "some"
            raise ConfigError(f"`extra` is {config.extra!r}, and the data have {found}; see mondeq.data.with_extra")
        self.on_epoch = on_epoch
        self.loss = config.make_loss()
        classes = self.model.classes
        self._no_constants = torch.zeros(classes, classes, dtype=self.model.dtype, device=device)
        if (reason := self.loss.unsuited(self.model, config.radius)) is not None:
            raise ConfigError(f"`loss` {config.loss} cannot train this network: {reason}; give another radius, or none")
        self.history: list[Epoch] = []
        self.generator = torch.Generator("cpu").manual_seed(config.seed)
        self.optimizers = OPTIMIZERS[config.optimizer](model, config.lr, config.weight_decay)
        averaged = [] if config.average == "none" else model.named_parameters()
        self.averages = {name: weight.detach().clone() for name, weight in averaged}
        ranks, world = distributed.rank(), distributed.world_size()
        share = max(config.batch_size // world, 1)
        self.train = batches(
            dataset.train,
            share,
            generator=self.generator,
            device=device,
            rank=ranks,
            world_size=world,
            extra=dataset.extra,
            extra_share=config.extra_share,
            transform=distortion(config.augment, dataset.train.images.shape[1], self.generator),
        )
        # The same on every process, and when resumed: what steps are tuned to.
        images, labels = dataset.train.images[:_SAMPLES], dataset.train.labels[:_SAMPLES]
        ((self._samples, _),) = batches(Split(images, labels), _SAMPLES, device=device)
        # As many images as fit tens of millions of state entries, at most 1000.
        fitting = min(max(_EVALUATION_ENTRIES // model.largest, 1), 1000)
        self.test = batches(dataset.test, fitting, device=device, rank=ranks, world_size=world)

    def resume(self) -> None:
        """Continue from the checkpoint in the folder.

        Raises:
            RunError: It is none of this run.
        """
        self.history = checkpoint.read(
            self.folder / checkpoint.NAME,
            self.model,
            self.optimizers,
            self.generator,
            self.averages,
            epochs=self.config.epochs,
            steps=len(self.train),
        )

    def publish(self) -> None:
        """Write the weights as they are, or their average, to model.safetensors.

        Raises:
            OSError: They cannot be written.
        """
        with self._averaged():
            write_tensors(self.folder / WEIGHTS, self.model.state_dict())

    def run(self) -> list[Epoch]:
        """Train the epochs that are left.

        Returns:
            The history of all epochs.

        Raises:
            TrainingError: The loss stopped being finite, or weights make no operator; the message says the cause.
            RunError: Another process writes to the folder.
        """
        parallel = distributed.parallel(self.model)
        with sole_writer(self.folder) if distributed.is_main() else nullcontext():
            if not self.history:
                self._save([])
            elif distributed.is_main():
                self.publish()  # a run that died after its checkpoint has not done so
            for epoch in range(len(self.history) + 1, self.config.epochs + 1):
                row = self._epoch(epoch, parallel)
                self._save([*self.history, row])
                if distributed.is_main():
                    self.on_epoch(row)
                    _warn_of_unconverged(row)
        _assign(self.model, self.averages)
        return self.history

    def _epoch(self, epoch: int, parallel: torch.nn.Module) -> Epoch:
        started = time.perf_counter()
        tally = Tally(self.device)
        try:
            with self._watched(tally.monitor):
                self._train_epoch(epoch, parallel, tally)
            if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
                raise TrainingError(f"epoch {epoch} broke off: {self._cause()}; {self._kept()}")
            with self._averaged():
                accuracy, certified = self.evaluate()
        except (SplittingError, LinAlgError) as error:
            raise TrainingError(f"epoch {epoch} broke off: {error}; {self._cause()}; {self._kept()}") from None
        return self._row(epoch, tally, accuracy, certified, time.perf_counter() - started)

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Test accuracy, and the share certified at the training radius by the training constants (an estimate).

        Returns:
            Both shares.
        """
        self.model.eval()
        tally = Tally(self.device)
        constants, progress = self._constants(), Progress(self.config.radius, self.config.logit_scale, 1.0)
        with self._solvers() as solvers:
            self._tune(solvers)
            for images, labels in self.test:
                logits = self.model(images)
                _, excess = self.loss.of_batch(self.model, images, labels, logits, constants, progress)
                tally.add(right=(logits.argmax(1) == labels).sum(), certified=(excess > 0).sum(), count=len(labels))
        return tally.ratio("right", "count"), tally.ratio("certified", "count")

    def _constants(self) -> Tensor:
        """Those of the gaps of two logits; nobody asks for them where the radius is 0."""
        return self.loss.constants(self.model) if self.config.radius else self._no_constants

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The network with its average weights, where there are any: what is tested and published."""
        kept = {name: self.model.get_parameter(name).detach().clone() for name in self.averages}
        _assign(self.model, self.averages)
        try:
            yield
        finally:
            _assign(self.model, kept)

    @contextmanager
    def _solvers(self) -> Iterator[list[tuple[SolvedPiece, Solver]]]:
        """The layers that solve with their solvers, which they have again after the block."""
        solvers = [(layer, layer.solver) for layer in self.model.solved()]
        try:
            yield solvers
        finally:
            for layer, solver in solvers:
                layer.solver = solver

    @contextmanager
    def _watched(self, monitor: Monitor | None) -> Iterator[None]:
        """The layers that solve with a monitor, if any, instead of a warning per solve, and as they were after."""
        kept = [(layer, layer.monitor, layer.on_failure) for layer in self.model.solved()]
        for layer, _, _ in kept:
            layer.monitor, layer.on_failure = monitor, "return"
        try:
            yield
        finally:
            for layer, before, on_failure in kept:
                layer.monitor, layer.on_failure = before, on_failure

    def _train_epoch(self, epoch: int, parallel: torch.nn.Module, tally: Tally) -> None:
        self.model.train()
        first = (epoch - 1) * len(self.train)
        title = f"epoch {epoch}/{self.config.epochs}"
        # disable=None: silent where stderr is no terminal.
        hidden = None if distributed.is_main() else True
        with tqdm(self.train, title, disable=hidden, leave=False, unit="batch") as bar, self._solvers() as solvers:
            for step, (images, labels) in enumerate(bar, start=first):
                # Weights change fastest at first.
                if step == first or step.bit_count() == 1:
                    self._tune(solvers)
                self._step(step, parallel, self._augment(images), labels, tally)
                if (step - first) % _STEPS_PER_READ == 0 or step + 1 == first + len(self.train):
                    self._read(epoch, tally, bar)

    @torch.no_grad()
    def _tune(self, solvers: list[tuple[SolvedPiece, Solver]]) -> None:
        """Give every layer its solver with the step tuned to the weights as they are, and to what reaches the layer.

        Any step converges; one that is tuned now and then saves a good part of the steps. It is a function of weights
        that a resumed run has at the same time, so that run takes the same one.
        """
        with self._watched(None), ExitStack() as hooks:
            for layer, solver in solvers:
                layer.solver = solver
                hooks.callback(layer.register_forward_pre_hook(_tune_to_inputs).remove)
            self.model(self._samples)

    def _step(self, step: int, parallel: torch.nn.Module, images: Tensor, labels: Tensor, tally: Tally) -> None:
        config = self.config
        logits = parallel(images)
        progress, constants = config.progress(step, len(self.train)), self._constants()
        loss, excess = self.loss.of_batch(self.model, images, labels, logits, constants, progress)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate(step, len(self.train))
            optimizer.step()
        with torch.no_grad():
            share = config.average_share(step, len(self.train))
            for name, average in self.averages.items():
                average.lerp_(self.model.get_parameter(name), share)
            tally.add(
                loss=loss.detach() * len(labels),
                right=(logits.argmax(1) == labels).sum(),
                certified=(excess > 0).sum(),
                count=len(labels),
            )

    def _augment(self, images: Tensor) -> Tensor:
        """Images mirrored or not, moved by up to `shift` pixels with zeros moving in, by the run's own generator."""
        reach = self.config.shift
        count, _, height, width = images.shape
        if self.config.flip:
            mirrored = torch.rand(count, 1, 1, 1, generator=self.generator, device="cpu") < 0.5
            images = torch.where(mirrored.to(images.device), images.flip(3), images)
        if reach == 0:
            return images
        offsets = torch.randint(2 * reach + 1, (2, count, 1), generator=self.generator, device="cpu").to(images.device)
        rows = offsets[0] + torch.arange(height, device=images.device)
        columns = offsets[1] + torch.arange(width, device=images.device)
        padded = functional.pad(images, (reach,) * 4)
        sample = torch.arange(count, device=images.device)[:, None, None]
        return padded.movedim(1, -1)[sample, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)

    def _read(self, epoch: int, tally: Tally, bar: tqdm) -> None:
        loss = float(tally.sums["loss"] / tally.sums["count"])
        if loss != loss or abs(loss) == float("inf"):
            raise TrainingError(f"the loss became {loss} in epoch {epoch}: {self._cause()}; {self._kept()}")
        bar.set_postfix_str(
            f"loss {loss:.3f}, accuracy {_share(tally, 'right'):.3f}, certified {_share(tally, 'certified'):.3f}, "
            f"steps {_steps(tally, 'forward'):.0f}+{_steps(tally, 'backward'):.0f}",
            refresh=False,
        )

    def _cause(self) -> str:
        bad = [name for name, p in self.model.named_parameters() if not bool(torch.isfinite(p).all())]
        if bad:
            return f"the weights {', '.join(bad)} are no longer finite; lower --lr or set --clip 1"
        return "the weights are finite but too large to solve or score with; lower --lr, set --clip 1 or raise --m"

    def _kept(self) -> str:
        return f"the weights after epoch {len(self.history)} are kept in {self.folder}"

    def _row(self, epoch: int, tally: Tally, accuracy: float, certified: float, seconds: float) -> Epoch:
        return Epoch(
            epoch=epoch,
            lr=self.optimizers[0].param_groups[0]["lr"],
            loss=tally.ratio("loss", "count"),
            train_accuracy=tally.ratio("right", "count"),
            test_accuracy=accuracy,
            certified_estimate=certified,
            forward_steps=tally.ratio("forward_steps", "forward_count"),
            backward_steps=tally.ratio("backward_steps", "backward_count"),
            forward_unconverged=tally.ratio("forward_missed", "forward_count"),
            backward_unconverged=tally.ratio("backward_missed", "backward_count"),
            seconds=seconds,
        )

    def _save(self, history: list[Epoch]) -> None:
        """Make the state after the last epoch of `history` the run's: the checkpoint decides, the weights follow."""
        if distributed.is_main():
            path = self.folder / checkpoint.NAME
            checkpoint.write(path, self.model, self.optimizers, self.generator, self.averages, history)
            self.publish()
        self.history = history
        distributed.wait()


def _tune_to_inputs(layer: Any, inputs: tuple[Tensor, ...]) -> None:
    """A hook: give a layer's solver the tuned step, or a power of two shorter one that saves steps for these inputs.

    The tuned step contracts fastest in the worst direction of all. Where few directions are like it, and the tolerance
    is that of training, a much shorter one is done sooner.
    """
    tuned = layer.tuned(layer.solver)
    if tuned == layer.solver:
        return  # a step of the user's, or a method that has none
    best, fewest = tuned, _steps_with(layer, tuned, inputs)
    for share in _SHARES:
        shorter = tuned.rescaled(share)
        steps = _steps_with(layer, shorter, inputs)
        if steps > _HOPELESS * fewest:
            break
        if _WORTH * steps < fewest:
            best, fewest = shorter, steps
    layer.solver = best


def _steps_with(layer: SolvedPiece, solver: Solver, inputs: tuple[Tensor, ...]) -> float:
    """The steps that a layer takes with a solver, all samples together. No hook is called."""
    counts: list[Tensor] = []
    layer.solver, layer.monitor = solver, lambda _, solution: counts.append(solution.steps.sum())
    layer.forward(*inputs)
    layer.monitor = None
    return float(sum(counts))


@torch.no_grad()
def _assign(model: Network, weights: dict[str, Tensor]) -> None:
    """Give some weights of a network other values, by name."""
    for name, value in weights.items():
        model.get_parameter(name).copy_(value)


def _warn_of_unconverged(row: Epoch) -> None:
    if row.forward_unconverged or row.backward_unconverged:
        warnings.warn(
            f"epoch {row.epoch}: {row.forward_unconverged:.2%} of forward and {row.backward_unconverged:.2%} of "
            "backward solves missed the tolerance; raise --max-steps, --tol or --m, or use --solver anderson",
            ConvergenceWarning,
            stacklevel=2,
        )


def _share(tally: Tally, name: str) -> float:
    return float(tally.sums[name] / tally.sums["count"])


def _steps(tally: Tally, role: str) -> float:
    """Steps per sample and solve; 0 for a network that solves nothing."""
    return float(tally.sums[f"{role}_steps"] / tally.sums[f"{role}_count"]) if f"{role}_count" in tally.sums else 0.0
