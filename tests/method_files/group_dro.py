"""GroupDRO, pruned by magnitude: groups of high loss weigh more, from training and through fine-tuning."""

import torch
from torch.nn import functional

from prunebench import method
from prunebench.pruning.wrapped import state_of


@method("my-group-dro", cite="Sagawa et al., 2020 (GroupDRO)", supervision="train-groups")
class GroupDRO:
    def fit(self, experiment, sparsity):
        group = experiment.train_split.group
        q = torch.ones(int(group.max()) + 1, device=experiment.device)

        def loss(net, batch):
            each = functional.cross_entropy(net(batch.x).float(), batch.y, reduction="none")
            sums = torch.zeros_like(q).index_add(0, group[batch.index], each)
            means = sums / torch.bincount(group[batch.index], minlength=len(q)).clamp(min=1)
            q.mul_(torch.exp(0.01 * means.detach())).div_(q.sum())
            return (q * means).sum()

        def robust():
            net = experiment.new_model()
            experiment.train(net, steps=experiment.recipe.steps, name="robust", objective=loss)
            return state_of(net)

        model = experiment.model_from(experiment.shared("robust", robust))
        return experiment.finetune(model, experiment.prune(model, sparsity), objective=loss)
