"""What every room stands on: units, grids, cubes, errors, files."""
