"""Losses that debias: generalised cross-entropy, LfF's relative difficulty, the contrastive loss of DCWP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.training.loop import Batch, Objective, capturable


def task_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of class labels y `[B]`, or mean binary cross-entropy of attributes y `[B, K]`."""
    if y.ndim == 2:
        return functional.binary_cross_entropy_with_logits(logits.float(), y.float())
    return functional.cross_entropy(logits.float(), y)


@capturable
def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """The mean loss of the batch: see `task_loss`."""
    return task_loss(model(batch.x), batch.y)


def weighted_cross_entropy(weight: Tensor) -> Objective:
    """The objective that is the mean over a batch of weight times cross-entropy; weight: of each sample, `[N]`."""

    @capturable
    def loss(net: nn.Module, batch: Batch) -> Tensor:
        each = functional.cross_entropy(net(batch.x).float(), batch.y, reduction="none")
        return (weight[batch.index] * each).mean()

    return loss


def generalised_cross_entropy(logits: Tensor, y: Tensor, q: float = 0.7) -> Tensor:
    """Per-sample GCE `[B]` in LfF's form, q * stop_gradient(p_y)^q * CE.

    Its gradient equals that of (1 - p_y^q) / q up to the factor q: easy samples weigh more, so the net amplifies
    the bias. Sources: Zhang & Sabuncu (2018); Nam et al. (2020).
    """
    loss = functional.cross_entropy(logits.float(), y, reduction="none")
    probability = torch.exp(-loss.detach())
    return q * probability.pow(q) * loss


@capturable
def gce_objective(model: nn.Module, batch: Batch) -> Tensor:
    """Mean GCE of the batch."""
    return generalised_cross_entropy(model(batch.x), batch.y).mean()


def confident_cross_entropy(logits: Tensor, y: Tensor, least: float) -> Tensor:
    """Mean cross-entropy of the samples whose label has a probability above `least`; 0 where none has.

    A net trained so gives up what it finds hard, and stays biased. Source: Zhao et al. (2021).
    """
    loss = functional.cross_entropy(logits.float(), y, reduction="none")
    confident = (torch.exp(-loss.detach()) > least).float()
    return (confident * loss).sum() / confident.sum().clamp(min=1)


def distillation_loss(
    logits: Tensor, teacher: Tensor, y: Tensor, *, temperature: float = 4.0, weight: float = 0.9
) -> Tensor:
    """weight * T^2 KL(softmax(teacher / T) || softmax(logits / T)) + (1 - weight) * task loss; logits `[B, C]`.

    Source: Hinton et al. (2015).
    """
    target = functional.log_softmax(teacher.detach().float() / temperature, 1)
    answer = functional.log_softmax(logits.float() / temperature, 1)
    soft = functional.kl_div(answer, target, reduction="batchmean", log_target=True) * temperature**2
    return weight * soft + (1 - weight) * task_loss(logits, y)


def contrastive_loss(
    features: Tensor, y: Tensor, conflicting: Tensor, *, temperature: float = 0.07, released: bool = True
) -> Tensor:
    """Supervised contrastive loss that pulls bias-conflicting samples to their class.

    features `[B, F]` (normalised here), y `[B]`, conflicting `[B]` bool. Per anchor i with positives P(i):
    -1/|P(i)| sum_p log(exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t)), mean over anchors that have any.
    As released, P(i) = same class and p conflicting; as intended, same class and (i or p conflicting).
    Without any positive pair the loss is 0 (the released code gives nan). Source: Park et al. (2023).
    """
    z = functional.normalize(features.float(), dim=1)
    if len(z) < 2:
        return z.sum() * 0.0
    with torch.autocast(z.device.type, enabled=False):
        similarity = z @ z.T / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_probability = similarity - torch.logsumexp(
        similarity.masked_fill(itself, -torch.inf), dim=1, keepdim=True
    )
    chosen = conflicting.unsqueeze(0)
    if not released:
        chosen = chosen | conflicting.unsqueeze(1)
    positive = ((y.unsqueeze(0) == y.unsqueeze(1)) & chosen & ~itself).float()
    count = positive.sum(1)
    per_anchor = -(positive * log_probability).sum(1) / count.clamp(min=1)
    return per_anchor.sum() / (count > 0).sum().clamp(min=1)


class RelativeDifficulty:
    """LfF's sample weights W_i = m_b / (m_b + m_d) from smoothed, class-normalised losses of two nets.

    m <- l at the first visit, then 0.7 m + 0.3 l; divided by the largest m of the sample's class.
    """

    def __init__(self, y: Tensor, num_classes: int, *, momentum: float = 0.7) -> None:
        self._y = y
        self._num_classes = num_classes
        self._momentum = momentum
        self._smoothed = torch.zeros(2, len(y), device=y.device)
        self._seen = torch.zeros(len(y), dtype=torch.bool, device=y.device)

    def update(self, index: Tensor, loss_biased: Tensor, loss_debiased: Tensor) -> Tensor:
        """Take the losses `[B]` of a batch in and give its weights `[B]`."""
        new = torch.stack([loss_biased, loss_debiased]).detach().float()
        old = self._smoothed[:, index]
        blend = torch.where(self._seen[index], self._momentum * old + (1 - self._momentum) * new, new)
        self._smoothed[:, index] = blend
        self._seen.index_fill_(0, index, True)  # an assignment would copy the number from the host
        return self._weights(blend, self._y[index])

    def all_weights(self) -> Tensor:
        """The weights of all samples `[N]`; a sample never drawn gets the neutral 1/2."""
        weights = self._weights(self._smoothed, self._y)
        return torch.where(self._seen, weights, torch.full_like(weights, 0.5))

    def _weights(self, smoothed: Tensor, y: Tensor) -> Tensor:
        largest = torch.zeros(2, self._num_classes, device=smoothed.device)
        largest.scatter_reduce_(1, self._y.expand(2, -1), self._smoothed, "amax")
        biased, debiased = smoothed / largest[:, y].clamp(min=1e-12)
        return biased / (biased + debiased + 1e-8)
