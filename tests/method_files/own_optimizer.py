"""An optimizer and an augmentation of one's own in the harness's loop."""

import torch

from prunebench import method


def noisy(images, generator):
    return images + 0.05 * torch.randn(images.shape, generator=generator, device=images.device)


def adamw(parameters, lr):
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)


@method("my-own-optimizer", cite="Loshchilov & Hutter, 2019 (AdamW)", multi_label=True)
class OwnOptimizer:
    def fit(self, experiment, sparsity):
        model = experiment.dense_model()
        masks = experiment.prune(model, sparsity)
        return experiment.finetune(model, masks, optimizer=adamw, augment=noisy)
