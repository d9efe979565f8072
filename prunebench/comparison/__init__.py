"""Two runs or methods compared, paired by seed and by sample."""
