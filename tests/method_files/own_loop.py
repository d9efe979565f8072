"""Sharpness-aware fine-tuning in a loop of its own, with an optimizer of its own."""

import torch
from torch.nn import functional

from prunebench import Pruned, method
from prunebench.pruning.masks import apply_masks


@method("my-own-loop", cite="Foret et al., 2021 (SAM)")
class OwnLoop:
    def fit(self, experiment, sparsity):
        model = experiment.dense_model().train()
        masks = experiment.prune(model, sparsity)
        optimizer = torch.optim.AdamW(model.parameters(), lr=experiment.recipe.finetune_lr)
        for batch in experiment.batches(model, steps=experiment.recipe.finetune_steps, name="sam"):
            functional.cross_entropy(model(batch.x), batch.y).backward()
            slopes = [weight.grad for weight in model.parameters()]
            scale = 0.05 / (torch.stack([slope.norm() for slope in slopes]).norm() + 1e-12)
            with torch.no_grad():
                torch._foreach_add_(list(model.parameters()), torch._foreach_mul(slopes, scale))
            optimizer.zero_grad()
            functional.cross_entropy(model(batch.x), batch.y).backward()
            with torch.no_grad():
                torch._foreach_sub_(list(model.parameters()), torch._foreach_mul(slopes, scale))
            optimizer.step()
            optimizer.zero_grad()
            apply_masks(model, masks)
        return Pruned(model, masks)
