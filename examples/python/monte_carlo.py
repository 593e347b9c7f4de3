"""Pi from random points: an array that never exists as a whole."""

import argparse

import dask.array as da
from distributed import Client

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=20_000_000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with Client() as client:
        random = da.random.default_rng(options.seed)
        points = random.random((options.points, 2), chunks=(1_000_000, 2))
        is_inside = (points**2).sum(axis=1) < 1
        share, error = is_inside.mean(), is_inside.std() / options.points**0.5
        share, error = client.compute([share, error], sync=True)
        print(f"pi is {4 * share:.4f}, give or take {4 * error:.4f}")
