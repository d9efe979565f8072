"""DepGraph through Torch-Pruning (`pip install torch-pruning`): coupled channels go together."""

from prunebench import Pruned, method
from prunebench.pruning.masks import whole_masks


@method("my-depgraph", cite="Fang et al., 2023 (DepGraph)")
class DepGraph:
    def fit(self, experiment, sparsity):
        import torch_pruning as tp

        model = experiment.dense_model()
        pruner = tp.pruner.MagnitudePruner(
            model,
            experiment.train_split.images.batch(slice(0, 2)),
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=1 - (1 - sparsity) ** 0.5,
            ignored_layers=[model.head],
        )
        pruner.step()
        experiment.finetune(model, whole_masks(model))
        return Pruned(model, whole_masks(model), structured=True)
