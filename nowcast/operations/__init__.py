"""What an operator runs: cycle, shadow forecasts, promotion, doctor, demo."""
