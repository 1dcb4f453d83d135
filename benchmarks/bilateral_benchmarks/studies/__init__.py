"""Studies whose results the documentation cites: robustness, theory, tile skipping, builds."""
