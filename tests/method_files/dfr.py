"""DFR: the head of the pruned network trained anew on validation images, every group of them as much."""

import torch
from sklearn.linear_model import LogisticRegression

from prunebench import method


@method("my-dfr", cite="Kirichenko et al., 2023 (DFR)", supervision="val-groups")
class DFR:
    def fit(self, experiment, sparsity):
        model = experiment.dense_model()
        pruned, split = experiment.finetune(model, experiment.prune(model, sparsity)), experiment.val_split
        group, features = split.group.cpu(), experiment.features(model, split).cpu().numpy()
        weight = 1 / torch.bincount(group).float()[group]
        head = LogisticRegression(max_iter=500).fit(
            features, split.y.cpu().numpy(), sample_weight=weight.numpy()
        )
        found = torch.tensor(head.coef_).float()  # 0 for a feature that is never active: it keeps what it had
        with torch.no_grad():
            found = torch.where(found == 0, model.head.weight, found) * pruned.masks["head.weight"]
            model.head.weight.copy_(found)
            model.head.bias.copy_(torch.tensor(head.intercept_))
        return pruned
