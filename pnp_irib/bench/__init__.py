"""Measuring a restorer alone and wrapped."""

from pnp_irib.bench.metrics import METRICS, Judge, Metric
from pnp_irib.bench.report import BenchReport
from pnp_irib.bench.runner import BenchConfig, run_bench
from pnp_irib.bench.statistics import Interval, paired_bootstrap
from pnp_irib.images.similarity import ms_ssim, psnr

__all__ = [
    "METRICS",
    "BenchConfig",
    "BenchReport",
    "Interval",
    "Judge",
    "Metric",
    "ms_ssim",
    "paired_bootstrap",
    "psnr",
    "run_bench",
]
