"""What all reports share: verdicts, confidence intervals, plots."""
