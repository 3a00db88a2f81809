"""Rivals that are variational autoencoders, after their papers, and their training."""

from collections.abc import Callable

import numpy as np
import torch

from compute.dictionaries.fit import shuffled_batches

HIDDEN = 64
BATCH = 256
RATE = 5e-3


def network(inputs: int, outputs: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, outputs)
    )


class VariationalAutoencoder(torch.nn.Module):
    """Rows (n, d) are decoded from (n, c) normal latents, with normal noise of their own scale."""

    def __init__(self, d: int, c: int) -> None:
        super().__init__()
        self.encoder = network(d, 2 * c)
        self.decoder = network(c, d)
        self.log_noise = torch.nn.Parameter(torch.full((d,), -1.0))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Rows (n, d) of latents (n, c)."""
        return self.decoder(z)

    def bound(self, x: torch.Tensor) -> torch.Tensor:
        """The evidence lower bound per row, in nats and up to a constant."""
        mean, log_sd = self.encoder(x).chunk(2, dim=1)
        z = mean + log_sd.exp() * torch.randn_like(mean)
        error = (x - self.decode(z)) / self.log_noise.exp()
        fit = 0.5 * error.square().sum(1) + self.log_noise.sum()
        divergence = 0.5 * (mean.square() + (2 * log_sd).exp() - 1 - 2 * log_sd).sum(1)
        return -(fit + divergence).mean()

    def loss(self, x: torch.Tensor, n_rows: int) -> torch.Tensor:
        """What is minimised over a batch (b, d) of ``n_rows`` rows."""
        return -self.bound(x)

    @torch.no_grad()
    def directions(self, z: torch.Tensor) -> torch.Tensor:
        """Mean slopes (c, d) of the decoder over latents (n, c)."""
        ahead, behind = ([self.decode(z + s * e) for e in torch.eye(z.shape[1])] for s in (1, -1))
        return torch.stack([(a - b).mean(0) / 2 for a, b in zip(ahead, behind)])


class SparseVAE(VariationalAutoencoder):
    """Coordinate i is ``f_i(w_i ⊙ z)`` plus noise, ``w`` (d, c) under a spike-and-slab lasso.

    Moran et al. 2022 (2110.10804).
    """

    # The paper's: rates of spike and slab, and the prior of a column's share of slabs.
    SPIKE, SLAB = 10.0, 1.0

    def __init__(self, d: int, c: int) -> None:
        super().__init__(d, c)
        self.masks = torch.nn.Parameter(torch.rand(d, c))
        self.register_buffer("share", torch.full((c,), 0.5))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        d = len(self.masks)
        out = self.decoder(z[:, None, :] * self.masks)
        return out[:, torch.arange(d), torch.arange(d)]

    def loss(self, x: torch.Tensor, n_rows: int) -> torch.Tensor:
        with torch.no_grad():
            size = self.masks.abs()
            slab = self.share * self.SLAB * (-self.SLAB * size).exp()
            spike = (1 - self.share) * self.SPIKE * (-self.SPIKE * size).exp()
            slabs = slab / (slab + spike)
            c = len(self.share)
            self.share.copy_(slabs.sum(0).div(len(size) + c - 1).clamp(1e-3, 1 - 1e-3))
        penalty = (slabs * self.SLAB + (1 - slabs) * self.SPIKE) * self.masks.abs()
        # The prior of the masks is paid once, so a row pays its share of it.
        return penalty.sum() / n_rows - self.bound(x)


class CausalExplanation(VariationalAutoencoder):
    """The first latents have as much causal effect as they can on what a classifier says.

    O'Shaughnessy et al. 2020 (2006.13913): I(alpha; Y) + lambda × bound is maximised, where alpha
    are the ``c`` causal latents, which come first, and rows of all latents are decoded and
    classified to estimate the mutual information.
    """

    # The paper's numbers of draws, of causal latents and of others for each of these.
    CAUSAL_DRAWS, OTHER_DRAWS = 100, 25
    OTHERS = 2
    # Lambda: best of 0.01, 0.05 (the paper's), 0.2 and 1 by mean score over two worlds.
    FIDELITY = 0.2

    def __init__(self, d: int, c: int, classifier: torch.nn.Module) -> None:
        super().__init__(d, c + self.OTHERS)
        self.causal = c
        self.classify: Callable[[torch.Tensor], torch.Tensor] = classifier

    def information(self) -> torch.Tensor:
        """Mutual information of causal latents and class in nats, by Monte Carlo."""
        causal = torch.randn(self.CAUSAL_DRAWS, 1, self.causal)
        others = torch.randn(self.CAUSAL_DRAWS, self.OTHER_DRAWS, self.OTHERS)
        z = torch.cat([causal.expand(-1, self.OTHER_DRAWS, -1), others], 2)
        given = self.classify(self.decode(z.flatten(0, 1))).softmax(1)
        given = given.unflatten(0, z.shape[:2]).mean(1).clamp(min=1e-9)
        marginal = given.mean(0)
        return (given * given.log()).sum(1).mean() - (marginal * marginal.log()).sum()

    def loss(self, x: torch.Tensor, n_rows: int) -> torch.Tensor:
        return -self.information() - self.FIDELITY * self.bound(x)


def train(module: torch.nn.Module, loss: Callable, rows: tuple, steps: int, seed: int) -> None:
    """Minimise the loss of batches of aligned tensors; the learning rate falls to 0."""
    optimiser = torch.optim.Adam(module.parameters(), lr=RATE)
    places = torch.arange(len(rows[0]))
    for step, batch in enumerate(shuffled_batches(places, BATCH, steps, seed)):
        optimiser.param_groups[0]["lr"] = RATE * min(1.0, 2 - 2 * step / steps)
        optimiser.zero_grad()
        loss(*(own[batch] for own in rows)).backward()
        optimiser.step()


def train_classifier(
    rows: torch.Tensor, labels: torch.Tensor, steps: int, seed: int
) -> torch.nn.Module:
    """A network that says which label (n,) rows (n, d) have; its weights are fixed."""
    classifier = network(rows.shape[1], int(labels.max()) + 1)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(classifier(x), y)

    train(classifier, loss, (rows, labels), steps, seed)
    return classifier.requires_grad_(False)


def sparse_vae(rows: torch.Tensor, seed: int, c: int) -> SparseVAE:
    """A sparse VAE with ``c`` latents for rows (n, d)."""
    return SparseVAE(rows.shape[1], c)


def causal_explanation(
    rows: torch.Tensor, seed: int, c: int, labels: torch.Tensor, steps: int
) -> CausalExplanation:
    """Explains, by ``c`` latents, a classifier that is trained here on rows (n, d) and labels."""
    return CausalExplanation(rows.shape[1], c, train_classifier(rows, labels, steps, seed))


Build = Callable[[torch.Tensor, int], VariationalAutoencoder]


def explain(
    x: np.ndarray,
    build: Build,
    n_concepts: int,
    steps: int,
    seed: int,
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Directions (c, d) and the encoder of what is built for normalised rows, and trained."""
    torch.manual_seed(seed)
    rows = torch.from_numpy(x)
    mean, scale = rows.mean(0), float((rows - rows.mean(0)).square().mean().sqrt())
    rows = (rows - mean) / scale
    vae = build(rows, seed)
    train(vae, lambda batch: vae.loss(batch, len(rows)), (rows,), steps, seed)

    @torch.no_grad()
    def latents(some: torch.Tensor) -> torch.Tensor:
        return vae.encoder(some).chunk(2, dim=1)[0]

    def encode(other: np.ndarray) -> np.ndarray:
        return latents((torch.from_numpy(other) - mean) / scale)[:, :n_concepts].numpy()

    return vae.directions(latents(rows[:512]))[:n_concepts].numpy(), encode
