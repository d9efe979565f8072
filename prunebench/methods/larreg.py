"""LaRReg, then magnitude pruning of a debiased network: a self-supervised encoder of low rank is biased, and mines.

(1) A biased encoder learns without labels, by SimCLR less `rank_weights` times the mean squared correlation of two
different features: correlated features are few features, and the first that are learned are those of the bias. (2) A
linear head on it, all else frozen, marks the training samples that it gets wrong; with several `rank_weights`, those
whose missing probability, averaged over the encoders, is above `cutoff`. (3) The main network learns by SimCLR alone,
then with labels, marked samples drawn `upweight` times as often; pruned, it is fine-tuned so.

Weights, temperature, projector and views are those of the released UTKFace runs, which begin from ImageNet and take
Adam at 3e-4 for 100 epochs; here all stages begin anew and have the recipe's steps and optimizer. The released runs
give labels to the head alone or to a tenth of the samples; here the whole network learns from all. C has twice as many
rows as it is divided by, as released: its diagonal is 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.data.augmentation import random_view
from prunebench.methods.api import method
from prunebench.methods.dcwp import missing_probability
from prunebench.methods.experiment import Experiment, Pruned, state_of
from prunebench.models import Classifier
from prunebench.training.loop import Batch, Objective, capturable

PARK = "Park et al., CVPR 2024 (Self-supervised debiasing using low rank regularization)"
VIEWS = 2
"""Of each image in a step, which so costs as many."""


@dataclass(frozen=True)
class LowRankDebiasing:
    rank_weights: Sequence[float] = (0.1,)
    """Of the rank term; one encoder each. Published together: 0, 0.1, 0.3, 0.5 and 1."""
    cutoff: float = 0.47
    upweight: float = 10.0
    temperature: float = 0.07
    projection: int = 128
    grey: float = 0.2
    """The share of views without colour."""

    def __post_init__(self) -> None:
        if not isinstance(self.rank_weights, Sequence) or not self.rank_weights or min(self.rank_weights) < 0:
            raise ValueError("want rank_weights of at least 0, one or more, as a list: [0.1]")
        if min(self.upweight, self.temperature, self.projection) <= 0:
            raise ValueError("want upweight, temperature and projection above 0")
        if not (0 <= self.cutoff <= 1 and 0 <= self.grey <= 1):
            raise ValueError("want cutoff and grey from 0 to 1")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        state, mined = self.debiased(experiment)
        experiment.report_mining(mined)
        model = experiment.model_from(state)
        masks = experiment.prune(model, sparsity)
        return experiment.finetune(model, masks, sample_weight=self.drawing(mined))

    def debiased(self, experiment: Experiment) -> tuple[dict[str, Tensor], Tensor]:
        """The main network's weights, and which samples were mined, bool `[N]`: found once for all sparsities."""
        found = experiment.shared("mined", lambda: {"wrong": self._mine(experiment).byte()}, owner="larreg")
        mined = found["wrong"].bool()
        return experiment.shared("debiased", lambda: self._train(experiment, mined), owner="larreg"), mined

    def drawing(self, mined: Tensor) -> Tensor:
        """How often each sample is drawn, `[N]`."""
        return 1 + (self.upweight - 1) * mined.float()

    def _mine(self, experiment: Experiment) -> Tensor:
        logits = [self._probe(experiment, weight) for weight in self.rank_weights]
        y = experiment.train_split.y
        if len(logits) == 1:
            return logits[0].argmax(1) != y
        return torch.stack([missing_probability(each, y) for each in logits]).mean(0) > self.cutoff

    def _probe(self, experiment: Experiment, rank_weight: float) -> Tensor:
        """Logits `[N, C]` of a linear head on a biased encoder; its BatchNorm sees plain images, as released."""
        encoder = experiment.new_model("biased")
        self.pretrain(experiment, encoder, rank_weight)

        @capturable
        def objective(net: nn.Module, batch: Batch) -> Tensor:
            assert isinstance(net, Classifier)
            with torch.no_grad():
                features = net.features(batch.x)
            return functional.cross_entropy(net.head(features).float(), batch.y)

        experiment.train(
            encoder,
            steps=experiment.recipe.steps,
            name="probe",
            objective=objective,
            parameters=list(encoder.head.parameters()),
        )
        return experiment.predict(encoder)

    def _train(self, experiment: Experiment, mined: Tensor) -> dict[str, Tensor]:
        model = experiment.new_model()
        self.pretrain(experiment, model, 0.0)
        experiment.train(
            model, steps=experiment.recipe.steps, name="upweighted", sample_weight=self.drawing(mined)
        )
        return state_of(model)

    def pretrain(self, experiment: Experiment, model: Classifier, rank_weight: float) -> None:
        """Train all but the head of a network without labels, in place."""
        learner = Projected(model, self.projection, experiment.rng("larreg/projector")).to(experiment.device)
        experiment.train(
            learner,
            steps=experiment.recipe.steps,
            name="contrastive",
            objective=self.objective(experiment, rank_weight),
            networks=VIEWS,
        )

    def objective(self, experiment: Experiment, rank_weight: float) -> Objective:
        """The loss of a `Projected` network."""
        images, generator = experiment.train_split.images, experiment.device_rng("larreg/views")

        def loss(learner: nn.Module, batch: Batch) -> Tensor:
            assert isinstance(learner, Projected)
            pixels = images.pixels(batch.x)
            views = [random_view(pixels, generator, grey=self.grey) for _ in range(VIEWS)]
            features = learner.net.features(images.normalised(torch.cat(views)))
            contrast = nt_xent(learner.projector(features), self.temperature)
            return contrast - rank_weight * mean_squared_correlation(features) if rank_weight else contrast

        return loss


class Projected(nn.Module):
    """A network, and a projector on its features for contrastive learning; its head is not trained."""

    def __init__(self, net: Classifier, size: int, generator: torch.Generator) -> None:
        super().__init__()
        width = net.head.in_features
        self.net = net
        self.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, size))
        with torch.no_grad():
            for value in self.projector.parameters():
                value.uniform_(-(width**-0.5), width**-0.5, generator=generator)


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss of projections `[2 B, P]`; rows i and B + i are views of one image.

    The mean over rows of -log(exp(z_i z_j / t) / sum_{a != i} exp(z_i z_a / t)), z of length 1, j the other view.
    Source: Chen et al. (2020).
    """
    z = functional.normalize(z.float(), dim=1)
    with torch.autocast(z.device.type, enabled=False):
        similarity = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    other = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return functional.cross_entropy(similarity.masked_fill(itself, -torch.inf), other)


def mean_squared_correlation(features: Tensor) -> Tensor:
    """The sum over i != j of C_ij^2 / F^2 of features `[2 B, F]`, C = f'f / B, f standardised over the rows."""
    f = functional.batch_norm(features.float(), None, None, training=True)
    with torch.autocast(f.device.type, enabled=False):
        squared = (f.T @ f / (len(f) / VIEWS)).square()
    return (squared.sum() - squared.diagonal().sum()) / f.shape[1] ** 2


larreg = method("larreg", cite=f"{PARK}; pruned by magnitude")(LowRankDebiasing)
larreg_dense = method("larreg-dense", cite=f"{PARK}; not pruned", unpruned=True)(LowRankDebiasing)
