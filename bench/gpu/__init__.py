"""The trip to a GPU machine: measurements, most valuable first, in a plain tree without network or installation.

python bench/gpu/cache.py --out bench/gpu/cache.tar.xz        # here, with the GPU machine's Triton
python3 bench/gpu/trip.py --minutes 8.5 --out DIR             # there
python bench/gpu/report.py DIR/results.tar.gz --out docs/gpu.md
"""
