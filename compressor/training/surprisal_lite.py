"""Training of a smaller scorer: the first layers of a language model learn to say what the whole model says."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch

from kompakt.compressor.errors import ConfigError, ModelError
from kompakt.compressor.models.causal_lm import CausalLM, Dtype, load_causal_lm
from kompakt.compressor.models.devices import best_dtype
from kompakt.compressor.models.self_information import Row, rows_of
from kompakt.compressor.models.surprisal_lite import LiteSettings, Readout, save_surprisal_lite
from kompakt.compressor.training.master_weights import MasterWeights
from kompakt.compressor.training.run_folder import RunFolder, SavedState
from kompakt.compressor.training.surprisal_batches import ascending_batches, batch_of, endless_batches
from kompakt.compressor.training.surprisal_labels import Labelled
from kompakt.compressor.training.surprisal_student import Student, spearman, surprisal_loss

CURVE_FILE: Final = "curve.csv"
WEIGHTS_FOLDER: Final = "weights"
_LAST_RATE: Final = 0.05
_FACTORS: Final = {"readout.": 4.0}
"""The readout begins from nothing, the layers from what they are."""

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with what is done, how much it is in all, and what is being done."""


@dataclass(frozen=True, kw_only=True)
class LiteTraining:
    """How a smaller scorer is trained.

    Args:
        n_layers: How many layers of the base it has.
        window: The most tokens that it reads at once, the prefix token not counted.
        overlap: Tokens that the next window reads again; they count in the window before alone.
        d_correction: Width of the readout's hidden layer.
        tokens_per_step: Tokens of a batch, padding included.
        learning_rate: The highest of the layers; the readout's is 4 times that.
        warm_up_steps: Steps in which the rate rises; then it falls along a cosine to 5 % at ``max_tokens``.
        max_tokens: Tokens that count, over all epochs, after which training ends.
        max_minutes: After how long it ends in any case, calls before this one included, but not before the first
            step; None for no limit. The rate has not fallen to its end then.
        checkpoint_every: Steps after which the state is saved and the validation windows are scored.
        seed: Decides the order of the windows and the readout's first weights.

    Raises:
        ConfigError: If a value makes no sense.
    """

    n_layers: int = 10
    window: int = 512
    overlap: int = 64
    d_correction: int = 512
    tokens_per_step: int = 4096
    learning_rate: float = 4e-4
    warm_up_steps: int = 40
    max_tokens: int = 5_000_000
    max_minutes: float | None = None
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_layers", "window", "d_correction", "tokens_per_step", "max_tokens", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warm_up_steps", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.overlap < self.window:
            raise ConfigError(f"overlap must be in [0, window), got {self.overlap} with a window of {self.window}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate must be a number above 0, got {self.learning_rate}")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ConfigError(f"max_minutes must be a number above 0, got {self.max_minutes}")

    def rate(self, step: int, n_tokens: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: Which one, from 1 on.
            n_tokens: Tokens that counted, its own included.
        """
        warm_up = min(1.0, step / max(1, self.warm_up_steps))
        cosine = (1 + math.cos(math.pi * min(1.0, n_tokens / self.max_tokens))) / 2
        return self.learning_rate * warm_up * (_LAST_RATE + (1 - _LAST_RATE) * cosine)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One row of the curve.

    Args:
        step: Steps done.
        tokens: Tokens that counted.
        loss: Mean of the steps since the row before; None before the first step.
        spearman: Correlation of the ranks of the validation windows' tokens with the whole model's.
        learning_rate: That of the last step; 0 before the first.
        minutes: How long the run has taken, all calls together.
    """

    step: int
    tokens: int
    loss: float | None
    spearman: float
    learning_rate: float
    minutes: float


def train_surprisal_lite(
    labelled: Sequence[Labelled],
    folder: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str],
    settings: LiteTraining | None = None,
    validation: Sequence[Labelled],
    dtype: Dtype = "auto",
    device: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train a smaller scorer, from where its folder says that an earlier call was interrupted.

    The folder keeps the last checkpoint and the curve, ``curve.csv``. On one machine, a run that was interrupted
    ends with the weights of one that was not.

    Args:
        labelled: The windows to train on, scored by the whole model; see ``label``.
        folder: Where the run is kept.
        base: The whole model: a named model or a folder.
        settings: How it is trained.
        validation: Windows of other texts, by which the curve judges.
        dtype: Number format in which it computes; the weights are kept in fp32 in any case.
        device: A torch device; CUDA if there is one and None is given.
        progress: Told of each step.

    Returns:
        The folder of the weights, for ``recent_scorer`` and every option that names what scores.

    Raises:
        ConfigError: If there is nothing to train on or to validate by, the base reads no such windows, or the folder
            holds another run or other files, or is in use.
        ModelNotFoundError: If the base is not on this machine.
        ModelError: If it cannot be used, the run's files are damaged, or the loss is no number any more.
    """
    chosen = settings or LiteTraining()
    for name, windows in (("labelled", labelled), ("validation", validation)):
        if not any(map(len, windows)):
            raise ConfigError(f"{name} must hold some tokens")
    lm = load_causal_lm(base, dtype="float32", device=device)
    if chosen.window >= lm.context_length:
        raise ConfigError(
            f"window must be below {lm.context_length}, which {os.fspath(base)!r} reads with the prefix token, "
            f"got {chosen.window}"
        )
    working = best_dtype(torch.device(lm.device).type) if dtype == "auto" else getattr(torch, dtype)
    identity = _identity(lm, labelled, validation, chosen, working)
    with RunFolder(folder, identity) as run:
        training = _Training(lm, labelled, validation, chosen, working, run)
        training.run(progress)
        return training.write_weights(os.fspath(base))


def _identity(
    lm: CausalLM,
    labelled: Sequence[Labelled],
    validation: Sequence[Labelled],
    settings: LiteTraining,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Return everything that decides the weights, how long the run may take left out: it can be given more."""
    options = asdict(settings)
    del options["max_minutes"], options["checkpoint_every"]
    return {
        "base": lm.fingerprint,
        "labelled": _digest(labelled),
        "validation": _digest(validation),
        "dtype": str(dtype).removeprefix("torch."),
        **options,
    }


def _digest(labelled: Sequence[Labelled]) -> str:
    digest = hashlib.sha256()
    for one in labelled:
        digest.update(len(one).to_bytes(8, "little"))
        digest.update(one.ids.astype("<i8").tobytes())
        digest.update(one.nats.astype("<f4").tobytes())
    return digest.hexdigest()


class _Training:
    """The steps of a run, from where its folder says."""

    def __init__(
        self,
        lm: CausalLM,
        labelled: Sequence[Labelled],
        validation: Sequence[Labelled],
        settings: LiteTraining,
        dtype: torch.dtype,
        run: RunFolder,
    ) -> None:
        self._lm = lm
        self._labelled, self._validation = labelled, validation
        self._settings = settings
        self._run = run
        self._student = Student(
            lm, n_layers=settings.n_layers, d_correction=settings.d_correction, dtype=dtype, seed=settings.seed
        )
        self._weights = MasterWeights(self._student.trained(), self._student.first, factors=_FACTORS)
        self._step, self._tokens, self._rate = 0, 0, 0.0
        self._losses: list[float] = []
        self._curve: list[CurvePoint] = []
        self._began = time.monotonic()
        state = run.state()
        if state is None:
            self._judge()
        else:
            self._restore(state)

    def run(self, progress: Progress | None) -> None:
        """Do the steps that are missing, or those for which there is time.

        Raises:
            ModelError: If the loss is no number.
        """
        settings = self._settings
        most_minutes = math.inf if settings.max_minutes is None else settings.max_minutes
        rows = self._rows(self._labelled)
        batches = endless_batches(rows, max_tokens=settings.tokens_per_step, seed=settings.seed)
        for batch in islice(batches, self._step, None):
            is_late = self._step > 0 and self._minutes() >= most_minutes
            if is_late or self._tokens >= settings.max_tokens:
                break
            self._do(batch)
            if progress is not None:
                done = min(self._tokens, settings.max_tokens)
                progress(done, settings.max_tokens, f"tokens, loss {self._losses[-1]:.3f}")
            if self._step % settings.checkpoint_every == 0:
                self._save()
        if self._losses:
            self._save()

    def write_weights(self, base: str) -> Path:
        """Write what the steps so far have made, in place of what an earlier call wrote."""
        settings = self._settings
        readout = Readout(self._student.body.config.hidden_size, settings.d_correction)
        masters = {name: master.detach().cpu() for name, master in self._weights.masters.items()}
        own = {name.partition(".")[2]: value for name, value in masters.items() if name.startswith("readout.")}
        readout.load_state_dict(own)
        changes = {
            name.partition(".")[2]: value - self._student.first[name].cpu()
            for name, value in masters.items()
            if name.startswith("body.")
        }
        described = LiteSettings(
            base=base,
            base_fingerprint=self._lm.fingerprint,
            n_layers=settings.n_layers,
            window=settings.window,
            overlap=settings.overlap,
            d_correction=settings.d_correction,
        )
        with self._run.new_folder(WEIGHTS_FOLDER) as folder:
            save_surprisal_lite(folder, described, changes, readout)
        return self._run.path / WEIGHTS_FOLDER

    def _rows(self, labelled: Sequence[Labelled]) -> list[Row]:
        window = self._settings.window
        lengths = [len(one) for one in labelled]
        return rows_of(lengths, window=window, overlap=self._settings.overlap, longest=window)

    def _do(self, rows: Sequence[Row]) -> None:
        batch = batch_of(self._labelled, rows, prefix_id=self._lm.prefix_id, device=self._lm.model.device)
        loss = surprisal_loss(self._student(batch), batch.nats)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ModelError(
                f"the loss of step {self._step + 1} is {value}: try a smaller learning_rate in another folder"
            )
        # the stubs of torch do not say what it takes
        loss.backward()  # type: ignore[no-untyped-call]
        self._tokens += len(batch.nats)
        self._rate = self._settings.rate(self._step + 1, self._tokens)
        self._weights.step(self._rate)
        self._step += 1
        self._losses.append(value)

    def _judge(self) -> None:
        """Add a row to the curve."""
        predicted, wanted = [], []
        rows = self._rows(self._validation)
        with torch.no_grad():
            for group in ascending_batches(rows, max_tokens=self._settings.tokens_per_step):
                batch = batch_of(self._validation, group, prefix_id=self._lm.prefix_id, device=self._lm.model.device)
                predicted.append(self._student(batch).cpu().numpy())
                wanted.append(batch.nats.cpu().numpy())
        correlation = spearman(np.concatenate(predicted), np.concatenate(wanted))
        loss = float(np.mean(self._losses)) if self._losses else None
        self._losses = []
        self._curve.append(
            CurvePoint(self._step, self._tokens, loss, correlation, self._rate, round(self._minutes(), 4))
        )
        self._run.write_text(CURVE_FILE, _table(self._curve))

    def _save(self) -> None:
        self._judge()
        self._run.save(
            SavedState(self._step, {"curve": [asdict(point) for point in self._curve]}, self._weights.tensors())
        )

    def _restore(self, state: SavedState) -> None:
        try:
            self._curve = [CurvePoint(**point) for point in state.record["curve"]]
            last = self._curve[-1]
        except (LookupError, TypeError) as error:
            raise ModelError(
                f"the checkpoint in {self._run.path} is damaged: {error!r}; give another folder"
            ) from error
        self._weights.restore(state.tensors)
        self._step, self._tokens, self._rate = state.step, last.tokens, last.learning_rate
        self._began -= 60 * last.minutes
        # rows that were written for a checkpoint that was not
        self._run.write_text(CURVE_FILE, _table(self._curve))

    def _minutes(self) -> float:
        return (time.monotonic() - self._began) / 60


def _table(curve: Sequence[CurvePoint]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(CurvePoint.__slots__)
    # an absent loss is an empty cell
    table.writerows([getattr(point, name) for name in CurvePoint.__slots__] for point in curve)
    return text.getvalue()
