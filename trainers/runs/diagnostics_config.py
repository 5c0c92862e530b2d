"""Settings of the diagnostics: when a run's figures raise an alarm. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DiagnosticsConfig:
    """When a run says that something goes wrong; see docs/diagnostics.md."""

    window: int = 10
    """Steps whose mean is looked at: the newest ones, and the first ones of the run, which are its start; 0 for no
    alarms."""
    min_valid_fraction: float = 0.2
    """Advantage collapse: least share of groups with a signal."""
    malformed_rise: float = 0.1
    """Segmentation drift: most that the share of malformed turns, or of turns that were cut off, may rise by."""
    min_markers: float = 0.6
    """Segmentation drift: least markers a turn, as a share of those at the start."""
    max_calibration_noise: float = 0.5
    """Calibration variance: most sampling noise in calibrated advantages, as a share of their variance."""
    min_entropy: float = 0.1
    """Entropy collapse: least entropy, as a share of that at the start."""
    max_growth: float = 2.0
    """Length growth: most tokens of a turn or trajectory, in multiples of those at the start."""
    min_tool_use: float = 0.2
    """Least tool calls of a trajectory, as a share of those at the start."""
    max_clip_fraction: float = 0.3
    """Most tokens outside the clip range, as a share."""
    min_effective_sample_size: float = 0.5
    """Least effective sample size, as a share of the tokens."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.window < 0:
            raise ValueError(f"diagnostics.window is {self.window}, expected 0 or more")
        if not self.max_growth >= 1:
            raise ValueError(f"diagnostics.max_growth is {self.max_growth}, expected at least 1")
        if not self.max_calibration_noise >= 0:
            raise ValueError(f"diagnostics.max_calibration_noise is {self.max_calibration_noise}, expected 0 or more")
        shares = ("min_valid_fraction", "malformed_rise", "min_markers", "min_entropy", "min_tool_use")
        for name in (*shares, "max_clip_fraction", "min_effective_sample_size"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"diagnostics.{name} is {getattr(self, name)}, expected 0 to 1")
