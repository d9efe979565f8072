"""The functions of `torch.nn.utils.prune`, whose masks are read from the network."""

from torch import nn
from torch.nn.utils.prune import L1Unstructured, global_unstructured

from prunebench import method


@method("my-torch-prune", cite="Paganini & Forde, 2020 (Streamlining tensor and network pruning in PyTorch)")
class TorchPrune:
    def fit(self, experiment, sparsity):
        model = experiment.dense_model()
        layers = [(layer, "weight") for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        global_unstructured(layers, pruning_method=L1Unstructured, amount=sparsity)
        return experiment.finetune(model)
