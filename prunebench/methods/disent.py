"""DisEnt, then magnitude pruning with its sample weights: an intrinsic encoder apart from a bias encoder.

Two networks train together, E_i and E_b, each with a head that sees both features, [z_i, z_b]; no gradient passes to
the other's. The bias head learns by generalised cross-entropy, the intrinsic head by cross-entropy with LfF's weights
of samples. From a fifth of the steps on (10,000 of 50,000) z_b is permuted within the batch as well: the intrinsic head
keeps its labels, the bias head takes those of the permuted features. The losses weigh as published for Colored MNIST:
loss_i + 10 loss_b + 1 (swapped loss_i + 10 swapped loss_b). The learning rate is the recipe's.

The published network answers with both encoders, twice the network of the task. What is kept here is the intrinsic
encoder and its part of the head; z_b is replaced by its mean over the training images. It is pruned by magnitude and
fine-tuned with the final sample weights, which is not of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned, state_of
from prunebench.models import Classifier
from prunebench.training.loop import Batch, Objective
from prunebench.training.losses import RelativeDifficulty, generalised_cross_entropy, weighted_cross_entropy

LEE = "Lee et al., 2021 (Learning debiased representation via disentangled feature augmentation)"


@dataclass(frozen=True)
class Disentangled:
    swap_from: float = 0.2
    """The share of the steps after which bias features are permuted."""
    lambda_bias: float = 10.0
    lambda_swap: float = 1.0
    lambda_swap_bias: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.swap_from <= 1:
            raise ValueError(f"swap_from: want a share of the steps, got {self.swap_from:g}")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        state = self.debiased(experiment)
        weights = state.pop("sample_weights")
        model = experiment.model_from(state)
        masks = experiment.prune(model, sparsity)
        return experiment.finetune(model, masks, objective=weighted_cross_entropy(weights))

    def debiased(self, experiment: Experiment) -> dict[str, Tensor]:
        """The weights of the network that is kept, and `sample_weights` `[N]`: found once for all sparsities."""
        return experiment.shared("disentangled", lambda: self._train(experiment), owner="disent")

    def _train(self, experiment: Experiment) -> dict[str, Tensor]:
        pair = TwoEncoders(
            experiment.new_model(), experiment.new_model("biased"), experiment.rng("disent/heads")
        )
        pair.to(experiment.device)
        difficulty = RelativeDifficulty(experiment.train_split.y, experiment.num_classes)
        objective = self.objective(difficulty, experiment)
        experiment.train(pair, steps=experiment.recipe.steps, name="dense", objective=objective, networks=2)
        mean = experiment.features(pair.biased, experiment.train_split).mean(0)
        weights = difficulty.all_weights().float()
        return {**state_of(pair.kept(mean)), "sample_weights": weights}

    def objective(self, difficulty: RelativeDifficulty, experiment: Experiment) -> Objective:
        """The loss of a `TwoEncoders`; takes the losses of every batch into `difficulty`."""
        swap_at = round(self.swap_from * experiment.recipe.steps)
        generator = experiment.rng("disent/swaps")

        def loss(pair: nn.Module, batch: Batch) -> Tensor:
            assert isinstance(pair, TwoEncoders)
            own, other = pair.intrinsic.features(batch.x), pair.biased.features(batch.x)
            intrinsic, biased = pair.answers(own, other)
            losses = [functional.cross_entropy(z, batch.y, reduction="none") for z in (intrinsic, biased)]
            weight = difficulty.update(batch.index, losses[1], losses[0])
            total = (weight * losses[0]).mean()
            total = total + self.lambda_bias * generalised_cross_entropy(biased, batch.y).mean()
            if batch.step < swap_at:
                return total
            order = torch.randperm(len(batch.y), generator=generator).to(batch.y.device)
            intrinsic, biased = pair.answers(own, other[order])
            swapped = (weight * functional.cross_entropy(intrinsic, batch.y, reduction="none")).mean()
            swapped_bias = generalised_cross_entropy(biased, batch.y[order]).mean()
            return total + self.lambda_swap * (swapped + self.lambda_swap_bias * swapped_bias)

        return loss


class TwoEncoders(nn.Module):
    """Two networks of the task, and two heads on both their features; their own heads are not trained."""

    def __init__(self, intrinsic: Classifier, biased: Classifier, generator: torch.Generator) -> None:
        super().__init__()
        self.intrinsic, self.biased = intrinsic, biased
        classes, features = intrinsic.head.weight.shape
        self.heads = nn.ModuleList([nn.Linear(2 * features, classes) for _ in range(2)])
        bound = (2 * features) ** -0.5
        with torch.no_grad():
            for value in self.heads.parameters():
                value.uniform_(-bound, bound, generator=generator)

    def answers(self, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[B, C]` of the intrinsic and of the bias head for features `[B, F]` of both encoders."""
        intrinsic = self.heads[0](torch.cat([own, other.detach()], 1)).float()
        return intrinsic, self.heads[1](torch.cat([own.detach(), other], 1)).float()

    @torch.no_grad()
    def kept(self, mean: Tensor) -> Classifier:
        """The intrinsic network with its part of the intrinsic head, as if the bias features were `mean` `[F]`."""
        head = self.heads[0]
        features = self.intrinsic.head.in_features
        self.intrinsic.head.weight.copy_(head.weight[:, :features])  # type: ignore[index]
        self.intrinsic.head.bias.copy_(head.bias + head.weight[:, features:] @ mean)  # type: ignore[index, operator]
        return self.intrinsic


disent = method("disent", cite=f"{LEE}; intrinsic encoder alone, pruned by magnitude")(Disentangled)
disent_dense = method("disent-dense", cite=f"{LEE}; intrinsic encoder alone, not pruned", unpruned=True)(
    Disentangled
)
