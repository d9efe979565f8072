"""Words of the leaderboard: what its numbers mean. An empty text is filled from the registry of metrics."""

from __future__ import annotations

INTRODUCTION = (
    "What pruning costs the minorities of a vision model, and what it really gains in speed. Every number "
    "here is computed from the stored records of runs."
)
ACCURACY_WORDS = (
    "Accuracy in %, mean over seeds ± half-width of its 95 % t-interval. Rank: 1 + the number of methods "
    "that beat this one at the same sparsity (two-sided paired t-test over the shared seeds, p < 0.05, "
    "uncorrected for the number of comparisons); = marks a rank that several methods share."
)
ATTRIBUTE_WORDS = (
    "The task predicts several attributes of an image; the groups above are of its target attribute. Here are "
    "means over all attributes, mean over seeds ± half-width of its 95 % t-interval; shares in %, bias amplification "
    "and calibration error in percentage points."
)
COST_WORDS = (
    "Means over seeds. MACs are multiply-accumulates of one image; non-zero MACs are what is left if "
    "every zero were skipped. Latency is the median over runs of each run's median; measured speed-up is "
    "dense / pruned latency, the mean over runs of the ratio within one run ± half-width of its 95 % "
    "t-interval. Training is a multiple of the steps that train the dense model."
)
MINING_WORDS = (
    "Methods that look for bias-conflicting training images without being told: the share of mined images "
    "that truly conflict (precision) and of conflicting ones that were mined (recall), in %, mean over "
    "seeds ± half-width of its 95 % t-interval."
)
SITE_WORDS = (
    "Interactive figures and sortable tables: `prunebench leaderboard` writes `site/index.html`, which opens from disk "
    "and needs no network."
)
SUPERVISION_WORDS = (
    "Supervision is what a method may see of the bias labels: none, those of the validation split "
    "(val-groups), or those of the training split too (train-groups)."
)
VERIFIED_HELP = (
    "Of submitted rows: consistent, re-evaluated (zeros counted and logits computed here from the stored weights), "
    "re-trained (some runs, drawn by a public seed, trained here), or unverified weights (predictions alone)"
)
HISTORY_WORDS = "Versions that are no longer listed; their records stay in the results."
EMPTY_WORDS = "There are no records yet. Run a suite with `prunebench run`, then write the board again."

HOW_TO_READ = (
    (
        "Groups",
        "A group is all test images with one label and one bias attribute (a digit and its colour). In "
        "training nearly all images of a label share one attribute: those groups are bias-aligned. The "
        "few that break the rule are bias-conflicting: the minorities.",
    ),
    (
        "Metrics",
        "",
    ),
    (
        "Mean ± half-width",
        "The mean over seeds and the half-width of its 95 % Student t-interval (n - 1 degrees of "
        "freedom). It speaks of other seeds of the same experiment, not of other data; with few seeds it "
        "is wide, and it is not clipped to 0-100 %. One seed gives no half-width (en dash).",
    ),
    (
        "Ranks and ties",
        "A method's rank is 1 + the number of methods that beat it at the same sparsity, in a two-sided "
        "paired t-test over the shared seeds at p < 0.05, not corrected for the number of comparisons. "
        "Methods that share a rank are ties, shown as 1=. A rank says what the data can separate, so a "
        "method that varies much between seeds can hold a better rank than its mean suggests; rows are in "
        "order of the mean. With fewer than two paired seeds there is no rank. Dense models and methods "
        "that choose their own sparsity are not ranked.",
    ),
    (
        "Sparsity",
        "The share of zeros among the weights that may be pruned: asked for, and achieved, counted after "
        "fine-tuning. The native block holds methods that choose their sparsity themselves.",
    ),
    (
        "Speed",
        "The non-zero MACs say what sparsity could save at best, the latencies what it did save. Sparse "
        "inference folds BatchNorm, removes channels that pruning emptied, and takes for every convolution "
        "the layout that was measured to be the fastest, dense among them; the dense reference is folded "
        "and fused too. Dense kernels with zeros is the plain network, whose kernels multiply zeros like any "
        "other number. Dense and pruned model are timed in turns within one run, on a GPU as CUDA "
        "graphs (the GPU's work without its launching), and latencies of different machines or kinds are "
        "never mixed.",
    ),
    (
        "Coverage",
        "Seeds 3/3 means that all three planned seeds finished. With any of them missing or failed the "
        "row has no mean (em dash), and the reason stands below the table.",
    ),
)
