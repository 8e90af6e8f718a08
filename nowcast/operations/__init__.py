"""Operations: cycle, shadow forecasts, comparison and promotion of models, doctor, demo."""
