"""Training one dictionary on a stream of batches, with a resume that loses no bit."""

import json
from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from safetensors.torch import load, save
from torch import Tensor

from compute.dictionaries.architectures import Normalization, architecture_named
from compute.dictionaries.dictionary import Dictionary
from compute.dictionaries.dictionary_settings import DictionarySettings
from compute.dictionaries.normalization import estimate_normalization, estimate_whitening
from compute.dictionaries.workers import ALONE, Workers

# Everything else that is not a scalar has one row or number per concept.
_PER_DIMENSION = {"decoder_bias", "mean", "into", "back"}

# How fast a concept's usefulness forgets: a memory of about a hundred batches.
_USEFULNESS_RATE = 0.01


class StepMetrics(NamedTuple):
    """What one optimiser step saw. Scalars stay tensors: reading one waits for the device.

    ``explained_variance`` is of this batch, under the weights before the step.
    """

    step: int
    learning_rate: float
    loss: Tensor
    aux_loss: Tensor
    explained_variance: Tensor
    l0: Tensor
    dead_share: Tensor


class DictionaryTrainer:
    """Trains a dictionary batch by batch.

    Parameters
    ----------
    settings
        How to train.
    mean, scale
        Centre (d,) and scale of the activations, in their units. Left out, they are estimated
        from the first batch; whitened activations have the scale 1 whatever is given.
    normalization
        The map under which rows are seen, instead of both: as from the moments of all rows, of
        which the first batch tells little.
    device
        Where to train; batches are moved there.
    workers
        Who else trains the same dictionary on other rows of each batch.
    """

    def __init__(
        self,
        settings: DictionarySettings,
        *,
        mean: Tensor | None = None,
        scale: float | None = None,
        normalization: Normalization | None = None,
        device: str | torch.device = "cpu",
        workers: Workers = ALONE,
    ) -> None:
        self.settings = settings
        self._workers = workers
        self.device = torch.device(device)
        self.steps_done = 0
        self._architecture = architecture_named(settings.architecture)
        self._given = (mean, scale, normalization)
        self._started = False

    def step(self, batch: Tensor) -> StepMetrics:
        """Take one optimiser step on a batch of activations (b, d).

        Raises
        ------
        ValueError
            If the batch is not (b, d) with the d of earlier batches, or holds a value that is
            not finite.
        """
        batch = batch.detach().to(self.device, torch.float32)
        self._check(batch)
        if not self._started:
            self._start(batch)
        if self.steps_done == self.settings.spare_until:
            self._drop_spare()
        rows = self.normalization.rows(batch)
        dead = self.dead
        gradients = self._architecture.gradients(
            self.parameters, self.buffers, rows, dead, self.settings
        )
        gradients = self._workers.combine(gradients)
        self._workers.average(self.buffers.values())
        n_rows = len(batch) * self._workers.size
        learning_rate = self.settings.learning_rate_at(self.steps_done)
        self._update(gradients.by_parameter, learning_rate)
        self.rows_since_fired += n_rows
        self.rows_since_fired[gradients.fired > 0] = 0
        self.usefulness.lerp_(gradients.usefulness / n_rows, _USEFULNESS_RATE)
        self.steps_done += 1
        return StepMetrics(
            step=self.steps_done,
            learning_rate=learning_rate,
            loss=gradients.loss,
            aux_loss=gradients.aux_loss,
            explained_variance=1 - gradients.loss / _variance(rows),
            l0=gradients.fired.sum() / n_rows,
            dead_share=dead.float().mean(),
        )

    @property
    def dead(self) -> Tensor:
        """(n,) bool: which concepts have not fired for as long as the settings allow."""
        return self.rows_since_fired > self.settings.rows_until_dead()

    @property
    def dictionary(self) -> Dictionary:
        """The dictionary as it stands, in the units of the activations.

        Raises
        ------
        ValueError
            If no step was taken yet.
        """
        if not self._started:
            raise ValueError("the trainer has seen no batch yet: call step before dictionary")
        kept = self._most_useful()
        name, weights = self._architecture.publish(
            _select(self.parameters, kept), _select(self.buffers, kept), self.normalization
        )
        return Dictionary(name, weights, k=self.settings.k)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of every tensor that decides the rest of the run, by dotted name.

        Raises
        ------
        ValueError
            If no step was taken yet.
        """
        if not self._started:
            raise ValueError("the trainer has seen no batch yet: call step before state_dict")
        moments = {
            f"{moment}.{name}": self._optimizer.state[tensor][moment]
            for name, tensor in self.parameters.items()
            for moment in ("exp_avg", "exp_avg_sq", "step")
        }
        state = {
            **{f"parameters.{name}": tensor for name, tensor in self.parameters.items()},
            **{f"buffers.{name}": tensor for name, tensor in self.buffers.items()},
            **moments,
            **{
                name: tensor
                for name, tensor in self.normalization._asdict().items()
                if tensor is not None
            },
            "rows_since_fired": self.rows_since_fired,
            "usefulness": self.usefulness,
            "steps_done": torch.tensor(self.steps_done),
        }
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the tensors of :meth:`state_dict`; the next step is the one that followed it.

        Raises
        ------
        ValueError
            If the state belongs to other settings.
        """
        n, d = state["parameters.decoder"].shape
        settings = self.settings
        spare = (
            settings.spare_concepts(d) if int(state["steps_done"]) <= settings.spare_until else 0
        )
        if n != settings.n_concepts + spare:
            raise ValueError(
                f"the state holds {n} concepts where the settings lead to"
                f" {settings.n_concepts + spare}: load it with the settings it was made with"
            )
        self._adopt({name: tensor.to(self.device, copy=True) for name, tensor in state.items()})

    def checkpoint(self) -> bytes:
        """Settings and state as one safetensors file, settings as JSON in its metadata."""
        tensors = {name: tensor.cpu() for name, tensor in self.state_dict().items()}
        return save(tensors, metadata={"settings": self.settings.model_dump_json()})

    @classmethod
    def from_checkpoint(
        cls, data: bytes, device: str | torch.device = "cpu", workers: Workers = ALONE
    ) -> Self:
        """A trainer that goes on where :meth:`checkpoint` was called."""
        header_length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_length])
        settings = DictionarySettings.model_validate_json(header["__metadata__"]["settings"])
        trainer = cls(settings, device=device, workers=workers)
        trainer.load_state_dict(load(data))
        return trainer

    def _check(self, batch: Tensor) -> None:
        d = self.parameters["decoder"].shape[1] if self._started else batch.shape[-1]
        if batch.ndim != 2 or batch.shape[1] != d or len(batch) == 0:
            expected = f"(rows, {d})" if self._started else "(rows, d) with at least one row"
            raise ValueError(f"batch has shape {tuple(batch.shape)}: pass {expected}")
        if not bool(torch.isfinite(batch.sum())):
            raise ValueError("batch holds values that are not finite: drop those rows first")

    def _start(self, batch: Tensor) -> None:
        # Every worker must start from the same place, so each looks at the whole first batch.
        batch = self._workers.gather(batch)
        mean, scale, given = self._given
        if given is not None:
            moved = (None if own is None else own.to(self.device) for own in given)
            estimated = Normalization(*moved)  # type: ignore[arg-type]
        elif self.settings.whiten:
            estimated = estimate_whitening(batch)
        else:
            estimated = estimate_normalization(batch)
            if scale is not None:
                estimated = estimated._replace(scale=torch.tensor(scale, device=self.device))
        if mean is not None:
            estimated = estimated._replace(mean=mean.to(self.device, torch.float32))
        self.normalization = estimated
        generator = torch.Generator().manual_seed(self.settings.seed)
        rows = self.normalization.rows(batch)
        n = self.settings.n_concepts + self.settings.spare_concepts(rows.shape[1])
        self.parameters = self._architecture.parameters(n, rows, self.settings, generator)
        self.buffers = self._architecture.buffers(self.parameters, rows, self.settings)
        self.rows_since_fired = torch.zeros(n, dtype=torch.int64, device=self.device)
        self.usefulness = torch.zeros(n, device=self.device)
        self._optimizer = _adam(self.parameters)
        self._started = True

    def _most_useful(self) -> Tensor:
        """Indices of the ``n_concepts`` most useful concepts, ascending."""
        return self.usefulness.topk(self.settings.n_concepts).indices.sort().values

    def _drop_spare(self) -> None:
        if len(self.usefulness) > self.settings.n_concepts:
            self._adopt(_select(self.state_dict(), self._most_useful()))

    def _adopt(self, state: Mapping[str, Tensor]) -> None:
        self.parameters = _part(state, "parameters")
        self.buffers = _part(state, "buffers")
        self.normalization = Normalization(
            state["mean"], state["scale"], state.get("into"), state.get("back")
        )
        self.rows_since_fired = state["rows_since_fired"]
        self.usefulness = state["usefulness"]
        self.steps_done = int(state["steps_done"])
        self._optimizer = _adam(self.parameters)
        for name, tensor in self.parameters.items():
            self._optimizer.state[tensor] = {
                moment: state[f"{moment}.{name}"] for moment in ("step", "exp_avg", "exp_avg_sq")
            }
        self._started = True

    def _update(self, gradients: Mapping[str, Tensor], learning_rate: float) -> None:
        for name, tensor in self.parameters.items():
            tensor.grad = gradients[name]
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()
        decoder = self.parameters["decoder"]
        decoder.div_(torch.linalg.vector_norm(decoder, dim=1, keepdim=True).clamp(min=1e-12))


def _select(tensors: Mapping[str, Tensor], kept: Tensor) -> dict[str, Tensor]:
    """Only the ``kept`` concepts of every tensor that holds something per concept."""
    return {
        name: tensor
        if tensor.ndim == 0 or name.rpartition(".")[2] in _PER_DIMENSION
        else tensor[kept]
        for name, tensor in tensors.items()
    }


def _adam(parameters: Mapping[str, Tensor]) -> torch.optim.Adam:
    return torch.optim.Adam(parameters.values(), fused=True)


def _variance(rows: Tensor) -> Tensor:
    """Mean variance per coordinate; torch's own reduction over rows takes ten times as long."""
    return rows.square().mean() - rows.mean(0).square().mean()


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in state.items()
        if name.startswith(f"{prefix}.")
    }
